"""Arguments of the compiled kernels that belong together; nothing here needs numba.

The type of a head tells a kernel which distribution to compute, so that each is compiled when it is first used.
"""

from __future__ import annotations

from collections.abc import Sequence
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


class ZeroInflatedHead(NamedTuple):
    """As `NegativeBinomialHead`; the second half of the logits are those of the zero inflation."""

    theta: Any
    inverse_theta: Any
    logs: Any
    drops: Any


class PoissonHead(NamedTuple):
    """Stands for a head without dispersions; `theta` is empty."""

    theta: Any


class BernoulliHead(NamedTuple):
    """Stands for a head without dispersions; `theta` is empty."""

    theta: Any


class Shape(NamedTuple):
    """Sizes of the network, all int.

    width, n_latent, n_genes
        Units of a hidden layer, latent dimensions, genes.
    n_covariates, n_conditions
        Columns of the encoder's covariates and of the decoder's conditions.
    n_features
        Columns of the decoder's output.
    has_norm
        Whether layers are normalised.
    block
        Cells of a piece.
    one_pair_in
        The consistency term uses one pair of cells in this many; 0 for none.
    """

    width: int
    n_latent: int
    n_genes: int
    n_covariates: int
    n_conditions: int
    n_features: int
    has_norm: bool
    block: int
    one_pair_in: int


class PairedShape(NamedTuple):
    """As `Shape`, for steps with the consistency term."""

    width: int
    n_latent: int
    n_genes: int
    n_covariates: int
    n_conditions: int
    n_features: int
    has_norm: bool
    block: int
    one_pair_in: int


class Places(NamedTuple):
    """Where parameters begin in the flat arrays.

    encoder, decoder
        int64, layers x 4: weight and bias, and those of the normalisation. The first layer of the encoder has its
        weights at `genes`.
    covariates, mean, mean_bias, log_variance, log_variance_bias, bias
        Those of the layers with these names; `bias` is the output layer's.
    theta
        log inverse dispersions.
    genes, output
        Weights of the encoder's first and the head's output layer.
    n_small
        Number of parameters that do not belong to genes; they come first. Then come bias, theta, genes, output.
    """

    encoder: Any
    decoder: Any
    covariates: int
    mean: int
    mean_bias: int
    log_variance: int
    log_variance_bias: int
    bias: int
    theta: int
    genes: int
    output: int
    n_small: int


class Groups(NamedTuple):
    """Learning rates, relative to that of the network, and decays (see `scvae.model.optimizer.Group`), all float32."""

    theta_rate: Any
    theta_decay: Any
    output_rate: Any
    output_decay: Any


class State(NamedTuple):
    """Parameters, their gradients and the moments of Adam, each in one flat float32 array."""

    values: Any
    gradients: Any
    means: Any
    squares: Any


# Sections of flat arrays: kernels that take few arrays compile in a fraction of the time.
LIBRARY, SCALE, COVARIATES, CONDITIONS, NOISE = range(5)
VALUES, DENSE, LOGITS, FEATURES, OF_FIRST, EXPECTED, OF_EXPECTED, SMALL, BIAS, THETA, CENTRES = range(11)
ALIGNED = 16  # float32 numbers; sections begin at addresses that suit BLAS


class Cells(NamedTuple):
    """The cells of all steps: rows as in `CSR`, and what else belongs to a cell.

    starts
        int64, steps + 1: the first cell of each step.
    indptr, indices, counts
        The stored counts.
    group
        int64 row of the dispersions of each cell.
    numbers, at
        float32 sections, and where each begins: library size; factor of the counts before log1p; covariates of the
        encoder; conditions of the decoder; noise of the draw.
    """

    starts: Any
    indptr: Any
    indices: Any
    counts: Any
    group: Any
    numbers: Any
    at: Any


class Buffers(NamedTuple):
    """Room for one step, which all threads use.

    numbers, at
        float32 sections, and where each begins: the encoder's input at the stored counts of all steps; the same as a
        dense block; logits; features; gradient of the first layer's output; for the pairs of the consistency term, the
        encoder's input and the gradient of the first layer's output; and gradients of each piece: of small parameters,
        bias, dispersions; means of the dispersions.
    sums
        float64: log p of each cell, then, from `most` on, their KL.
    most
        Cells of the largest step.
    n_logits
        Columns of the logits.
    dense
        Whether the encoder gets a dense block.
    """

    numbers: Any
    at: Any
    sums: Any
    most: int
    n_logits: int
    dense: bool


def sections(parts: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The parts one after another in a flat array, and where each begins."""
    starts = np.cumsum([0, *(part.size for part in parts)])
    return np.concatenate([part.ravel() for part in parts]), starts


def room_for_head(kind: type, n_levels: int, n_genes: int) -> Any:
    """A head of this kind with room for its tables, for `n_levels` groups of cells."""
    if kind in {PoissonHead, BernoulliHead}:
        return kind(np.empty((1, 0), np.float32))
    flat, deep = (n_levels, n_genes), (n_levels, TABLE, n_genes)
    return kind(*(np.empty(shape, np.float32) for shape in (flat, flat, deep, deep)))


def room_for_steps(
    shape: Shape | PairedShape, cells: Cells, head: Any, *, n_logits: int, n_small: int, dense: bool
) -> Buffers:
    """Room for the steps of `cells`."""
    most = int(np.diff(cells.starts).max())
    pieces = -(-most // shape.block)
    pairs = 2 * most // shape.one_pair_in + 4 if shape.one_pair_in else 0
    sizes = {
        VALUES: len(cells.counts),
        DENSE: most * shape.n_genes if dense else 0,
        LOGITS: most * n_logits,
        FEATURES: most * shape.n_features,
        OF_FIRST: most * shape.width,
        EXPECTED: pairs * shape.n_genes,
        OF_EXPECTED: pairs * shape.width,
        SMALL: pieces * n_small,
        BIAS: pieces * n_logits,
        THETA: pieces * head.theta.size,
        CENTRES: len(head.theta),
    }
    starts = np.cumsum([0, *(-(-size // ALIGNED) * ALIGNED for size in sizes.values())])
    return Buffers(torch.empty(int(starts[-1])).numpy(), starts, np.empty(2 * most), most, n_logits, dense)
