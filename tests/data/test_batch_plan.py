"""The split, the epoch plan and the batch record."""

import numpy as np
import pytest
import torch

from scvae.data.batches import Batch, chunks, epoch_plan, split


@pytest.mark.parametrize(
    ("n", "fraction", "aside"), [(1, 0.1, 0), (9, 0.5, 0), (10, 0.1, 1), (10, 0.01, 1), (10, 0.99, 9), (200, 0.1, 20)]
)
def test_split_sets_the_stated_number_of_cells_aside(n, fraction, aside):
    train, validation = split(n, fraction, np.random.default_rng(0))
    assert len(validation) == aside
    assert sorted([*train, *validation]) == list(range(n))
    for part in (train, validation):
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


def test_split_without_validation_keeps_every_cell():
    train, validation = split(50, 0.0, np.random.default_rng(0))
    assert len(train) == 50
    assert len(validation) == 0


def test_split_follows_its_generator_only():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (split(100, 0.1, np.random.default_rng(seed))[1] for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, split(100, 0.1, np.random.default_rng(1))[1])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_no_training_cell(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split(10, fraction, np.random.default_rng(0))


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 127, 128, 129, 128 * 7 + 1, 1000])
def test_no_batch_of_an_epoch_is_tiny(n):
    plan = epoch_plan(np.arange(n) * 3, 128, seed=0, epoch=0)
    sizes = [len(part) for part in plan]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(n, 64)
    assert max(sizes) <= 192
    assert sorted(np.concatenate(plan)) == list(range(0, 3 * n, 3))


def test_epochs_and_seeds_differ_and_repeat():
    def order(seed, epoch):
        return np.concatenate(epoch_plan(np.arange(100), 10, seed=seed, epoch=epoch)).tolist()

    assert order(0, 0) == order(0, 0)
    assert len({tuple(order(*pair)) for pair in [(0, 0), (0, 1), (1, 0), (1, 1)]}) == 4


def test_an_epoch_without_cells_is_refused():
    with pytest.raises(ValueError, match="no training cell"):
        epoch_plan(np.arange(0), 10, seed=0, epoch=0)


def test_chunks_are_consecutive_and_complete():
    assert [part.tolist() for part in chunks(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert chunks(0, 3) == []
    with pytest.raises(ValueError, match="size is 0"):
        chunks(4, 0)


def test_group_is_the_batch_column_only_if_there_is_a_batch():
    codes = torch.tensor([[1, 0], [2, 1]])
    parts = {"x": torch.zeros(2, 3), "library": torch.ones(2), "codes": codes, "numeric": torch.zeros(2, 0)}
    assert Batch(**parts, has_batch=True).group.tolist() == [1, 2]
    assert Batch(**parts).group.tolist() == [0, 0]
    assert len(Batch(**parts)) == 2
