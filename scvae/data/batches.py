"""Batches of cells: the validation split, the order of cells in an epoch, and the `Batch` passed to the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final, overload

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..common.checks import check_positive_int, check_probability
from ..common.rng import numpy_generator
from ..kernels.block import Block
from .beta_range import BetaRange

SPLIT = 1  # random stream; depends on the seed only
SMALLEST_SPLIT = 10  # with fewer cells, none are held out for validation
MOST_ASIDE = 20_000  # more cells do not improve a mean, and every epoch evaluates all of them

Batches = Sequence[Int[np.ndarray, "_"]]  # positions of the cells of each batch


@dataclass(frozen=True, eq=False, slots=True)
class ViewBatch:
    """A further measurement of the cells of a batch; it must be ignored in the cells that lack it.

    Parameters
    ----------
    x
        Its values, cells x features, as in `Batch`; 0 in cells that lack it.
    library
        Its library sizes; in cells that lack it, the typical one.
    present
        Which cells have it.
    missing
        Features that were not measured in these cells, as in `Batch`.
    """

    x: Block
    library: Float[Tensor, " cells"]
    present: Bool[Tensor, " cells"]
    missing: Int[Tensor, " missing"] | None = None

    def map(self, change: Callable[[Tensor], Tensor]) -> ViewBatch:
        """The same cells with every tensor replaced."""
        missing = None if self.missing is None else change(self.missing)
        return ViewBatch(self.x.map(change), change(self.library), change(self.present), missing)

    def select(self, positions: Int[Tensor, " chosen"]) -> ViewBatch:
        """Some of the cells."""
        return ViewBatch(self.x.select(positions), self.library[positions], self.present[positions], self.missing)


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Some cells, as passed to the model.

    Parameters
    ----------
    x
        Raw values, cells x modelled genes: sparse for counts and binary data, sparse or dense for real values; float32,
        except for rows selected from data kept on a device.
    library
        float32 sum over the modelled genes, or the user's size factor on that scale; 1 for real values.
    codes
        int64 category of each categorical column, the batch first.
    numeric
        float32 standardised numeric covariates.
    has_batch
        Whether the first column of `codes` is the batch.
    log_beta, knots
        For a model with a range of β: log β of each cell, and the weights of the model's knots there. None for one β.
    missing
        Modelled genes that were not measured in these cells, int64 and ascending; their values in `x` are 0 and must be
        ignored. None if all were measured.
    rows
        In a training without an encoder, the rows of these cells in the tables of posteriors, int64; else None.
    labels
        int64 code of the label of each cell, -1 for a cell without one; None if there are no labels.
    present
        Which cells have the values in `x`, if there are further measurements; None for all cells.
    views
        Further measurements of the cells.
    """

    x: Block
    library: Float[Tensor, " cells"]
    codes: Int[Tensor, "cells categoricals"]
    numeric: Float[Tensor, "cells numerics"]
    has_batch: bool = False
    log_beta: Float[Tensor, " cells"] | None = None
    knots: Float[Tensor, "cells knots"] | None = None
    missing: Int[Tensor, " missing"] | None = None
    rows: Int[Tensor, " cells"] | None = None
    labels: Int[Tensor, " cells"] | None = None
    present: Bool[Tensor, " cells"] | None = None
    views: tuple[ViewBatch, ...] = ()

    def __len__(self) -> int:
        return self.library.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same cells with every tensor replaced."""
        library, codes, numeric = map(change, (self.library, self.codes, self.numeric))
        names = ("log_beta", "knots", "missing", "rows", "labels", "present")
        optional = {name: tensor for name in names if (tensor := getattr(self, name)) is not None}
        changed = {name: change(tensor) for name, tensor in optional.items()}
        views = tuple(view.map(change) for view in self.views)
        return Batch(self.x.map(change), library, codes, numeric, self.has_batch, views=views, **changed)

    def to(self, device: torch.device) -> Batch:
        """The same cells on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def at(self, betas: BetaRange, log_beta: Float[Tensor, " cells"]) -> Batch:
        """The same cells at other values of β, for a model with a range of β."""
        return dataclasses.replace(self, log_beta=log_beta, knots=betas.hats(log_beta))

    def of_view(self, view: ViewBatch) -> Batch:
        """The cells with a further measurement in place of the first."""
        return dataclasses.replace(
            self, x=view.x, library=view.library, missing=view.missing, present=view.present, views=()
        )

    def turned(self, place: int) -> Batch:
        """The cells with the first measurement and the further one at `place` in place of each other."""
        if not self.views:
            return self
        assert self.present is not None
        views = list(self.views)
        views[place] = ViewBatch(self.x, self.library, self.present, self.missing)
        return dataclasses.replace(self.of_view(self.views[place]), views=tuple(views))

    def having(self, present: Sequence[Bool[Tensor, " cells"]]) -> Batch:
        """The cells, as if only these had the first measurement and each further one."""
        views = zip(self.views, present[1:], strict=True)
        return dataclasses.replace(
            self, present=present[0], views=tuple(dataclasses.replace(view, present=some) for view, some in views)
        )

    @property
    def group(self) -> Int[Tensor, " cells"]:
        """Batch of each cell, int64; 0 for all cells when there is no batch."""
        if self.has_batch:
            return self.codes[:, 0]
        return torch.zeros(len(self), dtype=torch.int64, device=self.library.device)


