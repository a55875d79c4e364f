"""Effects of each latent dimension on each gene in the decoder."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of, posterior_moments
from ..kernels.context import working_on
from ..likelihoods.binary import BernoulliTable
from ..likelihoods.continuous import GaussianTable
from ..likelihoods.counts import ZeroInflatedTable
from ..likelihoods.mixture import BackgroundTable
from ..model.vae import VAE
from .jacobian import slope

AT_ONCE = 2**20  # cells x genes in one pass


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Directions:
    """Effects of each latent dimension, as written to `obsm`, on each gene, in the units of `natural`.

    Parameters
    ----------
    slope
        Derivative along the dimension, per unit, at the posterior mean of each cell; mean over cells.
    traversal
        Mean change when a cell moves from the low to the high end of the dimension, with the others fixed.
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
    """Predicted expression on the scale of `Likelihood.loadings`.

    For counts: the log proportion, centred over genes. For binary data: the logit. For real values: the mean.
    """
    table = network.likelihood.distribution(network.features(z, batch), batch)
    if isinstance(table, BernoulliTable):
        return table.logit
    if isinstance(table, GaussianTable):
        return table.mean
    if isinstance(table, BackgroundTable):  # whose means are counts, not proportions
        return table.mean.log()
    law = table.base if isinstance(table, ZeroInflatedTable) else table
    log_mean: Tensor = law.log_mean  # type: ignore[attr-defined]
    return log_mean - log_mean.mean(1, keepdim=True)


@torch.no_grad()
def directions(
    model: FittedModel, cells: Cells, *, quantiles: tuple[float, float], beta: float | None = None
) -> Directions:
    """Slopes (by forward-mode differentiation) and traversals of all latent dimensions.

    Parameters
    ----------
    model
        A fitted model.
    cells
        The cells to average over, each with at least one count.
    quantiles
        The low and high ends of a dimension, as quantiles over the cells.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    """
    means, _ = posterior_moments(model, cells, beta=beta)
    centres = model.written(means)
    low, high = np.quantile(centres, quantiles, axis=0)
    network, n_genes = model.network, cells.rows.n_genes
    steps = torch.from_numpy(np.eye(model.n_latent) if model.metric is None else model.metric.inverse)
    steps = steps.to(model.device, torch.float32)
    slopes = np.zeros((n_genes, model.n_latent))
    traversal = np.zeros_like(slopes)
    with working_on(model.device):
        for positions, batch in batches_of(model, cells, max(1, AT_ONCE // n_genes), beta=beta):
            z = torch.from_numpy(means[positions]).to(model.device)
            for k, step in enumerate(steps):
                slopes[:, k] += _slope(network, z, batch, step).sum(0, dtype=torch.float64).cpu().numpy()
                away = (torch.from_numpy(end[k] - centres[positions, k]).to(z) for end in (high, low))
                ends = (natural(network, z + there[:, None] * step, batch) for there in away)
                traversal[:, k] += (next(ends) - next(ends)).sum(0, dtype=torch.float64).cpu().numpy()
    return Directions(
        slope=slopes / len(cells), traversal=traversal / len(cells), sd=centres.std(0, dtype=float), low=low, high=high
    )


def _slope(
    network: VAE, z: Float[Tensor, "cells latent"], batch: Batch, step: Float[Tensor, " latent"]
) -> Float[Tensor, "cells genes"]:
    return slope(lambda at: natural(network, at, batch), z, step.expand_as(z).contiguous())
