"""Memory that is handed out again, and never while somebody holds it."""

import gc

import numpy as np
import pytest
import torch

from scvae.data import stored_rows as recycled
from scvae.data.stored_rows import Recycled


def address(array):
    return array.__array_interface__["data"][0]


def test_the_memory_of_an_array_that_nobody_holds_is_used_again():
    pool = Recycled()
    first = pool.empty(1000, np.float32)
    place = address(first)
    del first
    gc.collect()
    assert address(pool.empty(1010, np.int32)) == place  # within the slack, as another type


@pytest.mark.parametrize(
    "hold",
    [
        lambda array: array,
        lambda array: array[10:20],
        lambda array: array[10:20][:5].view(np.uint8),
        lambda array: torch.from_numpy(array[10:20])[2:].numpy(),
        lambda array: memoryview(array[3:]),
    ],
    ids=["itself", "view", "view of a view", "tensor", "memoryview"],
)
def test_memory_of_which_a_part_is_held_is_not(hold):
    pool = Recycled()
    array = pool.empty(1000, np.float32)
    array[:] = 7.0
    held, place = hold(array), address(array)
    del array
    gc.collect()
    other = pool.empty(1000, np.float32)
    assert address(other) != place
    other[:] = 1.0
    assert bytes(held)[:4] == np.float32(7.0).tobytes()
    del held, other
    gc.collect()
    assert place in {address(memory) for memory in pool._spare}


def test_little_is_kept_and_the_largest(monkeypatch):
    monkeypatch.setattr(recycled, "MOST_SPARE", 2)
    pool = Recycled()
    arrays = [pool.empty(n, np.uint8) for n in (100, 4000, 200, 5000)]
    del arrays
    gc.collect()
    assert sorted(len(memory) for memory in pool._spare) == [4201, 5251]


def test_an_array_of_nothing():
    assert len(Recycled().empty(0, np.float32)) == 0
