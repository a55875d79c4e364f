"""Arguments of the compiled kernels that belong together; nothing here needs numba.

The type of a head tells a kernel which distribution to compute, so that each is compiled when it is first used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

TABLE = 8  # up to this count, log p comes from a table, because for each gene it depends on theta alone


class NegativeBinomialHead(NamedTuple):
    """Tables of `count_tables` for each group of cells and gene."""

    theta: Any
    inverse_theta: Any
    logs: Any
    drops: Any


class ZeroInflatedHead(NegativeBinomialHead):
    """As `NegativeBinomialHead`; the second half of the logits are those of the zero inflation."""


class PoissonHead(NamedTuple):
    """Stands for a head without dispersions; `theta` is empty."""

    theta: Any


class BernoulliHead(PoissonHead):
    """As `PoissonHead`, for binary data."""


class GaussianHead(NamedTuple):
    """Tables for each gene, of real values that are standardised over cells.

    With the scale s of `scvae.likelihoods.continuous.Gaussian` relative to the spread: precision = 1 / s^2, share =
    d log s / d log_free_scale, and constant = -log density at the mean, in the units of the data.
    """

    precision: Any
    share: Any
    constant: Any
    log_spread: Any
    floor: Any


class JointHead(NamedTuple):
    """The head of one measurement among counts and real values: the type is the same for all, so that they make a row.

    The tables of the other kind are empty.
    """

    counts: NegativeBinomialHead
    real: GaussianHead
    is_real: bool


class Pairs(NamedTuple):
    """Tells the kernel by its type that the steps have the consistency term."""


class NoPairs(NamedTuple):
    """Tells the kernel by its type that the steps have no consistency term."""


class NormalPrior(NamedTuple):
    """Tells the kernel by its type that the prior is N(0, I)."""


class MixturePrior(NamedTuple):
    """Tells the kernel by its type that the prior is a mixture of normals, whose parameters come first."""


class Kind(NamedTuple):
    """What the type of steps says, so that the kernel has no part that they do not need."""

    pairs: Pairs | NoPairs
    prior: NormalPrior | MixturePrior


# The fields of a job, which holds all that the steps need. Kernels get its address: tuples of arrays would be taken
# apart and put together again in every function, which took most of the time of compiling. There is a job for each
# measurement of the cells; they differ in the fields that are named here as those of a measurement.
SIZES = (
    "width", "n_latent", "n_genes",  # units of a hidden layer, latent dimensions, genes (of a measurement)
    "n_covariates", "n_conditions",  # columns of the encoder's covariates and of the decoder's conditions
    "n_own",  # the first covariates, which do not follow from the conditions
    "n_features", "n_logits",  # columns of the decoder's output, and of the output layers' (of a measurement)
    "n_encoder", "n_decoder",  # hidden layers
    "n_theta",  # groups of cells with their own dispersions (of a measurement)
    "n_small",  # parameters that do not belong to genes; they come first
    "has_norm",  # whether layers are normalised
    "block",  # cells of a piece
    "one_pair_in",  # the consistency term uses one pair of cells in this many; 0 for none
    "n_steps", "steps_before",  # steps to make, and those that Adam has made before
    "most_cells",  # of a step
    "dense",  # whether the encoder gets a dense block (of a measurement)
    "n_labels",  # names of the label term; 0 for none
    "n_components",  # of a prior that is a mixture; 0 for N(0, I)
)  # fmt: skip
PLACES = (  # where parameters begin in the flat arrays
    "covariates_place", "mean_place", "mean_bias_place", "log_variance_place", "log_variance_bias_place",
    "labels_place", "labels_bias_place",
    "bias_place", "theta_place", "genes_place", "output_place",  # after the small ones, for each measurement
)  # fmt: skip
INT64S = (
    # layers x 4: places of weight and bias, and of those of the normalisation; the first weights are at `genes_place`
    "encoder", "decoder",
    "starts",  # steps + 1: the first cell of each step
    "indptr", "group",  # start of each row; row of the dispersions of each cell (of a measurement)
    "labels",  # code of the label of each cell, -1 for none; empty without the label term
    "room_at", "pairs_at",  # `sections_of_room` for a block of cells, and for its pairs
)  # fmt: skip
INT32S = ("indices",)  # of a measurement
FLOAT64S = (
    "log_probability",  # of each cell of a step (of a measurement)
    "kl",  # of each cell of a step
    "statistics",  # steps x 3: log-likelihood and KL per cell, and 1 if the step was skipped, else 0
)  # fmt: skip
FLOAT32S = (
    "values", "gradients", "means", "squares",  # parameters, their gradients and the moments of Adam
    "members",  # codes x names: 1 for the names that a label stands for, else 0
    "dials",  # steps x 3: beta, learning rate, weight of the consistency term
    "covariates", "conditions", "noise",  # of each cell
    "features", "of_first",  # of each cell of a step; gradient of the first layer's output
    "of_expected",  # gradient of the first layer's output of each pair of the consistency term
    "of_small",  # gradients of each piece
    # of a measurement:
    "counts",  # the stored counts of all cells
    "present",  # of each cell: whether it has the measurement (1 or 0)
    "library", "scale",  # of each cell; `scale` multiplies counts before log1p, and is 0 without the measurement
    "log_counts", "dense_rows",  # the encoder's input at the stored counts, and as a dense block
    "logits",  # of each cell of a step
    "expected",  # input of each pair of the consistency term
    "of_bias", "of_theta",  # gradients of each piece
    "centres",  # means of the dispersions
    # of all:
    "rooms",  # of all threads
)  # fmt: skip
FACTORS = (  # see `model.optimizer.Group`
    "feature_scale", "label_weight", "prior_rate",
    "term_weight", "theta_rate", "theta_decay", "output_rate", "output_decay",  # of a measurement
)  # fmt: skip
ARRAYS = {name: dtype for names, dtype in ((INT64S, np.int64), (INT32S, np.int32), (FLOAT64S, np.float64),
                                           (FLOAT32S, np.float32)) for name in names}  # fmt: skip
JOB = np.dtype([*((name, np.int64) for name in (*SIZES, *PLACES, *ARRAYS)), *((name, np.float32) for name in FACTORS)])

# sections of the room of a thread for the layers of a block of cells; the first four are for all layers of the encoder,
# and the same of the decoder begins at DECODED
ACTIVE, NORMED, INVERSE_SD, INPUT, DECODED = range(5)
MEAN, LOG_VARIANCE, RAW, OF_LATENT, OF_VARIANCE, OF_FEATURES, OF_WIDTH, OF_OTHER, WEIGHT = range(8, 17)
ROWS_OF_HEAD, OF_LABELS, MIXTURE = range(17, 20)  # not the pairs'
PAIR_COVARIATES, PAIR_CONDITIONS, PAIR_LOGITS, END = range(20, 24)  # the pairs' alone
ROWS_IN_HEAD = 4  # rows of genes that the kernels of the heads need as room
NO_SPREAD = np.empty(0, np.float32)
ALIGNED = 16  # float32 numbers; sections begin at addresses that suit BLAS


def job_of(numbers: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> NDArray[Any]:
    """An array of one job. The arrays must be alive while it is done.

    Raises
    ------
    TypeError
        If an array has not the type or the layout that the kernel expects.
    """
    for name, array in arrays.items():
        if array.dtype != ARRAYS[name] or not array.flags.c_contiguous:
            raise TypeError(f"{name} is {array.dtype}; the kernel expects contiguous {np.dtype(ARRAYS[name])}")
    fields = {**numbers, **{name: array.ctypes.data for name, array in arrays.items()}}
    return np.array([tuple(fields[name] for name in JOB.names or ())], JOB)


def sections_of_room(n: int, sizes: Mapping[str, int], *, of_pairs: bool) -> NDArray[np.int64]:
    """Where the sections of the room for `n` cells begin; at END the size of the room, and after it `n`."""
    width, latent, wide = sizes["width"], sizes["n_latent"], max(sizes["width"], sizes["n_latent"])
    lengths = np.zeros(END, np.int64)
    for first, layers in ((ACTIVE, sizes["n_encoder"]), (DECODED, sizes["n_decoder"])):
        lengths[first + ACTIVE] = lengths[first + NORMED] = layers * n * width
        lengths[first + INVERSE_SD] = layers * n
    lengths[DECODED + INPUT] = max(sizes["n_decoder"], 1) * n * (wide + sizes["n_conditions"])
    lengths[[MEAN, LOG_VARIANCE, RAW, OF_LATENT, OF_VARIANCE]] = n * latent
    lengths[[OF_FEATURES, OF_WIDTH, WEIGHT]] = n * sizes["n_features"], n * width, n
    lengths[OF_OTHER] = n * (wide + sizes["n_conditions"])
    if of_pairs:
        lengths[[PAIR_COVARIATES, PAIR_CONDITIONS]] = n * sizes["n_covariates"], n * sizes["n_conditions"]
        lengths[PAIR_LOGITS] = n * sizes["n_logits"]
    else:
        lengths[[ROWS_OF_HEAD, OF_LABELS]] = ROWS_IN_HEAD * sizes["n_genes"], 2 * sizes["n_labels"]
        lengths[MIXTURE] = sizes["n_components"] * (latent + 2)
    return np.array([0, *np.cumsum(-(-lengths // ALIGNED) * ALIGNED), n])


def room_for_head(kind: type, n_levels: int, n_genes: int) -> Any:
    """A head of this kind with room for its tables, for `n_levels` groups of cells."""
    if kind in {PoissonHead, BernoulliHead}:
        return kind(np.empty((1, 0), np.float32))
    flat, deep = (n_levels, n_genes), (n_levels, TABLE, n_genes)
    return kind(*(np.empty(shape, np.float32) for shape in (flat, flat, deep, deep)))


def room_for_joint_head(
    n_levels: int, n_genes: int, floor: float = 0.0, log_spread: NDArray[np.float32] = NO_SPREAD
) -> JointHead:
    """As `room_for_head`, for counts with some levels; or for real values, with least scales and logs of spreads."""
    precision, share, constant = (np.empty_like(log_spread) for _ in range(3))
    counts = room_for_head(NegativeBinomialHead, n_levels, n_genes)
    real = GaussianHead(precision, share, constant, log_spread, np.float32(floor))
    return JointHead(counts, real, log_spread.size > 0)


def room_for_steps(sizes: Mapping[str, int], n_threads: int) -> dict[str, NDArray[Any]]:
    """The arrays that the kernel fills, but for those of a measurement; `sizes` has those of the largest one."""
    n, block = sizes["most_cells"], sizes["block"]
    room_at = sections_of_room(block, sizes, of_pairs=False)
    pairs_at = sections_of_room(_n_pairs(block, sizes), sizes, of_pairs=True)
    lengths = {
        "features": n * sizes["n_features"],
        "of_first": n * sizes["width"],
        "of_expected": _n_pairs(n, sizes) * sizes["width"],
        "of_small": -(-n // block) * sizes["n_small"],
        "rooms": n_threads * int(room_at[END] + pairs_at[END]),
    }
    return {
        "room_at": room_at,
        "pairs_at": pairs_at,
        "kl": np.empty(n),
        "statistics": np.empty((sizes["n_steps"], 3)),
        **_empty(lengths),
    }


def room_for_measurement(sizes: Mapping[str, int], n_stored: int) -> dict[str, NDArray[Any]]:
    """The arrays of a measurement that the kernel fills, for `n_stored` counts in all steps."""
    n, genes, pieces = sizes["most_cells"], sizes["n_genes"], -(-sizes["most_cells"] // sizes["block"])
    lengths = {
        "log_counts": n_stored,
        "dense_rows": n * genes if sizes["dense"] else 0,
        "logits": n * sizes["n_logits"],
        "expected": _n_pairs(n, sizes) * genes,
        "of_bias": pieces * sizes["n_logits"],
        "of_theta": pieces * sizes["n_theta"] * genes,
        "centres": sizes["n_theta"],
    }
    return {"log_probability": np.empty(n), **_empty(lengths)}


def _n_pairs(n: int, sizes: Mapping[str, int]) -> int:
    """Most rows that the consistency term has for `n` cells."""
    every = sizes["one_pair_in"]
    return 2 * n // every + 4 if every else 0


def _empty(lengths: Mapping[str, int]) -> dict[str, NDArray[Any]]:
    return {name: torch.empty(length).numpy() for name, length in lengths.items()}
