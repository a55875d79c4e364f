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


class Pairs(NamedTuple):
    """Tells the kernel by its type that the steps have the consistency term."""


class NoPairs(NamedTuple):
    """Tells the kernel by its type that the steps have no consistency term."""


# The fields of a job, which holds all that the steps need. Kernels get its address: tuples of arrays would be taken
# apart and put together again in every function, which took most of the time of compiling.
SIZES = (
    "width", "n_latent", "n_genes",  # units of a hidden layer, latent dimensions, genes
    "n_covariates", "n_conditions",  # columns of the encoder's covariates and of the decoder's conditions
    "n_features", "n_logits",  # columns of the decoder's output and of the output layers'
    "n_encoder", "n_decoder",  # hidden layers
    "n_theta",  # groups of cells with their own dispersions
    "n_small",  # parameters that do not belong to genes; they come first
    "has_norm",  # whether layers are normalised
    "block",  # cells of a piece
    "one_pair_in",  # the consistency term uses one pair of cells in this many; 0 for none
    "n_steps", "steps_before",  # steps to make, and those that Adam has made before
    "most_cells",  # of a step
    "dense",  # whether the encoder gets a dense block
    "n_labels",  # of the label term; 0 for none
)  # fmt: skip
PLACES = (  # where parameters begin in the flat arrays; after the small ones come bias, theta, genes and output
    "covariates_place", "mean_place", "mean_bias_place", "log_variance_place", "log_variance_bias_place",
    "labels_place", "labels_bias_place", "bias_place", "theta_place", "genes_place", "output_place",
)  # fmt: skip
INT64S = (
    # layers x 4: places of weight and bias, and of those of the normalisation; the first weights are at `genes_place`
    "encoder", "decoder",
    "starts",  # steps + 1: the first cell of each step
    "indptr", "group",  # start of each row; row of the dispersions of each cell
    "labels",  # label of each cell, -1 for none; empty without the label term
    "room_at", "pairs_at",  # `sections_of_room` for a block of cells, and for its pairs
)  # fmt: skip
INT32S = ("indices",)
FLOAT64S = (
    "log_probability", "kl",  # of each cell of a step
    "statistics",  # steps x 3: log-likelihood and KL per cell, and 1 if the step was skipped, else 0
)  # fmt: skip
FLOAT32S = (
    "values", "gradients", "means", "squares",  # parameters, their gradients and the moments of Adam
    "dials",  # steps x 3: beta, learning rate, weight of the consistency term
    "counts",  # the stored counts of all cells
    "library", "scale", "covariates", "conditions", "noise",  # of each cell; `scale` multiplies counts before log1p
    "log_counts", "dense_rows",  # the encoder's input at the stored counts, and as a dense block
    "logits", "features", "of_first",  # of each cell of a step; gradient of the first layer's output
    "expected", "of_expected",  # of each pair of the consistency term: input and gradient of the first layer's output
    "of_small", "of_bias", "of_theta",  # gradients of each piece
    "centres",  # means of the dispersions
    "rooms",  # of all threads
)  # fmt: skip
FACTORS = (  # see `model.optimizer.Group`
    "feature_scale", "theta_rate", "theta_decay", "output_rate", "output_decay", "label_weight",
)  # fmt: skip
ARRAYS = {name: dtype for names, dtype in ((INT64S, np.int64), (INT32S, np.int32), (FLOAT64S, np.float64),
                                           (FLOAT32S, np.float32)) for name in names}  # fmt: skip
JOB = np.dtype([*((name, np.int64) for name in (*SIZES, *PLACES, *ARRAYS)), *((name, np.float32) for name in FACTORS)])

# sections of the room of a thread for the layers of a block of cells; the first four are for all layers of the encoder,
# and the same of the decoder begins at DECODED
ACTIVE, NORMED, INVERSE_SD, INPUT, DECODED = range(5)
MEAN, LOG_VARIANCE, RAW, OF_LATENT, OF_VARIANCE, OF_FEATURES, OF_WIDTH, OF_OTHER, WEIGHT = range(8, 17)
ROWS_OF_HEAD, OF_LABELS = 17, 18  # not the pairs'
PAIR_COVARIATES, PAIR_CONDITIONS, PAIR_LOGITS, END = range(19, 23)  # the pairs' alone
ROWS_IN_HEAD = 4  # rows of genes that the kernels of the heads need as room
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
        lengths[[ROWS_OF_HEAD, OF_LABELS]] = ROWS_IN_HEAD * sizes["n_genes"], sizes["n_labels"]
    return np.array([0, *np.cumsum(-(-lengths // ALIGNED) * ALIGNED), n])


def room_for_head(kind: type, n_levels: int, n_genes: int) -> Any:
    """A head of this kind with room for its tables, for `n_levels` groups of cells."""
    if kind in {PoissonHead, BernoulliHead}:
        return kind(np.empty((1, 0), np.float32))
    flat, deep = (n_levels, n_genes), (n_levels, TABLE, n_genes)
    return kind(*(np.empty(shape, np.float32) for shape in (flat, flat, deep, deep)))


def room_for_steps(sizes: Mapping[str, int], n_stored: int, n_threads: int) -> dict[str, NDArray[Any]]:
    """The arrays of a job that the kernel fills, for `n_stored` counts in all steps."""
    n, genes, block = sizes["most_cells"], sizes["n_genes"], sizes["block"]
    pieces, every = -(-n // block), sizes["one_pair_in"]
    pairs = 2 * n // every + 4 if every else 0
    room_at = sections_of_room(block, sizes, of_pairs=False)
    pairs_at = sections_of_room(2 * block // every + 4 if every else 0, sizes, of_pairs=True)
    lengths = {
        "log_counts": n_stored,
        "dense_rows": n * genes if sizes["dense"] else 0,
        "logits": n * sizes["n_logits"],
        "features": n * sizes["n_features"],
        "of_first": n * sizes["width"],
        "expected": pairs * genes,
        "of_expected": pairs * sizes["width"],
        "of_small": pieces * sizes["n_small"],
        "of_bias": pieces * sizes["n_logits"],
        "of_theta": pieces * sizes["n_theta"] * genes,
        "centres": sizes["n_theta"],
        "rooms": n_threads * int(room_at[END] + pairs_at[END]),
    }
    return {
        "room_at": room_at,
        "pairs_at": pairs_at,
        "log_probability": np.empty(n),
        "kl": np.empty(n),
        "statistics": np.empty((sizes["n_steps"], 3)),
        **{name: torch.empty(length).numpy() for name, length in lengths.items()},
    }
