"""Precision and threads while a model works: as asked, and afterwards as they were."""

import threading

import numba
import pytest
import torch

from scvae.kernels.backends import cpu_kernels
from scvae.kernels.context import float32_products, shared_threads, working_on

MATMUL = torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def _precision_is_put_back():
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_rounded_as_asked_and_then_as_before(before, tf32):
    torch.set_float32_matmul_precision(before)
    with pytest.raises(KeyError), float32_products(tf32=tf32):  # noqa: PT012
        assert MATMUL.allow_tf32 == tf32
        raise KeyError
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one dialect only")
@pytest.mark.parametrize("tf32", [True, False])
def test_a_caller_who_uses_the_newer_setting_gets_it_back(tf32):
    before = MATMUL.fp32_precision
    MATMUL.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError, match="mix"):
            torch.get_float32_matmul_precision()
        with float32_products(tf32=tf32):
            assert MATMUL.fp32_precision == ("tf32" if tf32 else "ieee")
        assert MATMUL.fp32_precision == "tf32"
    finally:
        MATMUL.fp32_precision = before


def test_the_cpu_is_left_as_it_is():
    torch.set_float32_matmul_precision("medium")
    with working_on(torch.device("cpu"), tf32=True):
        assert torch.get_float32_matmul_precision() == "medium"


@pytest.mark.parametrize("threads", [1, 2])
def test_numba_takes_as_many_threads_as_torch_and_gets_its_own_number_back(threads):
    assert cpu_kernels() is not None
    most, before = numba.config.NUMBA_NUM_THREADS, numba.get_num_threads()
    of_torch = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        with pytest.raises(KeyError), shared_threads():  # noqa: PT012
            assert numba.get_num_threads() == min(threads, most)
            raise KeyError
    finally:
        torch.set_num_threads(of_torch)
    assert numba.get_num_threads() == before


def test_another_thread_that_works_leaves_this_one_alone():
    before = numba.get_num_threads()
    with shared_threads():
        other = threading.Thread(target=lambda: numba.set_num_threads(1))
        other.start()
        other.join()
    assert numba.get_num_threads() == before
