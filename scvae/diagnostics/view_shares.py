"""What each measurement of a cell adds to the others: nats of likelihood, and of what is known of z."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.rng import torch_generator
from ..config import ViewLikelihood
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of, posterior_of
from ..inference.views import every_view, given_views
from ..kernels.context import working_on
from ..model.latent.codebook import Rounded
from ..model.latent.posterior import DiagonalNormal
from .predictive import Predictive, predictive

DRAWS = 38  # random stream
MOST_CELLS, AT_ONCE = 1_000, 256


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ViewShare:
    """What one measurement says, over cells that have all.

    Parameters
    ----------
    name, likelihood
        Name of the measurement, and of its head.
    n_cells
        Number of cells with all measurements that were examined.
    log_likelihood
        Mean log-likelihood of its values given z from the posterior of all, in nats per cell.
    rate
        Mean KL from the prior to the posterior of this measurement alone, for each dimension of the network, in nats.
    added
        Mean KL from the posterior of the others to that of all, in nats: what it adds to the others. NaN for codes,
        between which there is no KL.
    distance
        Root mean square distance of the means by this measurement alone from those by all, relative to the spread of
        the latter over cells.
    features
        Names of its features.
    predictive
        Its values, and draws of the same cells.
    """

    name: str
    likelihood: ViewLikelihood
    n_cells: int
    log_likelihood: float
    rate: Float[np.ndarray, " latent"]
    added: float
    distance: float
    features: tuple[str, ...]
    predictive: Predictive


@torch.no_grad()
def view_shares(model: FittedModel, cells: Cells, *, beta: float | None, seed: int) -> tuple[ViewShare, ...]:
    """What each measurement says of the cells that have all; empty if the model has one, or no cell has all."""
    complete = np.flatnonzero(np.all(cells.having, axis=0))[:MOST_CELLS]
    if not model.schema.views or len(complete) == 0:
        return ()
    cells, names = cells.taken(complete), model.schema.view_names
    with working_on(model.device):
        joint = _posterior(model, cells, beta)
        likelihoods = _log_likelihoods(model, cells, joint, beta, seed)
        spread = joint.mean.var(0, unbiased=False).sum()
        shares = []
        seen = every_view(model, cells)
        for name, log_likelihood, (facing, turned) in zip(names, likelihoods, seen, strict=True):
            alone = _posterior(model, given_views(cells, model.schema, name), beta)
            others = [other for other in names if other != name]
            without = _posterior(model, given_views(cells, model.schema, others), beta)
            moved = (alone.mean - joint.mean).square().sum(1).mean()
            shares.append(
                ViewShare(
                    name=name,
                    likelihood=facing.likelihood,
                    n_cells=len(cells),
                    log_likelihood=log_likelihood,
                    rate=model.network.prior.usage(alone).mean(0).cpu().numpy(),
                    added=float(_kl(joint, without).mean()),
                    distance=float((moved / spread).sqrt()),
                    features=facing.schema.genes,
                    predictive=predictive(facing, turned, beta=beta, seed=seed),
                )
            )
    return tuple(shares)


def _posterior(model: FittedModel, cells: Cells, beta: float | None) -> DiagonalNormal:
    found = [posterior_of(model, batch, beta=beta) for _, batch in batches_of(model, cells, AT_ONCE, beta=beta)]
    whole = DiagonalNormal(torch.cat([q.mean for q in found]), torch.cat([q.log_variance for q in found]))
    return model.network.prior.inferred(whole)


def _log_likelihoods(
    model: FittedModel, cells: Cells, joint: DiagonalNormal, beta: float | None, seed: int
) -> list[float]:
    noise = torch.randn(joint.mean.shape, generator=torch_generator(seed, DRAWS)).to(joint.mean.device)
    z = joint.reparameterize(noise)
    totals = [0.0] * len(model.schema.view_names)
    for positions, batch in batches_of(model, cells, AT_ONCE, beta=beta):
        here = z[torch.from_numpy(positions).to(z.device)]
        terms = model.network.log_likelihoods(here, batch, here.new_zeros(len(here)))
        sums = (float(term.per_row.double().sum()) for term in terms)
        totals = [total + more for total, more in zip(totals, sums, strict=True)]
    return [total / len(cells) for total in totals]


def _kl(first: DiagonalNormal, second: DiagonalNormal) -> Float[Tensor, " cells"]:
    """KL(first || second) of each cell."""
    ratio = (first.log_variance - second.log_variance).exp()
    moved = (first.mean - second.mean).square() / second.variance
    if isinstance(first, Rounded):
        return torch.full_like(first.mean[:, 0], math.nan)
    kl: Tensor = 0.5 * (ratio + moved - 1.0 - ratio.log()).sum(1)
    return kl
