"""The mean expression of each gene in groups of cells, and how far two groups are apart; one pass over the cells.

The mean of a group is the model's mean proportion plus the mean of what the model leaves unexplained,

    mean_g = 1/n sum_i rho_ig + sum_i w_ig (x_ig - l_i rho_ig) / sum_i w_ig l_i,

the difference estimator of survey sampling (Särndal et al. 1992, "Model assisted survey sampling", section 6.3). An
error of the decoder in rho shifts both terms by the same amount, up or down, so that it cancels to first order: neither
what the decoder smooths away nor what it has fitted by chance is taken for a difference. The weights w_ig = 1 / (1 +
l_i m_g / theta_g), with m_g the mean proportion over all cells compared, are those of a negative binomial; they do not
depend on the cell's own rho, which has seen the cell's counts. The variance is that of the terms over the cells: these
are a sample, so what differs between cells of a group counts as noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.special import xlogy
from torch import Tensor

from .data.batches import Batch, chunks
from .data.intake import Cells
from .fitted import FittedModel
from .inference import batches_of
from .kernels.context import working_on
from .likelihoods.base import dense
from .likelihoods.counts import NegativeBinomial, ZeroInflated

AT_ONCE = 2**19  # cells x genes of one pass: more do not fit a cache
TINY = 1e-30  # far below any proportion; its square is a number still
MODEL_SPREAD = 0.5  # standard deviation of a gene's overdispersion around the model's, as a share of it
LACK_ROUNDS = 5  # of weights and what they weigh, for what the model lacks
LEAST_CELLS = 2  # of a group in a batch, to say how much its cells differ
NEARLY_POISSON = 1e-9
NEWTON_STEPS = 30
HALF = 0.5  # count added to both groups where logarithms are taken


@dataclass(slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over some cells; those of two sets of cells add up to those of both. Each array has one number a gene."""

    n_cells: int
    library: float
    counts: Float[np.ndarray, " genes"]
    detected: Float[np.ndarray, " genes"]
    parts: Float[np.ndarray, "parts genes"]

    def __add__(self, other: Sums) -> Sums:
        return self._joined(other, 1)

    def __sub__(self, other: Sums) -> Sums:
        return self._joined(other, -1)

    def _joined(self, other: Sums, sign: int) -> Sums:
        return Sums(
            n_cells=self.n_cells + sign * other.n_cells,
            library=self.library + sign * other.library,
            counts=self.counts + sign * other.counts,
            detected=self.detected + sign * other.detected,
            parts=self.parts + sign * other.parts,
        )


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
    counts, detected
        Counts, and share of the cells with one.
    n_cells, mean_library
        Cells, and their mean library size.
    """

    mean: Float[np.ndarray, " genes"]
    model_mean: Float[np.ndarray, " genes"]
    variance: Float[np.ndarray, " genes"]
    model_variance: Float[np.ndarray, " genes"]
    unit: Float[np.ndarray, " genes"]
    counts: Float[np.ndarray, " genes"]
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


@dataclass(slots=True, eq=False)
class _Strata:
    """Pieces of one side, a batch at a time, with the weight that the batch has."""

    weights: list[float] = field(default_factory=list)
    sums: list[Sums] = field(default_factory=list)


def contrasts(
    model: FittedModel,
    cells: Cells,
    codes: Int[np.ndarray, " cells"],
    pairs: Sequence[tuple[int, int | None]],
    *,
    beta: float | None = None,
) -> list[Contrast | None]:
    """Compares groups of cells, each within batches where the model has them.

    Each batch that holds at least two cells of both sides counts with n_a n_b / (n_a + n_b), for both sides alike, so
    that a batch effect cancels however the groups are spread over batches.

    Parameters
    ----------
    model
        A model of counts.
    cells
        The cells. Those with a library of 0 are left out.
    codes
        Group of each cell; -1 for a cell to leave out.
    pairs
        Group and reference of each comparison; None is all cells of other groups.
    beta
        One of the β's of a model of many; None as in `FittedModel.beta_of`.

    Returns
    -------
    list
        One for each pair; None if no batch holds two cells of both sides.
    """
    codes = np.where(cells.library > 0, codes, -1)
    used = np.flatnonzero(codes >= 0)
    typical = _mean_proportion(cells, used)
    batch = cells.codes[:, 0] if cells.has_batch else np.zeros(len(cells), np.int64)
    sides = [(_Strata(), _Strata()) for _ in pairs]
    for which in np.unique(batch[used]):
        here = used[batch[used] == which]
        groups = {int(k): _sums(model, cells, here[codes[here] == k], typical, beta) for k in np.unique(codes[here])}
        everything = sum(list(groups.values())[1:], start=next(iter(groups.values())))
        for (group, reference), (first, second) in zip(pairs, sides, strict=True):
            if group not in groups or (reference is not None and reference not in groups):
                continue
            a = groups[group]
            b = everything - a if reference is None else groups[reference]
            if min(a.n_cells, b.n_cells) < LEAST_CELLS:
                continue
            weight = a.n_cells * b.n_cells / (a.n_cells + b.n_cells)
            for side, sums in ((first, a), (second, b)):
                side.weights.append(weight)
                side.sums.append(sums)
    return [_contrast(_side(a), _side(b)) if a.sums else None for a, b in sides]


def _mean_proportion(cells: Cells, used: Int[np.ndarray, " used"]) -> Float[Tensor, " genes"]:
    """Mean proportion of each gene over the cells compared, weighted by library size."""
    total = torch.zeros(cells.rows.n_genes, dtype=torch.float64)
    for part in chunks(len(used), max(1, AT_ONCE // cells.rows.n_genes)):
        total += dense(cells.batch(used[part]).x).sum(0)
    return (total / float(cells.library[used].sum(dtype=np.float64))).float()


@torch.no_grad()
def _sums(
    model: FittedModel,
    cells: Cells,
    chosen: Int[np.ndarray, " chosen"],
    typical: Float[Tensor, " genes"],
    beta: float | None,
) -> Sums:
    """Sums over the chosen cells, in chunks."""
    n_genes = cells.rows.n_genes
    counts, detected, parts = np.zeros(n_genes), np.zeros(n_genes), np.zeros((11, n_genes))
    size = max(1, AT_ONCE // n_genes)
    with working_on(model.device):
        typical = typical.to(model.device)
        for part in chunks(len(chosen), size):
            for _, batch in batches_of(model, cells.taken(chosen[part]), size, beta=beta):
                x = dense(batch.x)
                counts += x.sum(0, dtype=torch.float64).cpu().numpy()
                detected += (x > 0).sum(0).cpu().numpy()
                parts += _parts(model, batch, x, typical).double().cpu().numpy()
    return Sums(
        n_cells=len(chosen),
        library=float(cells.library[chosen].sum(dtype=np.float64)),
        counts=counts,
        detected=detected,
        parts=parts,
    )


def _parts(
    model: FittedModel, batch: Batch, x: Float[Tensor, "cells genes"], typical: Float[Tensor, " genes"]
) -> Float[Tensor, "parts genes"]:
    """What `_moments` needs, summed over the cells of a chunk."""
    network, library = model.network, batch.library[:, None]
    table = network.likelihood.distribution(network.features(network.encode(batch).mean, batch), batch)
    mean = table.mean
    proportion = mean / library
    weight = _weights(network.likelihood, batch, typical)
    exposure = weight * library
    residual = weight * (x - mean)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(0)  # einsum would make a product of matrices for each gene: ten times slower

    return torch.stack(
        [
            proportion.sum(0),
            dot(proportion, proportion),
            exposure.sum(0),
            residual.sum(0),
            dot(residual, residual),
            dot(residual, exposure),
            dot(exposure, exposure),
            dot(proportion, residual),
            dot(proportion, exposure),
            dot(exposure, weight * proportion),
            dot(weight * weight, table.variance),
        ]
    )


def _weights(
    likelihood: torch.nn.Module, batch: Batch, typical: Float[Tensor, " genes"]
) -> Float[Tensor, "cells genes"]:
    """1 / (1 + l m / theta): how much a count of a cell with this library says, for a gene of this mean proportion."""
    head = likelihood.base if isinstance(likelihood, ZeroInflated) else likelihood
    if not isinstance(head, NegativeBinomial):
        return torch.ones(len(batch), len(typical), device=typical.device)
    log_theta, group = head.dispersions(batch)
    ratio = typical * torch.exp(-log_theta)
    spread = batch.library[:, None] * (ratio if len(ratio) == 1 else ratio[group])
    return 1.0 / (1.0 + spread)


def _moments(sums: Sums) -> Float[np.ndarray, "moments genes"]:
    """Mean, the model's mean, both variances of the mean, and the Poisson part of the latter, in a row each."""
    n = sums.n_cells
    rho, rho2, exposure, residual, residual2, crossed, exposure2, rho_residual, rho_exposure, poisson, law = sums.parts
    model_mean, exposure = rho / n, np.maximum(exposure, TINY)
    left = residual / exposure
    between = np.maximum(rho2 / n - model_mean**2, 0.0) / n
    noise = (residual2 - 2.0 * left * crossed + left**2 * exposure2) / exposure**2
    both = (rho_residual - model_mean * residual - left * (rho_exposure - model_mean * exposure)) / (n * exposure)
    variance = np.maximum(between + noise + 2.0 * both, 0.0) * n / (n - 1)
    return np.stack(
        [model_mean + left, model_mean, variance, between + law / exposure**2, poisson / exposure**2],
    )


