"""The log fold change of each gene between two groups of cells, and its standard error."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import xlogy

TINY = 1e-30  # far below any proportion, but its square does not underflow to 0
MODEL_SPREAD = 0.5  # standard deviation of a gene's overdispersion around the model's, as a fraction of the latter
LACK_ROUNDS = 5  # alternations between the weights and the overdispersion that the model lacks
NEARLY_POISSON = 1e-9
NEWTON_STEPS = 30
HALF = 0.5  # count added to both groups before logarithms are taken
FEW_CELLS = 10  # if fewer cells hold a gene's counts, the counts are treated as clusters
LEAST_RATIO = 0.01  # lower bound of the likelihood ratio by which an estimate is divided
MOST_OF_ALL = 0.99  # upper bound of the fraction of all counts in one gene


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Side:
    """One side of a comparison, averaged over batches.

    Parameters
    ----------
    mean, model_mean
        Mean proportion, and the mean proportion that the model predicts.
    variance, model_variance
        Variance of this mean, estimated from the cells and from the model.
    unit
        Variance of this mean for Poisson counts, per unit of the mean.
    counts, squares, detected
        Sum of the counts, sum of their squares, and fraction of the cells with a count.
    n_cells, mean_library
        Number of cells, and their mean library size.
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
    """Log fold change of a group over its reference (natural logarithm), before any shrinkage.

    Parameters
    ----------
    estimate, error
        Estimate, and a standard error such that (estimate / error)^2 is the likelihood-ratio statistic for no change.
    group, reference
        The two sides.
    """

    estimate: Float[np.ndarray, " genes"]
    error: Float[np.ndarray, " genes"]
    group: Side
    reference: Side


def contrast(a: Side, b: Side) -> Contrast:
    """Likelihood ratio of two means against one; each mean is treated as one negative binomial count with an exposure.

    A mean M with variance unit M + s M^2 is treated as a count M / unit, which is negative binomial with variance
    mean + s mean^2. This keeps the asymmetry of small counts, and 0 counts are no special case.

    The error is then enlarged for two reasons. The centre that `shrink` finds is that of the other genes, so a gene
    with a fraction p of all counts is judged by its odds, whose logarithm has the error divided by 1 - p. And counts
    in only a few cells are not independent events: see `_clustered`.
    """
    spreads = [overdispersion(side) for side in (a, b)]
    counts = [side.mean / side.unit for side in (a, b)]
    common = _common_mean(a, b, counts, spreads)
    ratio = np.zeros_like(common)
    logs, squares = [], np.zeros_like(common)
    for side, count, spread in zip((a, b), counts, spreads, strict=True):
        expected = common / side.unit
        ratio += 2.0 * (nb_log_density(count, count, spread) - nb_log_density(count, expected, spread))
        logs.append(np.log((count + HALF) / (expected + HALF)))  # stays 0 without a change, however few the counts
        squares += 1.0 / (count + HALF) + spread
    estimate = logs[0] - logs[1]
    # below a ratio of 1, the quotient tends to 0 / 0
    error = np.where(ratio > 1.0, np.abs(estimate) / np.sqrt(np.maximum(ratio, 1.0)), np.sqrt(squares))
    error = np.maximum(error, np.abs(estimate) / np.sqrt(_clustered(a, b, counts)))
    error /= 1.0 - np.minimum(common, MOST_OF_ALL)
    return Contrast(estimate=estimate, error=np.maximum(error, np.sqrt(np.finfo(float).eps)), group=a, reference=b)


def _clustered(a: Side, b: Side, counts: list[Float[np.ndarray, " genes"]]) -> Float[np.ndarray, " genes"]:
    """Upper bound on the likelihood ratio of a gene whose counts are in a few cells; infinite for all other genes.

    A cell with 300 counts of a gene that its neighbours lack is one event, not 300. If the variance grew with the
    squared mean, this cell alone would separate its group from one without such a cell. If a Poisson number of cells
    hold such clusters, the counts have variance mean * phi with phi = sum x^2 / sum x, and their likelihood ratio is
    that of Poisson counts over phi (Wedderburn 1974). The effective number of these cells is (sum x)^2 / sum x^2.
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
    """Variance of the mean beyond Poisson, over the squared mean: a compromise between the cells and the model.

    The estimate from the cells of a gene is shrunk towards that of the model. Its uncertainty is the variance of a
    variance, with the kurtosis of a negative binomial (3 + 6 / r + 1 / variance); it is weighed against the spread of
    genes around the model. This spread is 50 % of the model's overdispersion plus, estimated from all genes together,
    what the model lacks: a Poisson model, or one trained too briefly, may have almost no overdispersion.
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
    """Sampling variance of the cells' estimate of the overdispersion, if the true value is `spread`."""
    mean, n = np.maximum(side.mean, TINY), side.n_cells
    count = mean * side.mean_library
    kurtosis = 2.0 + 6.0 * n * spread + 1.0 / np.maximum(count + n * spread * count**2, TINY)
    uncertainty: Float[np.ndarray, " genes"] = (side.unit / mean + spread) ** 2 * kurtosis / (n - 1)
    return uncertainty


def _common_mean(
    a: Side, b: Side, counts: list[Float[np.ndarray, " genes"]], spreads: list[Float[np.ndarray, " genes"]]
) -> Float[np.ndarray, " genes"]:
    """The mean of both sides if they do not differ: the maximum of their joint likelihood."""
    mean = (counts[0] + counts[1]) / (1.0 / a.unit + 1.0 / b.unit)
    for _ in range(NEWTON_STEPS):
        trust = [1.0 / (1.0 + s * mean / side.unit) for side, s in zip((a, b), spreads, strict=True)]
        mean = (counts[0] * trust[0] + counts[1] * trust[1]) / (trust[0] / a.unit + trust[1] / b.unit)
    common: Float[np.ndarray, " genes"] = np.maximum(mean, TINY)
    return common


def nb_log_density(
    count: Float[np.ndarray, " genes"], mean: Float[np.ndarray, " genes"], spread: Float[np.ndarray, " genes"]
) -> Float[np.ndarray, " genes"]:
    """log NB(count; mean, variance mean + spread mean^2) without terms constant in the mean; Poisson at spread 0."""
    inflated = np.log1p(spread * mean)
    poisson = spread * mean < NEARLY_POISSON
    log_normaliser = np.where(poisson, mean, inflated / np.where(poisson, 1.0, spread))
    density: Float[np.ndarray, " genes"] = xlogy(count, mean) - count * inflated - log_normaliser
    return density
