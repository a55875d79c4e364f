"""Which cells go together: the split, the order of an epoch, and the record that reaches the model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .._checks import check_positive_int, check_probability
from ..beta_range import BetaRange
from ..kernels.csr import CSR
from ..kernels.selection import SelectedRows

SMALLEST_SPLIT = 10  # with fewer cells than this none can be spared for validation


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """Some cells, as the model takes them.

    Parameters
    ----------
    x
        Raw values, cells x modelled genes: sparse for counts and binary data, sparse or dense for real values; float32,
        but for rows selected from a store on a device.
    library
        float32 sum over the modelled genes, or the user's size factor; 1 for real values.
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

    x: CSR | SelectedRows | Float[Tensor, "cells genes"]
    library: Float[Tensor, " cells"]
    codes: Int[Tensor, "cells categoricals"]
    numeric: Float[Tensor, "cells numerics"]
    has_batch: bool = False
    log_beta: Float[Tensor, " cells"] | None = None
    knots: Float[Tensor, "cells knots"] | None = None
    missing: Int[Tensor, " missing"] | None = None

    def __len__(self) -> int:
        return self.library.shape[0]

    def to(self, device: torch.device) -> Batch:
        """The same cells on another device."""
        return Batch(
            self.x.to(device),
            self.library.to(device),
            self.codes.to(device),
            self.numeric.to(device),
            self.has_batch,
            None if self.log_beta is None else self.log_beta.to(device),
            None if self.knots is None else self.knots.to(device),
            None if self.missing is None else self.missing.to(device),
        )

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
    return min(max(round(n * fraction), 1), n - 1)


def split(
    n: int, fraction: float, rng: np.random.Generator
) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """Sets some cells aside for validation.

    Parameters
    ----------
    n
        Number of cells.
    fraction
        Share of the cells to set aside, in [0, 1).
    rng
        Draws the cells.

    Returns
    -------
    tuple
        Positions of the training and of the validation cells, sorted int64. round(n * fraction) cells are set aside,
        at least one when `fraction` > 0 and n >= 10, none when n < 10; one training cell always remains.

    Raises
    ------
    ValueError
        If `n` is not positive or `fraction` not in [0, 1).
    """
    aside = n_aside(n, fraction)
    order = rng.permutation(n).astype(np.int64)
    return np.sort(order[aside:]), np.sort(order[:aside])


def epoch_plan(
    train: Int[np.ndarray, " train"], batch_size: int, *, seed: int, epoch: int
) -> list[Int[np.ndarray, " cells"]]:
    """The batches of one epoch: a pure function of its arguments, so that a resumed run meets the same batches.

    Parameters
    ----------
    train
        Positions of the training cells.
    batch_size
        Wished number of cells in a batch. The cells are cut into round(n / batch_size) nearly equal parts, so batches
        differ by at most one cell and no tiny last batch (which would upset batch statistics) can occur.
    seed, epoch
        Not negative; together they decide the order.

    Returns
    -------
    list
        Positions of each batch.

    Raises
    ------
    ValueError
        If `train` is empty or `batch_size` not positive.
    """
    check_positive_int(batch_size, "batch_size")
    if len(train) == 0:
        raise ValueError("there is no training cell; lower the validation fraction")
    sequence = np.random.SeedSequence(seed, spawn_key=(epoch,))
    order = np.random.Generator(np.random.Philox(sequence)).permutation(np.asarray(train, dtype=np.int64))
    return np.array_split(order, max(1, round(len(order) / batch_size)))


def chunks(n: int, size: int) -> list[Int[np.ndarray, " cells"]]:
    """Consecutive positions 0 .. n - 1 in pieces of at most `size`, for inference.

    Raises
    ------
    ValueError
        If `size` is not positive.
    """
    check_positive_int(size, "size")
    return [np.arange(start, min(start + size, n), dtype=np.int64) for start in range(0, n, size)]