def n_aside(n: int, fraction: float) -> int:
    """How many of `n` cells `split` holds out."""
    check_positive_int(n, "n")
    check_probability(fraction, "fraction")
    if fraction == 1:
        raise ValueError("fraction is 1, which leaves no cell to train on; pass a number in [0, 1)")
    if n < SMALLEST_SPLIT or fraction == 0:
        return 0
    return min(max(round(n * fraction), 1), n - 1, MOST_ASIDE)


def split(n: int, fraction: float, seed: int) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """The training cells and those held out for validation; a pure function of its arguments.

    Parameters
    ----------
    n
        Number of cells.
    fraction
        Fraction of the cells to hold out, in [0, 1).
    seed
        Seed of the fit.

    Returns
    -------
    tuple
        Positions of the training and of the validation cells, sorted int64. round(n * fraction) cells are held out: at
        least one if `fraction` > 0 and n >= 10, none if n < 10, and at most 20,000. At least one training cell remains.

    Raises
    ------
    ValueError
        If `n` is not positive or `fraction` not in [0, 1).
    """
    aside = n_aside(n, fraction)
    order = numpy_generator(seed, SPLIT).permutation(n).astype(np.int64)
    return np.sort(order[aside:]), np.sort(order[:aside])


@dataclass(frozen=True, slots=True)
class Shuffle:
    """How cells on disk are shuffled: first blocks of neighbouring cells, then the cells within each window.

    Parameters
    ----------
    block
        Number of neighbouring cells that are read together.
    window
        Number of cells that are in memory at once, on each rank.
    world
        Number of processes that share each batch; `share_of` gives the cells of a rank.
    """

    block: int
    window: int
    world: int = 1

    def variance_ratio(self, batch_size: int, n_cells: int) -> float:
        """Variance of a batch's mean, relative to a batch drawn from all cells, if similar cells are stored together.

        It is 1 + b (B - 1) / M for batches of b cells from a window of M cells in blocks of B: the block mates of a
        cell are a fraction (B - 1) / M of the window, and more often in its batch than by chance. This is the worst
        case, a file sorted by type. The ratio is 1 for a file in random order, or if all cells fit in the window.
        """
        if self.window >= n_cells:
            return 1.0
        return 1.0 + batch_size * (self.block - 1) / self.window


