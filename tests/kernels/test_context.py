"""Settings of torch, numba and numpy during a call: as the package needs them, and afterwards as they were."""

import contextlib
import threading

import numpy as np
import pytest
import torch
from threadpoolctl import ThreadpoolController

from scvae.kernels import context
from scvae.kernels.context import computing, float32_products, give_way, turn, working_on
from scvae.kernels.threads import of_call

MATMUL = torch.backends.cuda.matmul


@contextlib.contextmanager
def changed(put, before, after):
    put(after)
    try:
        yield
    finally:
        put(before)


def rounds_to_zero():
    return float(torch.full((1,), 1e-310, dtype=torch.float64) * 1.0) == 0.0


SETTINGS = {  # how a program may set each, how to ask for it, and what a call needs
    "default type": (
        lambda: changed(torch.set_default_dtype, torch.float32, torch.float64),
        torch.get_default_dtype,
        torch.float32,
    ),
    "default device": (lambda: torch.device("meta"), lambda: torch.empty(1).device.type, "cpu"),
    "gradients": (torch.no_grad, torch.is_grad_enabled, True),
    "inference": (torch.inference_mode, torch.is_inference_mode_enabled, False),
    "autocast": (
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: (torch.ones(2, 2) @ torch.ones(2, 2)).dtype,
        torch.float32,
    ),
    "precision of products": (
        lambda: changed(torch.set_float32_matmul_precision, "highest", "medium"),
        torch.get_float32_matmul_precision,
        "highest",
    ),
    "anomalies": (lambda: torch.autograd.set_detect_anomaly(True), torch.is_anomaly_enabled, False),
    "denormal numbers": (lambda: changed(torch.set_flush_denormal, False, True), rounds_to_zero, False),
    "errors of numpy": (lambda: np.errstate(all="raise"), lambda: np.geterr()["under"], "ignore"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_call_has_its_own_settings_and_puts_back_those_of_the_program(name):
    set_by_program, ask, needed = SETTINGS[name]
    with set_by_program():
        before = ask()
        assert before != needed
        with pytest.raises(KeyError), computing():  # noqa: PT012
            assert ask() == needed
            raise KeyError
        assert ask() == before
    assert ask() == needed


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
@pytest.mark.parametrize("tf32", [True, False])
def test_products_are_rounded_as_asked_and_then_as_before(before, tf32):
    with changed(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision(), before):
        with pytest.raises(KeyError), float32_products(tf32=tf32):  # noqa: PT012
            assert MATMUL.allow_tf32 == tf32
            raise KeyError
        assert torch.get_float32_matmul_precision() == before


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="this torch has one dialect only")
@pytest.mark.parametrize("tf32", [True, False])
def test_a_caller_who_uses_the_newer_settings_gets_them_back(tf32):
    of_cpu = torch.backends.mkldnn.matmul
    before = MATMUL.fp32_precision, of_cpu.fp32_precision
    MATMUL.fp32_precision, of_cpu.fp32_precision = "tf32", "bf16"
    try:
        with pytest.raises(RuntimeError, match="mix"):
            torch.get_float32_matmul_precision()
        with float32_products(tf32=tf32):
            assert MATMUL.fp32_precision == ("tf32" if tf32 else "ieee")
            assert of_cpu.fp32_precision != "bf16"
        assert (MATMUL.fp32_precision, of_cpu.fp32_precision) == ("tf32", "bf16")
    finally:
        MATMUL.fp32_precision, of_cpu.fp32_precision = before


def test_torch_has_as_many_threads_as_it_was_told_whatever_other_packages_set():
    """Numba sets the number of the OpenMP library when it starts its threads; here that is done by hand."""
    wanted = torch.get_num_threads()
    with ThreadpoolController().select(user_api="openmp").limit(limits=wanted + 1):
        assert torch.get_num_threads() == wanted + 1
        with computing():
            assert (torch.get_num_threads(), of_call()) == (1, wanted)
        assert torch.get_num_threads() == wanted + 1


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_that_the_user_sets_holds_for_kernels_and_torch_itself_has_one_thread(threads, monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    seen = []

    def look():
        seen.append((torch.get_num_threads(), of_call()))

    with changed(torch.set_num_threads, before, threads):
        with computing():
            look()
            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
        assert torch.get_num_threads() == threads
    assert seen == [(1, threads)] * 2


def test_the_settings_are_held_until_the_last_thread_leaves():
    entered, leave = threading.Event(), threading.Event()

    def stay():
        with computing():
            entered.set()
            leave.wait(60)

    other = threading.Thread(target=stay)
    with changed(torch.set_default_dtype, torch.float32, torch.float64):
        with computing():
            other.start()
            assert entered.wait(60)
        assert torch.get_default_dtype() == torch.float32
        leave.set()
        other.join()
        assert torch.get_default_dtype() == torch.float64


def test_threads_take_turns_in_the_order_in_which_they_ask():
    order = []

    def work():
        with working_on(torch.device("cpu")):
            order.append("other")

    other = threading.Thread(target=work)
    with turn():
        other.start()
        while not context._process.queue.locked():
            pass
        order.append("first")
        give_way()
        order.append("first again")
    other.join()
    assert order == ["first", "other", "first again"]


def test_a_turn_ends_with_the_call_although_a_generator_is_left_within_it():
    def unfinished():
        with turn():
            yield

    def work():
        with turn():
            pass

    with computing():
        generator = unfinished()
        next(generator)
    other = threading.Thread(target=work, daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive()
    generator.close()
