"""Which cells go together: the split, the order of an epoch, and the record that reaches the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final, overload

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.checks import check_positive_int, check_probability
from ..common.rng import numpy_generator
from ..kernels.block import Block
from .beta_range import BetaRange

SPLIT = 1  # stream of random numbers, a function of the seed alone
SMALLEST_SPLIT = 10  # with fewer cells than this none can be spared for validation
MOST_ASIDE = 20_000  # more cells tell nothing more of a mean, and every epoch looks at all of them

Batches = Sequence[Int[np.ndarray, "_"]]  # positions of the cells of each


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Some cells, as the model takes them.

    Parameters
    ----------
    x
        Raw values, cells x modelled genes: sparse for counts and binary data, sparse or dense for real values; float32,
        but for rows selected from a store on a device.
    library
        float32 sum over the modelled genes, or the user's size factor on that scale; 1 for real values.
    codes
        int64 category of each categorical column, the batch first.
    numeric
        float32 standardised numeric covariates.
    has_batch
        Whether the first column of `codes` is the batch.
    log_beta, knots
        log β of each cell, for a model of many β, and the weights of the model's knots there; None for a model of one.
    missing
        Modelled genes that nobody measured in these cells, int64 and rising: their values in `x` are 0 and mean
        nothing. None where all were measured.
    """

    x: Block
    library: Float[Tensor, " cells"]
    codes: Int[Tensor, "cells categoricals"]
    numeric: Float[Tensor, "cells numerics"]
    has_batch: bool = False
    log_beta: Float[Tensor, " cells"] | None = None
    knots: Float[Tensor, "cells knots"] | None = None
    missing: Int[Tensor, " missing"] | None = None

    def __len__(self) -> int:
        return self.library.shape[0]

    def map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """The same cells with every tensor replaced."""
        log_beta, knots, missing = (None if t is None else change(t) for t in (self.log_beta, self.knots, self.missing))
        library, codes, numeric = map(change, (self.library, self.codes, self.numeric))
        return Batch(self.x.map(change), library, codes, numeric, self.has_batch, log_beta, knots, missing)

    def to(self, device: torch.device) -> Batch:
        """The same cells on another device."""
        return self.map(lambda tensor: tensor.to(device))

    def at(self, betas: BetaRange, log_beta: Float[Tensor, " cells"]) -> Batch:
        """The same cells at other β of a model of many."""
        return dataclasses.replace(self, log_beta=log_beta, knots=betas.hats(log_beta))

    @property
    def group(self) -> Int[Tensor, " cells"]:
        """Batch of each cell, int64; 0 for all cells when there is no batch."""
        if self.has_batch:
            return self.codes[:, 0]
        return torch.zeros(len(self), dtype=torch.int64, device=self.library.device)


def n_aside(n: int, fraction: float) -> int:
    """How many of `n` cells `split` sets aside."""
    check_positive_int(n, "n")
    check_probability(fraction, "fraction")
    if fraction == 1:
        raise ValueError("fraction is 1, which leaves no cell to train on; pass a number in [0, 1)")
    if n < SMALLEST_SPLIT or fraction == 0:
        return 0
    return min(max(round(n * fraction), 1), n - 1, MOST_ASIDE)