def _side(strata: _Strata) -> Side:
    """The weighted mean over batches."""
    share = np.array(strata.weights) / sum(strata.weights)
    moments = np.stack([_moments(sums) for sums in strata.sums])
    means = np.einsum("b,bmg->mg", share, moments[:, :2])
    variances = np.einsum("b,bmg->mg", share**2, moments[:, 2:])
    n = sum(sums.n_cells for sums in strata.sums)
    return Side(
        mean=np.maximum(means[0], 0.0),
        model_mean=means[1],
        variance=variances[0],
        model_variance=variances[1],
        unit=variances[2] / np.maximum(means[1], TINY),
        counts=np.sum([sums.counts for sums in strata.sums], 0),
        detected=np.sum([sums.detected for sums in strata.sums], 0) / n,
        n_cells=n,
        mean_library=sum(sums.library for sums in strata.sums) / n,
    )


def _contrast(a: Side, b: Side) -> Contrast:
    """Likelihood ratio of two means against one, each seen as one negative binomial count with its own exposure.

    A mean M with variance unit M + s M^2 is seen as a count M / unit, which is negative binomial with variance
    mean + s mean^2: that keeps the asymmetry of few counts, and 0 counts are no special case.
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
    return Contrast(estimate=estimate, error=np.maximum(error, np.sqrt(np.finfo(float).eps)), group=a, reference=b)


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


def tested(contrast: Contrast, least: float) -> Bool[np.ndarray, " genes"]:
    """Genes with at least so many counts in both sides together."""
    enough: Bool[np.ndarray, " genes"] = contrast.group.counts + contrast.reference.counts >= least
    return enough
