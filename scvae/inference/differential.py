"""Mean expression of each gene in groups of cells and the contrasts between groups, in one pass over the cells.

The mean of a group is the model's mean proportion plus the mean of the residuals,

    mean_g = 1/n sum_i rho_ig + sum_i w_ig (x_ig - l_i rho_ig) / sum_i w_ig l_i,

the difference estimator of survey sampling (Särndal et al. 1992, "Model assisted survey sampling", section 6.3). An
error of the decoder in rho shifts the two terms by the same amount in opposite directions and cancels to first order.
Neither smoothing by the decoder nor noise that it has fitted therefore appears as a difference. The weights w_ig = 1 /
(1 + l_i m_g / theta_g), with m_g the mean proportion over all compared cells, are those of a negative binomial. They do
not use the cell's own rho, which depends on the cell's counts. The variance is that of the terms over the cells: the
cells are a sample, so variation between the cells of a group counts as noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..data.batches import Batch, chunks
from ..data.cells import Cells
from ..kernels.context import working_on
from ..likelihoods.base import dense
from ..likelihoods.counts import NegativeBinomial, ZeroInflated
from .contrast import TINY, Contrast, Side, contrast
from .fitted import FittedModel
from .posterior import batches_of, posterior_of

AT_ONCE = 2**19  # cells x genes in one pass: more do not fit a cache
LEAST_CELLS = 2  # of a group in a batch, to estimate a variance


@dataclass(slots=True, kw_only=True, eq=False)
class Sums:
    """Sums over a set of cells; the sums of disjoint sets can be added. Each array has one number per gene."""

    n_cells: int
    library: float
    counts: Float[np.ndarray, " genes"]
    squares: Float[np.ndarray, " genes"]
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
            squares=self.squares + sign * other.squares,
            detected=self.detected + sign * other.detected,
            parts=self.parts + sign * other.parts,
        )


@dataclass(slots=True, eq=False)
class Strata:
    """The sums of one side in each batch, and the weights of the batches."""

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
    """Compares groups of cells, within batches if the model has batches.

    Each batch with at least two cells of both sides has the weight n_a n_b / (n_a + n_b) on both sides, so that a
    batch effect cancels however the groups are distributed over batches.

    Parameters
    ----------
    model
        A model of counts.
    cells
        The cells. Those with a library size of 0 are left out.
    codes
        Group of each cell; -1 for a cell to leave out.
    pairs
        Group and reference of each comparison; None stands for all cells of the other groups.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.

    Returns
    -------
    list
        One contrast for each pair; None if no batch has two cells of both sides.
    """
    codes = np.where(cells.library > 0, codes, -1)
    used = np.flatnonzero(codes >= 0)
    typical = mean_proportion(cells, used)
    batch = cells.group
    sides = [(Strata(), Strata()) for _ in pairs]
    for which in np.unique(batch[used]):
        here = used[batch[used] == which]
        groups = {int(k): sums_of(model, cells, here[codes[here] == k], typical, beta) for k in np.unique(codes[here])}
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
    return [contrast(side_of(a), side_of(b)) if a.sums else None for a, b in sides]


def mean_proportion(cells: Cells, used: Int[np.ndarray, " used"]) -> Float[Tensor, " genes"]:
    """Mean proportion of each gene over the compared cells, weighted by library size."""
    total = torch.zeros(cells.rows.n_genes, dtype=torch.float64)
    for part in chunks(len(used), max(1, AT_ONCE // cells.rows.n_genes)):
        total += dense(cells.batch(used[part]).x).sum(0)
    return (total / float(cells.library[used].sum(dtype=np.float64))).float()


@torch.no_grad()
def sums_of(
    model: FittedModel,
    cells: Cells,
    chosen: Int[np.ndarray, " chosen"],
    typical: Float[Tensor, " genes"],
    beta: float | None,
) -> Sums:
    """Sums over the chosen cells, in chunks."""
    n_genes = cells.rows.n_genes
    (counts, squares, detected), parts = np.zeros((3, n_genes)), np.zeros((11, n_genes))
    size = max(1, AT_ONCE // n_genes)
    with working_on(model.device):
        typical = typical.to(model.device)
        for part in chunks(len(chosen), size):
            for _, batch in batches_of(model, cells.taken(chosen[part]), size, beta=beta):
                x = dense(batch.x)
                counts += x.sum(0, dtype=torch.float64).cpu().numpy()
                squares += (x * x).sum(0, dtype=torch.float64).cpu().numpy()
                detected += (x > 0).sum(0).cpu().numpy()
                parts += _parts(model, batch, x, typical, beta).double().cpu().numpy()
    return Sums(
        n_cells=len(chosen),
        library=float(cells.library[chosen].sum(dtype=np.float64)),
        counts=counts,
        squares=squares,
        detected=detected,
        parts=parts,
    )


def _parts(
    model: FittedModel,
    batch: Batch,
    x: Float[Tensor, "cells genes"],
    typical: Float[Tensor, " genes"],
    beta: float | None,
) -> Float[Tensor, "parts genes"]:
    """The terms that `_moments` needs, summed over the cells of a chunk."""
    network, library = model.network, batch.library[:, None]
    z = posterior_of(model, batch, beta=beta).mean
    features = network.features(z, batch)
    table = network.likelihood.distribution(features, network.whole(features, batch))
    mean = table.mean
    proportion = mean / library
    weight = _weights(network.likelihood, batch, typical)
    exposure = weight * library
    residual = weight * (x - mean)

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(0)  # einsum would use one matrix product per gene, which is ten times slower

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
    """1 / (1 + l m / theta): weight of a count in a cell with library size l, for a gene with mean proportion m."""
    head = likelihood.base if isinstance(likelihood, ZeroInflated) else likelihood
    if not isinstance(head, NegativeBinomial):
        return torch.ones(len(batch), len(typical), device=typical.device)
    log_theta, group = head.dispersions(batch)
    ratio = typical * torch.exp(-log_theta)
    spread = batch.library[:, None] * (ratio if len(ratio) == 1 else ratio[group])
    return 1.0 / (1.0 + spread)


def _moments(sums: Sums) -> Float[np.ndarray, "moments genes"]:
    """Rows: mean, mean of the model, variance of the mean by cells and by model, and the Poisson part of the last."""
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


def side_of(strata: Strata) -> Side:
    """The side as the weighted mean over its batches."""
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
        squares=np.sum([sums.squares for sums in strata.sums], 0),
        detected=np.sum([sums.detected for sums in strata.sums], 0) / n,
        n_cells=n,
        mean_library=sum(sums.library for sums in strata.sums) / n,
    )


def tested(contrast: Contrast, least: float) -> Bool[np.ndarray, " genes"]:
    """Genes with at least `least` counts in both sides together."""
    enough: Bool[np.ndarray, " genes"] = contrast.group.counts + contrast.reference.counts >= least
    return enough