def split(n: int, fraction: float, seed: int) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """The cells to train on and those held out for validation: the same wherever it is asked with the same arguments.

    Parameters
    ----------
    n
        Number of cells.
    fraction
        Share of the cells to set aside, in [0, 1).
    seed
        Of the fit.

    Returns
    -------
    tuple
        Positions of the training and of the validation cells, sorted int64. round(n * fraction) cells are set aside,
        at least one when `fraction` > 0 and n >= 10, none when n < 10, and 20,000 at most; one training cell always
        remains.

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
    """How cells on disk are put in a random order: blocks of neighbours at random, then cells at random in a window.

    Parameters
    ----------
    block
        Cells that lie next to each other and are read together.
    window
        Cells that are in memory together, on each rank.
    world
        Processes that share each batch: `share_of` says which of its cells are a rank's.
    """

    block: int
    window: int
    world: int = 1

    def variance_ratio(self, batch_size: int, n_cells: int) -> float:
        """Variance of a batch's mean over that of a batch drawn from all cells, where like cells lie together.

        1 + b (B - 1) / M for batches of b cells out of a window of M cells in blocks of B: the block mates of a cell
        are (B - 1) / M of the window, and come into its batch more often than they would by chance. This is what a file
        sorted by type gives at worst; in a file in random order it is 1, and so it is if all cells fit the window.
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
    """The batches of one epoch: a pure function of its arguments, so that a resumed run meets the same batches.

    Parameters
    ----------
    train
        Positions of the training cells, rising.
    batch_size
        Wished number of cells in a batch. The cells are cut into round(n / batch_size) nearly equal parts, so batches
        differ by at most one cell and no tiny last batch (which would upset batch statistics) can occur.
    seed, epoch
        Not negative; together they decide the order.
    shuffle
        For cells on disk: each rank reads blocks of neighbours, of which nobody else reads a cell (but for those cut at
        the edge of a window), and its batches come out of one window after another.

    Returns
    -------
    Sequence
        Positions of each batch, every cell once. A list, or what makes them when they are asked for.

    Raises
    ------
    ValueError
        If `train` is empty or `batch_size` not positive.
    """
    check_positive_int(batch_size, "batch_size")
    if len(train) == 0:
        raise ValueError("there is no training cell; lower the validation fraction")
    train = np.asarray(train, dtype=np.int64)
    if shuffle is not None and shuffle.window * shuffle.world < len(train):
        return WindowedPlan(train, batch_size, seed=seed, epoch=epoch, shuffle=shuffle)
    order = _generator(seed, epoch).permutation(train)
    return np.array_split(order, _n_batches(len(order), batch_size))


@final
class WindowedPlan(Sequence[np.ndarray]):
    """The batches of an epoch of cells on disk, made window by window: see `epoch_plan`.

    The cells are cut into blocks, the first of which has a random size, so that blocks end elsewhere in each epoch. The
    blocks are permuted. Each window takes the next of them, as many as make a whole number of batches, deals them to
    the ranks, and permutes the cells of each.

    Parameters
    ----------
    rank
        Whose share of each batch to give; None for whole batches.
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
        self._ends = np.cumsum(least + (np.arange(n_batches) < longer))  # as `np.array_split` cuts
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
        """The same plan, giving only a rank's share of each batch."""
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
        # what array_split will cut each batch into, ranks x batches
        world = self.shuffle.world
        shares = sizes // world + (np.arange(world)[:, None] < sizes % world)
        rng = _generator(self._seed, self._epoch, 1 + window)  # numpy takes (epoch, 0) for (epoch)
        dealt = []
        for part, share in zip(np.split(cells, np.cumsum(shares.sum(1))[:-1]), shares, strict=True):
            dealt.append(np.split(rng.permutation(part), np.cumsum(share)[:-1]))
        return [np.concatenate(pieces) for pieces in zip(*dealt, strict=True)]

    def _cells(self, begin: int, end: int) -> Int[np.ndarray, "_"]:
        """From one place to another in the sequence of blocks."""
        first, last = np.searchsorted(self._filled, [begin, end - 1], side="right")
        starts, stops = self._starts[first : last + 1].copy(), self._stops[first : last + 1].copy()
        starts[0] += begin - (self._filled[first] - (stops[0] - starts[0]))
        stops[-1] -= self._filled[last] - end
        return np.concatenate([self._train[a:b] for a, b in zip(starts, stops, strict=True)])


def share_of(plan: Batches, rank: int, world: int) -> Batches:
    """A rank's cells of each batch of a plan; a share may be empty."""
    if isinstance(plan, WindowedPlan):
        return plan.of_rank(rank)
    return [np.array_split(batch, world)[rank] for batch in plan]


def _n_batches(n_cells: int, batch_size: int) -> int:
    return max(1, round(n_cells / batch_size))


def _generator(seed: int, *stream: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=stream)))


def chunks(n: int, size: int) -> list[Int[np.ndarray, " cells"]]:
    """Consecutive positions 0 .. n - 1 in pieces of at most `size`, for inference.

    Raises
    ------
    ValueError
        If `size` is not positive.
    """
    check_positive_int(size, "size")
    return [np.arange(start, min(start + size, n), dtype=np.int64) for start in range(0, n, size)]
