"""Several threads in one kernel: each piece is done once, errors reach the caller, and products are right."""

import threading

import numpy as np
import pytest
import torch
from numba import njit

from scvae.kernels import native, team, threads

ONE = np.float32(1.0)


@pytest.fixture
def four_threads(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 4)
    threads.set_of_call(4)
    yield
    threads.set_of_call(0)


@njit(nogil=True)
def claim(counters, times, done_by):
    """Each piece adds to its place; a second phase reads the place of a neighbour after all are done."""
    n = times.size
    while True:
        piece = native.fetch_add(counters, 0, 1)
        if piece >= n:
            break
        times[piece] += 1
        native.fetch_add(counters, 1, 1)
    native.wait_for(counters, 1, n)
    while True:
        piece = native.fetch_add(counters, 2, 1)
        if piece >= n:
            break
        done_by[piece] = times[n - 1 - piece]


@pytest.mark.usefixtures("four_threads")
def test_each_piece_is_done_once_and_a_phase_begins_when_the_one_before_has_ended():
    times, seen = np.zeros(20_000, np.int64), np.zeros(20_000, np.int64)
    team.run(claim, times, seen, counters=3)
    assert (times == 1).all()
    assert (seen == 1).all()


def test_little_work_is_left_to_the_calling_thread(monkeypatch):
    monkeypatch.setattr(team, "_helpers", lambda: pytest.fail("a helper was woken"))
    threads.set_of_call(4)
    try:
        team.run(claim, np.zeros(3, np.int64), np.zeros(3, np.int64), work=10.0, counters=3)
    finally:
        threads.set_of_call(0)


@pytest.mark.usefixtures("four_threads")
def test_an_error_in_a_kernel_reaches_the_caller():
    def failing(counters):
        raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        team.run(failing)


@njit
def multiply(a, transpose_a, b, transpose_b, beta, out):
    native.multiply(a, transpose_a, b, transpose_b, beta, out)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("n", "k", "m"), [(128, 37, 64), (1, 1, 1), (3, 2000, 5)])
@pytest.mark.parametrize("beta", [0.0, 1.0])
def test_products_of_blocks_of_columns_have_the_digits_of_float32(n, k, m, transpose_a, transpose_b, beta):
    rng = np.random.default_rng(0)

    def block(n_rows, n_columns):
        """A block of columns of a larger matrix."""
        return rng.normal(size=(n_rows, n_columns + 9)).astype(np.float32)[:, 4 : 4 + n_columns]

    a, b, out = block(*((k, n) if transpose_a else (n, k))), block(*((m, k) if transpose_b else (k, m))), block(n, m)
    factors = (a.T if transpose_a else a).astype(np.float64), (b.T if transpose_b else b).astype(np.float64)
    exact, scale = factors[0] @ factors[1] + beta * out, np.abs(factors[0]) @ np.abs(factors[1]) + 1.0
    multiply(a, transpose_a, b, transpose_b, np.float32(beta), out)
    assert (np.abs(out - exact) < 1e-6 * scale).all()


def test_a_product_without_inner_columns_only_scales_what_is_there():
    out = np.full((2, 3), 5.0, np.float32)
    multiply(np.empty((2, 0), np.float32), False, np.empty((0, 3), np.float32), False, ONE, out)
    np.testing.assert_array_equal(out, 5.0)
    multiply(np.empty((2, 0), np.float32), False, np.empty((0, 3), np.float32), False, np.float32(0.0), out)
    np.testing.assert_array_equal(out, 0.0)


@pytest.mark.usefixtures("four_threads")
def test_items_are_worked_on_at_once_and_come_back_in_order():
    meet = threading.Barrier(3, timeout=20.0)

    def square(item):
        if item < 3:
            meet.wait()  # passes only if three items are under way
        return item * item, torch.is_grad_enabled(), torch.get_num_threads()

    found = list(team.in_order(square, range(10), device=torch.device("cpu")))
    assert found == [(k * k, False, 1) for k in range(10)]


@pytest.mark.usefixtures("four_threads")
def test_an_error_in_an_item_reaches_the_caller_after_the_items_before_it():
    def inverse(item):
        return 1.0 / (3 - item)

    found = team.in_order(inverse, range(6), device=torch.device("cpu"))
    assert [next(found) for _ in range(3)] == [1 / 3, 1 / 2, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_no_more_threads_are_started_than_there_are_cores(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    monkeypatch.setattr(team, "_helpers", lambda: pytest.fail("a helper was woken"))
    threads.set_of_call(16)
    try:
        team.run(claim, np.zeros(3, np.int64), np.zeros(3, np.int64), counters=3)
    finally:
        threads.set_of_call(0)
