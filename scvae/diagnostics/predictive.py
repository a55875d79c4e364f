"""Posterior-predictive checks: whether cells drawn from the model look like the observed cells."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.rng import torch_generator
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of
from ..kernels.context import working_on
from ..likelihoods.base import dense

REPLICATE = 34  # stream of random numbers
AT_ONCE = 2**19  # cells x genes in one pass
N_REPLICATES = 19  # gives 20 equally likely ranks, so a 90 % interval leaves out one at either end
EXPRESSED_ABOVE = 0.5  # predicted count; below it nearly all values are 0, and any model that predicts 0 is calibrated


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Predictive:
    """Observed cells, and draws x' ~ p(x | z), z ~ q(z | x) for the same cells.

    The draws depend on the cell that they are compared with, so these checks are lenient: a model that fails them fails
    clearly (Gelman, Meng & Stern 1996; Bayarri & Berger 2000 on the double use of the data).

    Parameters
    ----------
    mean, drawn_mean
        Mean of each gene over the cells.
    variance, drawn_variance
        Variance of each gene over the cells.
    zero_fraction, drawn_zero_fraction
        Fraction of the cells in which each gene is 0.
    library_coverage
        Fraction of the cells whose sum over genes is in the 90 % interval of the sums of their draws.
    coverage
        Fraction of the values in the 90 % interval of their draws. Ranks among ties are drawn at random, so that a
        calibrated model of counts also has 0.9 (Czado, Gneiting & Held 2009, section 2). For counts, only values with
        a predicted mean above 0.5 are used.
    ranks
        Fraction of these values at each of the 20 ranks among their 19 draws: 0.05 each if the model is calibrated.
    n_cells
        Number of cells checked.
    """

    mean: Float[np.ndarray, " genes"]
    drawn_mean: Float[np.ndarray, " genes"]
    variance: Float[np.ndarray, " genes"]
    drawn_variance: Float[np.ndarray, " genes"]
    zero_fraction: Float[np.ndarray, " genes"]
    drawn_zero_fraction: Float[np.ndarray, " genes"]
    library_coverage: float
    coverage: float
    ranks: Float[np.ndarray, " places"]
    n_cells: int

    @property
    def variance_ratio(self) -> float:
        """Median over genes of observed over drawn variance, among genes where both are positive; NaN if none is."""
        both = (self.variance > 0) & (self.drawn_variance > 0)
        return float(np.median(self.variance[both] / self.drawn_variance[both])) if both.any() else float("nan")

    @property
    def zero_error(self) -> float:
        """Mean absolute difference over genes between observed and drawn zero fractions."""
        return float(np.abs(self.zero_fraction - self.drawn_zero_fraction).mean())


def predictive(model: FittedModel, cells: Cells, *, beta: float | None = None, seed: int) -> Predictive:
    """Draws `N_REPLICATES` tables of these cells and compares them; keeps only sums per gene and per cell.

    Parameters
    ----------
    model
        A fitted model.
    cells
        A sample of cells, each with at least one count.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    seed
        Seed of the draws.
    """
    n_genes, n = cells.rows.n_genes, len(cells)
    observed, drawn = _Moments(n_genes), _Moments(n_genes)
    places = torch.zeros(N_REPLICATES + 1, dtype=torch.int64)
    library_rank = np.empty(n)
    with torch.no_grad(), working_on(model.device):
        for i, (positions, batch) in enumerate(batches_of(model, cells, max(1, AT_ONCE // n_genes), beta=beta)):
            generator = torch_generator(seed, REPLICATE, i, device=model.device)
            posterior, x = model.network.encode(batch), dense(batch.x)
            observed.add(x)
            value, library = _Rank(x), _Rank(x.sum(1))
            expected = torch.zeros_like(x)
            for _ in range(N_REPLICATES):
                noise = torch.randn(posterior.mean.shape, generator=generator, device=model.device)
                features = model.network.features(posterior.reparameterize(noise), batch)
                law = model.network.likelihood.distribution(features, batch)
                draw = law.sample(generator)
                drawn.add(draw)
                expected += law.mean / N_REPLICATES
                value.compare(draw)
                library.compare(draw.sum(1))
            judged = torch.ones_like(x) > 0 if model.schema.kind == "real" else expected > EXPRESSED_ABOVE
            ranks = value.place(generator)[judged].long()
            places += torch.bincount(ranks, minlength=N_REPLICATES + 1).cpu()
            library_rank[positions] = library.place(generator).cpu().numpy()
    share = places.double().numpy() / max(int(places.sum()), 1)
    return Predictive(
        mean=observed.mean,
        drawn_mean=drawn.mean,
        variance=observed.variance,
        drawn_variance=drawn.variance,
        zero_fraction=observed.zero_fraction,
        drawn_zero_fraction=drawn.zero_fraction,
        library_coverage=float(((library_rank > 0) & (library_rank < N_REPLICATES)).mean()),
        coverage=float(share[1:-1].sum()) if places.sum() else float("nan"),
        ranks=share,
        n_cells=n,
    )


class _Rank:
    """Ranks of values among draws that are added one at a time."""

    def __init__(self, values: Float[Tensor, "*shape"]) -> None:
        self.values = values
        self.below, self.ties = torch.zeros_like(values), torch.zeros_like(values)

    def compare(self, draw: Float[Tensor, "*shape"]) -> None:
        self.below += draw < self.values
        self.ties += draw == self.values

    def place(self, generator: torch.Generator) -> Float[Tensor, "*shape"]:
        """Rank of each value, from 0 to the number of draws; ties are broken at random."""
        uniform = torch.rand(self.ties.shape, generator=generator, device=self.ties.device)
        return self.below + torch.minimum(torch.floor(uniform * (self.ties + 1.0)), self.ties)


class _Moments:
    """Running sums per gene over tables of cells x genes."""

    def __init__(self, n_genes: int) -> None:
        self.n = 0
        self.total, self.square, self.zeros = np.zeros(n_genes), np.zeros(n_genes), np.zeros(n_genes)

    def add(self, table: Float[Tensor, "cells genes"]) -> None:
        values = table.double()
        self.n += len(values)
        self.total += values.sum(0).cpu().numpy()
        self.square += values.square().sum(0).cpu().numpy()
        self.zeros += (values == 0).sum(0).cpu().numpy()

    @property
    def mean(self) -> Float[np.ndarray, " genes"]:
        return self.total / self.n

    @property
    def variance(self) -> Float[np.ndarray, " genes"]:
        spread: Float[np.ndarray, " genes"] = (self.square / self.n - self.mean**2).clip(0.0)
        return spread

    @property
    def zero_fraction(self) -> Float[np.ndarray, " genes"]:
        return self.zeros / self.n
