"""Measures of which latent dimensions are used, and how many."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..common.rng import numpy_generator
from ..inference.outcome import ACTIVE_ABOVE
from ..kernels.context import working_on
from ..model.latent.discrete import Discrete
from ..model.latent.posterior import DiagonalNormal
from ..model.latent.prior import Prior, StandardNormal

NOISE, KL_DRAWS = 24, 16  # random stream and number of the draws of each cell behind a KL without a closed form
ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2: variance of the posterior mean over cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Usage:
    """Use of the latent dimensions.

    Parameters
    ----------
    kl
        KL of each dimension k from the prior, mean over cells, nats: see `scvae.model.latent.prior.Prior.usage`.
    mean_variance
        Variance over cells of the posterior mean of each dimension: 0 if all cells have the same posterior mean.
    """

    kl: Float[np.ndarray, " latent"]
    mean_variance: Float[np.ndarray, " latent"]

    @property
    def active(self) -> int:
        """Dimensions with a mean KL above 0.05 nats."""
        return int((self.kl > ACTIVE_ABOVE).sum())

    @property
    def varying(self) -> int:
        """Dimensions whose posterior mean has a variance above 0.01 (Burda et al. 2016, section 5.2)."""
        return int((self.mean_variance > ACTIVE_VARIANCE).sum())

    @property
    def effective(self) -> float:
        """Effective number of dimensions: n if n dimensions carry equal shares of the KL, 0 if the KL is 0.

        exp(-sum_k p_k log p_k) with p_k = KL_k / sum KL: the effective rank of Roy & Vetterli 2007, definition 1,
        applied to the KL per dimension.
        """
        total = float(self.kl.sum())
        if not total > 0:
            return 0.0
        share = self.kl[self.kl > 0] / total
        return float(np.exp(-(share * np.log(share)).sum()))


def kl_to_prior(
    mean: Float[np.ndarray, "cells latent"],
    log_variance: Float[np.ndarray, "cells latent"],
    prior: Prior | None = None,
) -> Float[np.ndarray, "cells latent"]:
    """KL(N(mean, variance) || prior) per cell and dimension, as `Prior.usage`, in float64.

    Without a prior, it is N(0, I) (Kingma & Welling 2014, appendix B).
    """
    prior = prior or StandardNormal(mean.shape[1])
    if isinstance(prior, Discrete):
        with torch.no_grad(), working_on(torch.device("cpu")):
            q = DiagonalNormal(torch.from_numpy(mean).double(), torch.from_numpy(log_variance).double())
            shared_out: Float[np.ndarray, "cells latent"] = copy.deepcopy(prior).cpu().double().usage(q).numpy()
        return shared_out
    centre, spread = (moment.detach().double().cpu().numpy() for moment in (prior.mean, prior.variance))
    mean, log_variance = (mean - centre) / np.sqrt(spread), log_variance - np.log(spread)
    kl: Float[np.ndarray, "cells latent"] = 0.5 * (mean**2 + np.expm1(log_variance) - log_variance)
    return kl


def mean_kl(
    mean: Float[np.ndarray, "cells latent"], log_variance: Float[np.ndarray, "cells latent"], prior: Prior, *, seed: int
) -> float:
    """KL(q(z | x) || p(z)) in nats, mean over cells: from `KL_DRAWS` draws per cell, if it has no closed form."""
    if isinstance(prior, StandardNormal | Discrete):
        return float(kl_to_prior(mean, log_variance, prior).sum(1).mean())
    q = DiagonalNormal(torch.from_numpy(mean), torch.from_numpy(log_variance))
    rng = numpy_generator(seed, NOISE)
    with torch.no_grad(), working_on(torch.device("cpu")):
        prior = copy.deepcopy(prior).cpu().double()
        draws = (q.reparameterize(torch.from_numpy(rng.standard_normal(mean.shape))) for _ in range(KL_DRAWS))
        return float(np.mean([float(prior.kl(q, z).sum(1).mean()) for z in draws]))


def usage(
    mean: Float[np.ndarray, "cells latent"],
    log_variance: Float[np.ndarray, "cells latent"],
    prior: Prior | None = None,
) -> Usage:
    """Usage of the latent dimensions by these posteriors under a prior (None for N(0, I)), in float64."""
    return Usage(kl=kl_to_prior(mean, log_variance, prior).mean(0), mean_variance=mean.var(0))
