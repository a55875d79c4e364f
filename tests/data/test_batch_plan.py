"""The split, the epoch plan and the batch record."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from scvae.data.batches import Batch, Shuffle, WindowedPlan, chunks, epoch_plan, share_of, split
from scvae.kernels.block import Dense
from scvae.kernels.csr import CSR


@pytest.mark.parametrize(
    ("n", "fraction", "aside"), [(1, 0.1, 0), (9, 0.5, 0), (10, 0.1, 1), (10, 0.01, 1), (10, 0.99, 9), (200, 0.1, 20)]
)
def test_split_sets_the_stated_number_of_cells_aside(n, fraction, aside):
    train, validation = split(n, fraction, 0)
    assert len(validation) == aside
    assert sorted([*train, *validation]) == list(range(n))
    for part in (train, validation):
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


def test_split_without_validation_keeps_every_cell():
    train, validation = split(50, 0.0, 0)
    assert len(train) == 50
    assert len(validation) == 0


def test_split_follows_its_generator_only():
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, second = (split(100, 0.1, seed)[1] for seed in (1, 2))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, split(100, 0.1, 1)[1])
    assert np.array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("fraction", [-0.1, 1.0, 1.5, float("nan")])
def test_split_refuses_a_fraction_that_leaves_no_training_cell(fraction):
    with pytest.raises(ValueError, match="fraction"):
        split(10, fraction, 0)


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
    parts = {"x": Dense(torch.zeros(2, 3)), "library": torch.ones(2), "codes": codes, "numeric": torch.zeros(2, 0)}
    assert Batch(**parts, has_batch=True).group.tolist() == [1, 2]
    assert Batch(**parts).group.tolist() == [0, 0]
    assert len(Batch(**parts)) == 2


@pytest.mark.parametrize("layout", [lambda x: x, lambda x: x.selected(), lambda x: Dense(x.to_dense())])
def test_a_batch_forgets_no_tensor_on_its_way_to_a_device(layout):
    rows = CSR.from_numpy(np.array([0, 1, 3]), np.array([2, 0, 1]), np.array([5.0, 6.0, 7.0]), 3)
    two, codes = torch.ones(2), torch.zeros(2, 1, dtype=torch.int64)
    batch = Batch(layout(rows), two, codes, torch.ones(2, 1), True, two, torch.ones(2, 3), torch.tensor([1]))
    seen = []
    moved = batch.map(lambda tensor: seen.append(tensor) or tensor.clone())
    assert moved.has_batch
    assert torch.equal(moved.x.to_dense(), rows.to_dense())
    for field in fields(Batch):
        before, after = getattr(batch, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert torch.equal(before, after)
            assert any(tensor is before for tensor in seen), field.name


SHUFFLE = Shuffle(block=8, window=100)


def windowed(n=1000, batch_size=16, *, seed=0, epoch=0, world=1, shuffle=SHUFFLE, train=None):
    cells = np.arange(n) * 3 if train is None else train
    shuffle = None if shuffle is None else replace(shuffle, world=world)
    return epoch_plan(cells, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("n", [301, 500, 997, 1024])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 150])
@pytest.mark.parametrize("block", [1, 8, 33])
def test_a_windowed_epoch_has_every_cell_once_in_nearly_equal_batches(n, batch_size, block, world):
    plan = windowed(n, batch_size, world=world, shuffle=Shuffle(block, 100))
    assert isinstance(plan, WindowedPlan)
    sizes = [len(part) for part in plan]
    assert len(plan) == len(sizes) == max(1, round(n / batch_size))
    assert max(sizes) - min(sizes) <= 1
    assert sorted(np.concatenate(plan)) == list(range(0, 3 * n, 3))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_shares_of_the_ranks_make_up_each_batch_in_order(world):
    for plan in (windowed(world=world), windowed(60, world=world), windowed(shuffle=None, world=world)):
        shares = [share_of(plan, rank, world) for rank in range(world)]
        for i, batch in enumerate(plan):
            assert np.concatenate([share[i] for share in shares]).tolist() == batch.tolist()


def test_shares_may_be_empty():
    plan = epoch_plan(np.arange(2), 8, seed=0, epoch=0)
    assert [[len(part) for part in share_of(plan, rank, 4)] for rank in range(4)] == [[1], [1], [0], [0]]


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_read_blocks_of_their_own(world):
    shuffle = Shuffle(block=8, window=128)
    plan = windowed(2000, 32, world=world, shuffle=shuffle, train=np.arange(2000))
    of_rank = [share_of(plan, rank, world) for rank in range(world)]
    n_windows = -(-len(plan) // plan.batches_per_window)
    met = np.zeros((world, 2000), bool)
    for rank in range(world):
        met[rank, np.concatenate(of_rank[rank])] = True
    # neighbours that went to different ranks are edges of blocks, or of what a window gave a rank
    edges = sum(int((met[rank, 1:] & ~met[rank, :-1]).sum()) for rank in range(world))
    assert edges <= 2000 / 8 + 1 + n_windows * (world + 1)


def test_a_window_is_made_of_whole_blocks_and_a_whole_number_of_batches():
    plan = windowed(1000, 16, train=np.arange(1000))
    size = plan.batches_per_window
    assert size == 100 // 17  # the larger ones have 17 cells
    for start in range(0, len(plan), size):
        cells = np.sort(np.concatenate(plan[start : start + size]))
        runs = np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1)
        short = [run for run in runs if len(run) % 8]
        assert len(short) <= 4  # the two cut by the window's edges, the first and the last block of all


def test_blocks_end_elsewhere_in_each_epoch():
    def starts(epoch):
        plan = windowed(1000, 16, epoch=epoch, train=np.arange(1000))
        cells = np.sort(np.concatenate(plan[: plan.batches_per_window]))
        return {int(run[0]) % 8 for run in np.split(cells, np.flatnonzero(np.diff(cells) != 1) + 1) if len(run) == 8}

    assert len(set().union(*(starts(epoch) for epoch in range(6)))) > 1


def test_a_windowed_plan_is_a_function_of_its_arguments_and_can_be_entered_anywhere():
    plan = list(windowed())
    again = windowed()
    for i in (40, 3, -1, 20):
        assert again[i].tolist() == plan[i].tolist()
    assert [part.tolist() for part in again[5:9]] == [part.tolist() for part in plan[5:9]]
    assert len({tuple(np.concatenate(windowed(seed=s, epoch=e)).tolist()) for s in (0, 1) for e in (0, 1)}) == 4


def test_cells_that_fit_one_window_are_in_any_order():
    assert isinstance(windowed(100), list)
    assert isinstance(windowed(200, world=2), list)
    assert isinstance(windowed(101), WindowedPlan)


def test_the_variance_of_a_batch_of_a_sorted_file_is_what_the_shuffle_says():
    n, batch_size, shuffle = 40_000, 32, Shuffle(block=16, window=640)
    value = np.arange(n) // 16 % 2 * 2.0 - 1.0  # block mates are alike, and blocks are not
    means = [
        value[part].mean()
        for epoch in range(20)
        for part in windowed(n, batch_size, epoch=epoch, shuffle=shuffle, train=np.arange(n))
    ]
    expected = shuffle.variance_ratio(batch_size, n)
    assert expected == pytest.approx(1.75)
    # a random phase cuts each run of 16 into two: what is alike is 16 cells at most
    assert 1.2 < np.var(means) * batch_size < 1.1 * expected
    assert shuffle.variance_ratio(batch_size, 640) == 1.0


def test_validation_takes_20_000_cells_at_most():
    assert len(split(300_000, 0.1, 0)[1]) == 20_000
