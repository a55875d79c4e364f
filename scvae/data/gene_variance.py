"""Selection of genes that vary more than others with a similar mean, in two passes over the counts.

The measure is that of Stuart et al. (2019, Cell 177:1888), "seurat_v3" in scanpy: counts are standardised by the
standard deviation that a smooth curve predicts from a gene's mean, and clipped at the square root of the number of
cells. The variance of these values ranks the genes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray

from .containers import Block

MOST_POINTS = 1_000  # at which the curve is computed; it is linear between them
NEIGHBOURS_AT_ONCE = 2**22  # points x genes of a chunk, 32 MB

Blocks = Callable[[], Iterator[Block]]


@dataclass(frozen=True, eq=False, slots=True)
class GeneVariances:
    """Mean and variances of each gene in each batch, batches x genes.

    Parameters
    ----------
    mean, variance
        Mean and variance of the counts; the variance has the denominator n - 1.
    standardised
        Variance of the standardised, clipped counts; 0 for a gene without variance.
    """

    mean: Float[np.ndarray, "batches genes"]
    variance: Float[np.ndarray, "batches genes"]
    standardised: Float[np.ndarray, "batches genes"]


def gene_variances(blocks: Blocks, codes: Int[np.ndarray, " cells"], n_genes: int, *, span: float) -> GeneVariances:
    """The variances of all genes, from two passes over the blocks.

    Parameters
    ----------
    blocks
        Starts a pass over the counts.
    codes
        Batch of each cell, 0, 1, ...; each batch has at least two cells.
    n_genes
        Number of columns of the blocks.
    span
        Fraction of the genes that determine the curve at each mean.
    """
    n = np.bincount(codes).astype(np.float64)[:, None]
    total, squares = _sums(blocks, codes, n_genes, None)
    mean = total / n
    variance = np.maximum(squares - n * mean**2, 0.0) / (n - 1)
    expected = np.ones_like(mean)
    for batch in range(len(n)):
        varies = variance[batch] > 0
        if varies.any():
            smooth = local_quadratic(np.log10(mean[batch, varies]), np.log10(variance[batch, varies]), span)
            expected[batch, varies] = np.sqrt(10.0**smooth)
    total, squares = _sums(blocks, codes, n_genes, expected * np.sqrt(n) + mean)
    standardised = (n * mean**2 + squares - 2 * total * mean) / ((n - 1) * expected**2)
    return GeneVariances(mean, variance, np.where(variance > 0, standardised, 0.0))


def best_genes(
    standardised: Float[np.ndarray, "batches genes"], n_top: int
) -> tuple[Bool[np.ndarray, " genes"], Float[np.ndarray, " genes"], Int[np.ndarray, " genes"]]:
    """Which genes to select, their median rank over the batches in which they are in the top, and how many those are.

    A gene that is in the top `n_top` of no batch has no rank (NaN).
    """
    rank = np.argsort(np.argsort(-standardised, axis=1, kind="stable"), axis=1).astype(np.float64)
    rank[rank >= n_top] = np.nan
    n_batches = (~np.isnan(rank)).sum(0)
    ranked = n_batches > 0
    median = np.full(rank.shape[1], np.nan)
    median[ranked] = np.nanmedian(rank[:, ranked], axis=0)
    order = np.lexsort((-n_batches, np.where(ranked, median, np.inf)))
    chosen = np.zeros(rank.shape[1], dtype=bool)
    chosen[order[:n_top]] = True
    return chosen, median, n_batches


def local_quadratic(
    x: Float[np.ndarray, " genes"], y: Float[np.ndarray, " genes"], span: float
) -> Float[np.ndarray, " genes"]:
    """A smooth curve through (x, y), evaluated at x: loess of degree 2, tricube weights (Cleveland & Devlin 1988)."""
    points = np.unique(x)
    if len(points) > MOST_POINTS:
        points = np.unique(np.quantile(x, np.linspace(0, 1, MOST_POINTS)))
    order = np.argsort(x, kind="stable")
    x_sorted, y_sorted = x[order], y[order]
    n_near = min(len(x), max(int(span * len(x)), 3))
    fitted = np.empty(len(points))
    step = max(1, NEIGHBOURS_AT_ONCE // n_near)
    for start in range(0, len(points), step):
        at = points[start : start + step]
        near = _nearest(x_sorted, at, n_near)[:, None] + np.arange(n_near)
        away, values = x_sorted[near] - at[:, None], y_sorted[near]
        reach = np.abs(away).max(1, keepdims=True) * (1 + 1e-9)
        weight = (1 - (np.abs(away) / np.where(reach > 0, reach, 1.0)) ** 3) ** 3
        powers = np.stack([np.ones_like(away), away, away**2])
        normal = np.einsum("iab,jab,ab->aij", powers, powers, weight)
        right = np.einsum("iab,ab,ab->ai", powers, values, weight)
        # with fewer than three different x nearby, the pseudoinverse gives a line or a constant
        fitted[start : start + step] = (np.linalg.pinv(normal, hermitian=True) @ right[:, :, None])[:, 0, 0]
    found: NDArray[np.float64] = np.interp(x, points, fitted)
    return found


def _nearest(x: NDArray[np.float64], at: NDArray[np.float64], n: int) -> NDArray[np.int64]:
    """The position in sorted x of the first of the n nearest neighbours of each point."""
    first = np.clip(np.searchsorted(x, at) - n, 0, len(x) - n)
    last = np.clip(np.searchsorted(x, at, side="right"), 0, len(x) - n)
    while (first < last).any():
        middle = (first + last) // 2
        # move right as long as the value that enters is nearer than the value that leaves
        right = (at - x[middle]) > (x[np.minimum(middle + n, len(x) - 1)] - at)
        moves = first < last
        first = np.where(moves & right, middle + 1, first)
        last = np.where(moves & ~right, middle, last)
    return first


def _sums(
    blocks: Blocks,
    codes: Int[np.ndarray, " cells"],
    n_genes: int,
    largest: Float[np.ndarray, "batches genes"] | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sums and sums of squares of the counts of each gene in each batch, with counts clipped at `largest`."""
    n_batches = int(codes.max()) + 1
    total, squares = np.zeros(n_batches * n_genes), np.zeros(n_batches * n_genes)
    for block in blocks():
        batch = np.repeat(codes[block.cells], np.diff(block.indptr))
        place = batch * n_genes + block.columns
        values = block.values.astype(np.float64)
        if largest is not None:
            values = np.minimum(values, largest.reshape(-1)[place])
        total += np.bincount(place, values, minlength=len(total))
        squares += np.bincount(place, values**2, minlength=len(total))
    return total.reshape(n_batches, n_genes), squares.reshape(n_batches, n_genes)
