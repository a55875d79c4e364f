"""How far the mean expression of each gene is apart on two sides, and how far that may be chance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

TINY = 1e-30  # far below any proportion; its square is a number still
MODEL_SPREAD = 0.5  # standard deviation of a gene's overdispersion around the model's, as a share of it
LACK_ROUNDS = 5  # of weights and what they weigh, for what the model lacks
NEARLY_POISSON = 1e-9
NEWTON_STEPS = 30
HALF = 0.5  # count added to both groups where logarithms are taken
FEW_CELLS = 10  # cells in which a gene's counts sit, below which they count as clusters
LEAST_RATIO = 0.01  # of likelihoods, by which an estimate is divided
MOST_OF_ALL = 0.99  # of all counts, in one gene


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One side of a comparison, averaged over batches.

    Parameters
    ----------
    mean, model_mean
        Mean proportion, and the model's part of it.
    variance, model_variance
        Variance of that mean: as the cells show it, and as the model has it.
    unit
        Variance that Poisson counts alone would give it, per unit of the mean.
    counts, squares, detected
        Counts, sum of their squares over cells, and share of the cells with one.
    n_cells, mean_library
        Cells, and their mean library size.
    """

    mean: Float[np.ndarray, " genes"]
    model_mean: Float[np.ndarray, " genes"]
    variance: Float[np.ndarray, " genes"]
    model_variance: Float[np.ndarray, " genes"]
    unit: Float[np.ndarray, " genes"]
    counts: Float[np.ndarray, " genes"]
    squares: Float[np.ndarray, " genes"]
    detected: Float[np.ndarray, " genes"]
    n_cells: int
    mean_library: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contrast:
    """Log fold change of a group over its reference, natural logarithm, before any shrinkage.

    Parameters
    ----------
    estimate, error
        Estimate, and a standard error such that (estimate / error)^2 is the likelihood ratio against no change.
    group, reference
        The two sides.
    """

    estimate: Float[np.ndarray, " genes"]
    error: Float[np.ndarray, " genes"]
    group: Side
    reference: Side


def contrast(a: Side, b: Side) -> Contrast:
    """Likelihood ratio of two means against one, each seen as one negative binomial count with its own exposure.

    A mean M with variance unit M + s M^2 is seen as a count M / unit, which is negative binomial with variance
    mean + s mean^2: that keeps the asymmetry of few counts, and 0 counts are no special case.

    Two things make the error larger than this says. The centre that `shrink` finds is that of the other genes, so what
    is judged of a gene with a share p of all counts is its odds, whose logarithm has the error over 1 - p. And counts
    that sit in a few cells are no independent events: see `_clustered`.
    """
    spreads = [overdispersion(side) for side in (a, b)]
    counts = [side.mean / side.unit for side in (a, b)]
    common = _common_mean(a, b, counts, spreads)
    ratio = np.zeros_like(common)
    logs, squares = [], np.zeros_like(common)
    for side, count, spread in zip((a, b), counts, spreads, strict=True):
        expected = common / side.unit
        ratio += 2.0 * (_log_density(count, count, spread) - _log_density(count, expected, spread))
        logs.append(np.log((count + HALF) / (expected + HALF)))  # no change stays no change, however few the counts
        squares += 1.0 / (count + HALF) + spread
    estimate = logs[0] - logs[1]
    # below a ratio of 1 the quotient is 0 / 0 in the end
    error = np.where(ratio > 1.0, np.abs(estimate) / np.sqrt(np.maximum(ratio, 1.0)), np.sqrt(squares))
    error = np.maximum(error, np.abs(estimate) / np.sqrt(_clustered(a, b, counts)))
    error /= 1.0 - np.minimum(common, MOST_OF_ALL)
    return Contrast(estimate=estimate, error=np.maximum(error, np.sqrt(np.finfo(float).eps)), group=a, reference=b)


def _clustered(a: Side, b: Side, counts: list[Float[np.ndarray, " genes"]]) -> Float[np.ndarray, " genes"]:
    """The largest likelihood ratio that a gene may have whose counts sit in a few cells; infinite for all others.

    A cell with 300 counts of a gene that its neighbours lack is one event, not 300, and with a variance in proportion
    to the squared mean it would tell two groups apart of which one has none. As a Poisson number of cells that hold
    such clusters, counts have the variance mean * phi with phi = sum x^2 / sum x, and their likelihood ratio is that of
    Poisson counts over phi (Wedderburn 1974). They sit in (sum x)^2 / sum x^2 cells, so to speak.
    """
    total, squares = a.counts + b.counts, a.squares + b.squares
    phi = squares / np.maximum(total, 1.0)
    common = (counts[0] + counts[1]) / (1.0 / a.unit + 1.0 / b.unit)
    poisson = 2.0 * sum(
        xlogy(count, np.maximum(count, TINY) / np.maximum(common / side.unit, TINY)) - count + common / side.unit
        for side, count in zip((a, b), counts, strict=True)
    )
    few = total < FEW_CELLS * phi
    most: Float[np.ndarray, " genes"] = np.where(few, np.maximum(poisson / np.maximum(phi, 1.0), LEAST_RATIO), np.inf)
    return most