def epoch_plan(
    train: Int[np.ndarray, " train"],
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    shuffle: Shuffle | None = None,
) -> Batches:
    """The batches of one epoch: a pure function of its arguments, so that a resumed run gets the same batches.

    Parameters
    ----------
    train
        Positions of the training cells, ascending.
    batch_size
        Target number of cells per batch. The cells are split into round(n / batch_size) nearly equal parts, so batches
        differ by at most one cell and there is no tiny last batch, which would distort batch statistics.
    seed, epoch
        Not negative; together they determine the order.
    shuffle
        For cells on disk: each rank reads its own blocks of neighbouring cells (a block cut at the edge of a window can
        be read by another, too), and takes its batches from one window after another.

    Returns
    -------
    Sequence
        Positions of the cells of each batch; every cell occurs once. A list, or a sequence that makes them on demand.

    Raises
    ------
    ValueError
        If `train` is empty or `batch_size` not positive.
    """
    check_positive_int(batch_size, "batch_size")
    if len(train) == 0:
        raise ValueError("there are no training cells; lower the validation fraction")
    train = np.asarray(train, dtype=np.int64)
    if shuffle is not None and shuffle.window * shuffle.world < len(train):
        return WindowedPlan(train, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    order = _generator(seed, epoch).permutation(train)
    return np.array_split(order, _n_batches(len(order), batch_size))


@final
class WindowedPlan(Sequence[np.ndarray]):
    """The batches of an epoch of cells on disk, made window by window: see `epoch_plan`.

    The cells are cut into blocks. The first block has a random size, so that the borders differ between epochs. The
    blocks are permuted. Each window takes the next of them, enough for an integer number of batches, deals them to the
    ranks, and permutes the cells of each rank.

    Parameters
    ----------
    rank
        The rank whose part of each batch to return; None for complete batches.
    """

    def __init__(
        self,
        train: Int[np.ndarray, "_"],
        batch_size: int,
        *,
        seed: int,
        epoch: int,
        shuffle: Shuffle,
        rank: int | None = None,
    ) -> None:
        self._train, self._batch_size, self._seed, self._epoch = train, batch_size, seed, epoch
        self.shuffle, self.rank = shuffle, rank
        n_batches = _n_batches(len(train), batch_size)
        least, longer = divmod(len(train), n_batches)
        self._ends = np.cumsum(least + (np.arange(n_batches) < longer))  # as `np.array_split` does
        self.batches_per_window = max(1, shuffle.window // -(-(least + 1) // shuffle.world))
        rng = _generator(seed, epoch)
        first = int(rng.integers(1, shuffle.block + 1))
        starts = np.concatenate([[0], np.arange(first, len(train), shuffle.block)])
        stops = np.append(starts[1:], len(train))
        order = rng.permutation(len(starts))
        self._starts, self._stops = starts[order], stops[order]
        self._filled = np.cumsum(self._stops - self._starts)
        self._made: tuple[int, list[Int[np.ndarray, "_"]]] = (-1, [])

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, place: int) -> Int[np.ndarray, "_"]: ...
    @overload
    def __getitem__(self, place: slice) -> Batches: ...
    def __getitem__(self, place: int | slice) -> Int[np.ndarray, "_"] | Batches:
        if isinstance(place, slice):
            return [self[i] for i in range(len(self))[place]]
        window, batch = divmod(range(len(self))[place], self.batches_per_window)
        if self._made[0] != window:
            self._made = window, self._batches_of(window)
        whole = self._made[1][batch]
        return whole if self.rank is None else np.array_split(whole, self.shuffle.world)[self.rank]

    def of_rank(self, rank: int) -> WindowedPlan:
        """The same plan with only the part of a rank in each batch."""
        return WindowedPlan(
            self._train,
            self._batch_size,
            seed=self._seed,
            epoch=self._epoch,
            shuffle=self.shuffle,
            rank=rank,
        )

    def _batches_of(self, window: int) -> list[Int[np.ndarray, "_"]]:
        batches = slice(window * self.batches_per_window, (window + 1) * self.batches_per_window)
        ends = self._ends[batches]
        begin = 0 if window == 0 else int(self._ends[batches.start - 1])
        cells = self._cells(begin, int(ends[-1]))
        sizes = np.diff(ends, prepend=begin)
        # sizes of the parts into which array_split will cut each batch, ranks x batches
        world = self.shuffle.world
        shares = sizes // world + (np.arange(world)[:, None] < sizes % world)
        rng = _generator(self._seed, self._epoch, 1 + window)  # 1 + window: to numpy, (epoch, 0) is the same as (epoch)
        dealt = []
        for part, share in zip(np.split(cells, np.cumsum(shares.sum(1))[:-1]), shares, strict=True):
            dealt.append(np.split(rng.permutation(part), np.cumsum(share)[:-1]))
        return [np.concatenate(pieces) for pieces in zip(*dealt, strict=True)]

    def _cells(self, begin: int, end: int) -> Int[np.ndarray, "_"]:
        """The cells from `begin` to `end` in the sequence of blocks."""
        first, last = np.searchsorted(self._filled, [begin, end - 1], side="right")
        starts, stops = self._starts[first : last + 1].copy(), self._stops[first : last + 1].copy()
        starts[0] += begin - (self._filled[first] - (stops[0] - starts[0]))
        stops[-1] -= self._filled[last] - end
        return np.concatenate([self._train[a:b] for a, b in zip(starts, stops, strict=True)])


def share_of(plan: Batches, rank: int, world: int) -> Batches:
    """The cells of a rank in each batch of a plan, which may be none."""
    if isinstance(plan, WindowedPlan):
        return plan.of_rank(rank)
    return [np.array_split(batch, world)[rank] for batch in plan]


def _n_batches(n_cells: int, batch_size: int) -> int:
    return max(1, round(n_cells / batch_size))


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


def chunks(n: int, size: int) -> list[Int[np.ndarray, " cells"]]:
    """Consecutive positions 0 .. n - 1 in chunks of at most `size`, for inference.

    Raises
    ------
    ValueError
        If `size` is not positive.
    """
    check_positive_int(size, "size")
    return [np.arange(start, min(start + size, n), dtype=np.int64) for start in range(0, n, size)]
