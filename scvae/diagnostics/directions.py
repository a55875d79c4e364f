"""What the decoder does to each gene along each latent dimension."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..data.intake import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of, posterior_moments
from ..kernels.context import working_on
from ..likelihoods.binary import BernoulliTable
from ..likelihoods.continuous import GaussianTable
from ..likelihoods.counts import ZeroInflatedTable
from ..model.vae import VAE

AT_ONCE = 2**20  # cells x genes of one pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Effects of each latent dimension on each gene, in the units of `natural`.

    Parameters
    ----------
    slope
        Derivative along the dimension, per unit of z, at the posterior mean of a cell; mean over cells.
    traversal
        Mean change when a cell is moved from the dimension's low to its high end, all others as they are.
    sd
        Standard deviation of the posterior means over cells.
    low, high
        The two ends: quantiles of the posterior means.
    """

    slope: Float[np.ndarray, "genes latent"]
    traversal: Float[np.ndarray, "genes latent"]
    sd: Float[np.ndarray, " latent"]
    low: Float[np.ndarray, " latent"]
    high: Float[np.ndarray, " latent"]


def natural(network: VAE, z: Float[Tensor, "cells latent"], batch: Batch) -> Float[Tensor, "cells genes"]:
    """What a gene's mean is a function of, as for `Likelihood.loadings`.

    For counts the log of the proportion, less its mean over genes; for binary data the logit, for real values the mean.
    """
    table = network.likelihood.distribution(network.features(z, batch), batch)
    if isinstance(table, BernoulliTable):
        return table.logit
    if isinstance(table, GaussianTable):
        return table.mean
    law = table.base if isinstance(table, ZeroInflatedTable) else table
    log_mean: Tensor = law.log_mean  # type: ignore[attr-defined]
    return log_mean - log_mean.mean(1, keepdim=True)


@torch.no_grad()
def directions(
    model: FittedModel, cells: Cells, *, quantiles: tuple[float, float], beta: float | None = None
) -> Directions:
    """Slopes, by forward-mode differentiation, and traversals of every latent dimension.

    Parameters
    ----------
    model
        A fitted model.
    cells
        The cells to average over, each with at least one count.
    quantiles
        Where a dimension begins and ends, as shares of the cells.
    beta
        One of the β's of a model of many; None as in `FittedModel.beta_of`.
    """
    centres, _ = posterior_moments(model, cells, beta=beta)
    low, high = np.quantile(centres, quantiles, axis=0)
    network, n_genes = model.network, cells.rows.n_genes
    slope = np.zeros((n_genes, model.n_latent))
    traversal = np.zeros_like(slope)
    with working_on(model.device):
        for positions, batch in batches_of(model, cells, max(1, AT_ONCE // n_genes), beta=beta):
            z = torch.from_numpy(centres[positions]).to(model.device)
            for k in range(model.n_latent):
                slope[:, k] += _slope(network, z, batch, k).sum(0, dtype=torch.float64).cpu().numpy()
                ends = (natural(network, _moved(z, k, float(end[k])), batch) for end in (high, low))
                traversal[:, k] += (next(ends) - next(ends)).sum(0, dtype=torch.float64).cpu().numpy()
    return Directions(
        slope=slope / len(cells), traversal=traversal / len(cells), sd=centres.std(0, dtype=float), low=low, high=high
    )


def _slope(network: VAE, z: Float[Tensor, "cells latent"], batch: Batch, k: int) -> Float[Tensor, "cells genes"]:
    direction = torch.zeros_like(z)
    direction[:, k] = 1.0
    with warnings.catch_warnings():
        # torch compiles rules of its own at the first call, in a way that it warns of
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        slope: Tensor = torch.func.jvp(lambda at: natural(network, at, batch), (z,), (direction,))[1]
    return slope


def _moved(z: Float[Tensor, "cells latent"], k: int, to: float) -> Float[Tensor, "cells latent"]:
    moved = z.clone()
    moved[:, k] = to
    return moved