def overdispersion(side: Side) -> Float[np.ndarray, " genes"]:
    """Variance of the mean beyond that of Poisson counts, as a share of its square: from the cells and from the model.

    What the cells of a gene show is pulled towards what the model says by how uncertain it is: the variance of a
    variance, with the kurtosis of a negative binomial (3 + 6 / r + 1 / variance), against how far genes lie from the
    model. That is 50 % of what the model says and, as all genes together show it, what the model lacks (one of Poisson
    counts, or trained too short, may have next to no overdispersion at all).
    """
    mean, unit = np.maximum(side.mean, TINY), side.unit
    expected = np.maximum(side.model_mean, TINY)
    by_model = np.maximum(side.model_variance - unit * expected, 0.0) / expected**2
    by_cells = (side.variance - unit * mean) / mean**2
    seen = side.mean > 0
    lack, scatter = np.zeros(()), np.zeros(())
    for _ in range(LACK_ROUNDS):
        spread = (MODEL_SPREAD * by_model) ** 2 + scatter
        uncertainty = _uncertainty(side, by_model + lack)
        weight = np.where(seen, 1.0 / np.maximum(spread + uncertainty, TINY), 0.0)
        excess = np.where(seen, by_cells - by_model, 0.0)
        total = max(float(weight.sum()), TINY)
        lack = np.maximum((weight * excess).sum() / total, 0.0)
        beyond = (excess - lack) ** 2 - uncertainty - (MODEL_SPREAD * by_model) ** 2
        scatter = np.maximum((weight**2 * beyond).sum() / max(float((weight**2).sum()), TINY), 0.0)
    uncertainty = _uncertainty(side, by_model + lack)
    spread = (MODEL_SPREAD * by_model) ** 2 + scatter
    trust = np.where(seen, spread / np.maximum(spread + uncertainty, TINY), 0.0)
    moderated = np.where(seen, trust * by_cells, 0.0) + (1.0 - trust) * (by_model + lack)
    variance: Float[np.ndarray, " genes"] = np.maximum(moderated, 0.0)
    return variance


def _uncertainty(side: Side, spread: Float[np.ndarray, " genes"]) -> Float[np.ndarray, " genes"]:
    """Sampling variance of what the cells show of the overdispersion, were it this much."""
    mean, n = np.maximum(side.mean, TINY), side.n_cells
    count = mean * side.mean_library
    kurtosis = 2.0 + 6.0 * n * spread + 1.0 / np.maximum(count + n * spread * count**2, TINY)
    uncertainty: Float[np.ndarray, " genes"] = (side.unit / mean + spread) ** 2 * kurtosis / (n - 1)
    return uncertainty


def _common_mean(
    a: Side, b: Side, counts: list[Float[np.ndarray, " genes"]], spreads: list[Float[np.ndarray, " genes"]]
) -> Float[np.ndarray, " genes"]:
    """The mean that both sides would have without a difference: the maximum of their joint likelihood."""
    mean = (counts[0] + counts[1]) / (1.0 / a.unit + 1.0 / b.unit)
    for _ in range(NEWTON_STEPS):
        trust = [1.0 / (1.0 + s * mean / side.unit) for side, s in zip((a, b), spreads, strict=True)]
        mean = (counts[0] * trust[0] + counts[1] * trust[1]) / (trust[0] / a.unit + trust[1] / b.unit)
    common: Float[np.ndarray, " genes"] = np.maximum(mean, TINY)
    return common


def _log_density(
    count: Float[np.ndarray, " genes"], mean: Float[np.ndarray, " genes"], spread: Float[np.ndarray, " genes"]
) -> Float[np.ndarray, " genes"]:
    """log NB(count; mean, variance mean + spread mean^2), without what does not depend on the mean; Poisson at 0."""
    inflated = np.log1p(spread * mean)
    poisson = spread * mean < NEARLY_POISSON
    log_normaliser = np.where(poisson, mean, inflated / np.where(poisson, 1.0, spread))
    density: Float[np.ndarray, " genes"] = xlogy(count, mean) - count * inflated - log_normaliser
    return density
