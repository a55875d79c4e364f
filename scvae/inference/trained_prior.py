"""What results say of the prior: shares of its components in each cell, and its moments in written coordinates."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..common.rng import torch_generator
from ..data.batches import chunks
from ..kernels.context import working_on
from ..model.latent.mixture import TrainedMixture
from ..model.latent.posterior import DiagonalNormal
from ..model.latent.prior import StandardNormal
from .fitted import FittedModel

MOMENTS, DRAWS = 8, 10_000  # random stream and number of the draws behind the moments
AT_ONCE = 2**14  # cells


@torch.no_grad()
def component_shares(
    model: FittedModel, mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"]
) -> Float[np.ndarray, "cells components"] | None:
    """Shares of the components of a trained mixture in each cell, float32; None for another prior.

    Parameters
    ----------
    model
        A fitted model.
    mean, variance
        Moments of the posterior of each cell, in the coordinates of the network.
    """
    prior = model.network.prior
    if not isinstance(prior, TrainedMixture):
        return None
    # float64, so that the float32 result for a cell does not depend on the cells beside it
    prior = copy.deepcopy(prior).cpu().double()
    shares = np.empty((len(mean), len(prior.centre)), np.float32)
    with working_on(torch.device("cpu")):
        for part in chunks(len(mean), AT_ONCE):
            moments = (torch.from_numpy(values[part]).double() for values in (mean, variance))
            centre, spread = moments
            shares[part] = prior.responsibilities(DiagonalNormal(centre, spread.log())).numpy()
    return shares


def prior_in_record(model: FittedModel) -> dict[str, Any]:
    """Entries of the record: the standard deviation of the prior along each written dimension.

    For a prior other than N(0, I), which may correlate dimensions, also the mean; both are then those of draws.
    """
    if isinstance(model.network.prior, StandardNormal):
        return {"prior_sd": np.ones(model.n_latent) if model.metric is None else model.metric.scale}
    with torch.no_grad(), working_on(torch.device("cpu")):
        z = copy.deepcopy(model.network.prior).cpu().sample(DRAWS, torch_generator(model.seed, MOMENTS)).numpy()
    written = model.written(z).astype(np.float64)
    return {"prior_mean": written.mean(0), "prior_sd": written.std(0)}
