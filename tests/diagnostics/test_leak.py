"""How well a batch is told from the embedding."""

import numpy as np
import pytest

from scvae.diagnostics.leak import batch_leak


def cells(sizes, shift, seed=0):
    batch = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).normal(size=(len(batch), 3)) + shift * batch[:, None], batch


@pytest.mark.parametrize("sizes", [(300, 300), (500, 60), (200, 200, 200)])
def test_mixed_batches_are_told_by_chance_only_whatever_their_sizes(sizes):
    leak = batch_leak(*cells(sizes, 0.0))
    assert leak.chance == pytest.approx(1 / len(sizes))
    assert abs(leak.excess) < 0.25


@pytest.mark.parametrize("sizes", [(300, 300), (500, 60), (200, 200, 200)])
def test_batches_that_lie_apart_are_always_told(sizes):
    assert batch_leak(*cells(sizes, 20.0)).excess == 1.0


def test_a_partial_shift_lies_between():
    assert 0.2 < batch_leak(*cells((300, 300), 1.0)).excess < 0.9


def test_a_single_batch_or_one_with_a_few_more_cells_cannot_leak():
    assert batch_leak(*cells((100,), 0.0)) is None
    assert batch_leak(*cells((100, 5), 20.0)) is None
