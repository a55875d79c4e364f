"""Mutual information between cells and latent variables, and the KL of the aggregate posterior from the prior."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..common.rng import numpy_generator
from ..kernels.context import working_on
from ..model.latent.prior import Prior, StandardNormal
from .collapse import kl_to_prior

NOISE, REFERENCE = 30, 31  # streams of random numbers
REFERENCE_CELLS = 2_000
AT_ONCE = 2**20  # pairs of cells in one pass
MARGIN = 2.0  # nats below the cap: fewer than e^2 cells then look alike, too few to estimate their number
LOG_2_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Information:
    """ELBO surgery (Hoffman & Johnson 2016, section 2): mean KL(q(z | x) || p(z)) = I_q(x; z) + KL(q(z) || p(z)).

    Parameters
    ----------
    kl
        Mean KL(q(z | x) || p(z)) over the cells, exact for N(0, I). An upper bound on the mutual information.
    mutual_information, mutual_information_error
        I_q(x; z) of the empirical distribution of these cells, and its standard error. It cannot exceed `cap`; close
        to the cap, the true value is larger.
    marginal_kl, marginal_kl_error
        KL(q(z) || p(z)) with q(z) the mean of the posteriors of these cells, and its standard error. If the mutual
        information is saturated, this is an upper bound.
    upper_bound
        The smaller of `kl` and the bound that a normal q(z) with the same covariance C would give,
        1/2 log det C - 1/2 sum_k mean(log var_k): a normal has the largest entropy (Cover & Thomas 2006, theorem
        8.6.5). It has no cap, so it still distinguishes models whose mutual information is saturated.
    density_kl, density_kl_error
        The same as `marginal_kl` from the density of the cells of the fit in place of p(z); NaN without one.
    per_dimension
        I_q(x; z_k) of each dimension alone; it stays far from the cap.
    marginal_kl_per_dimension
        KL(q(z_k) || p(z_k)) of each dimension alone, with a normal p(z_k) of the prior's mean and variance.
    cap
        Logarithm of the number of cells.
    """

    kl: float
    mutual_information: float
    mutual_information_error: float
    marginal_kl: float
    marginal_kl_error: float
    density_kl: float
    density_kl_error: float
    upper_bound: float
    per_dimension: Float[np.ndarray, " latent"]
    marginal_kl_per_dimension: Float[np.ndarray, " latent"]
    cap: float

    @property
    def saturated(self) -> bool:
        """Whether the mutual information is within 2 nats of its cap, log n, and therefore underestimated."""
        return self.mutual_information > self.cap - MARGIN


def information(
    mean: Float[np.ndarray, "cells latent"],
    log_variance: Float[np.ndarray, "cells latent"],
    prior: Prior | None = None,
    *,
    seed: int,
    n_reference: int = REFERENCE_CELLS,
    n_draws: int = 1,
    density: Prior | None = None,
) -> Information:
    """Monte-Carlo estimates over the cells themselves: z ~ q(z | x_i), q(z) = mean_j q(z | x_j), j = i included.

    Parameters
    ----------
    mean, log_variance
        Moments of q(z | x) of each cell.
    prior
        p(z); None for N(0, I).
    seed
        Seed of the noise and of the sample of cells, if there are more than `n_reference`.
    n_reference
        Largest number of cells, drawn at random, that represent all: time grows with its square, memory does not.
    n_draws
        Draws of z per cell.
    density
        The density of the cells of the fit.

    Returns
    -------
    Information
        The estimates. For each draw, the two terms sum exactly to log q(z | x) / p(z), whose expectation is the KL.
    """
    order = numpy_generator(seed, REFERENCE).permutation(len(mean))[:n_reference]
    mean, log_variance = mean[order].astype(np.float64), log_variance[order].astype(np.float64)
    n, n_latent = mean.shape
    prior = prior or StandardNormal(n_latent)
    rng = numpy_generator(seed, NOISE)
    own, joint = np.empty((n_draws, n)), np.empty((n_draws, n))  # log q(z_i | x_i), log q(z_i)
    at_prior, dense = np.empty((n_draws, n)), np.full((n_draws, n), math.nan)
    centre, log_spread = (moment.detach().double().cpu().numpy() for moment in (prior.mean, prior.variance.log()))
    alone = np.empty((3, n_draws, n_latent))  # the same two and log p(z_i), for each dimension, mean over cells
    for draw in range(n_draws):
        z = mean + np.exp(0.5 * log_variance) * rng.standard_normal(mean.shape)
        each_own = _log_normal(z, mean, log_variance)
        each_prior = _log_normal(z, centre, log_spread)
        own[draw] = each_own.sum(1)
        at_prior[draw] = each_prior.sum(1) if isinstance(prior, StandardNormal) else _log_prob(prior, z)
        joint[draw], each_joint = _log_aggregate(z, mean, log_variance)
        if density is not None:
            dense[draw] = _log_prob(density, z)
        alone[:, draw] = each_own.mean(0), each_joint.mean(0), each_prior.mean(0)
    per_cell_information, per_cell_kl = (own - joint).mean(0), (joint - at_prior).mean(0)
    per_cell_density_kl = (joint - dense).mean(0)
    alone = alone.mean(1)
    exact = isinstance(prior, StandardNormal)
    kl = float(kl_to_prior(mean, log_variance, prior).sum(1).mean() if exact else (own - at_prior).mean())
    return Information(
        kl=kl,
        mutual_information=float(per_cell_information.mean()),
        mutual_information_error=_standard_error(per_cell_information),
        marginal_kl=float(per_cell_kl.mean()),
        marginal_kl_error=_standard_error(per_cell_kl),
        density_kl=float(per_cell_density_kl.mean()),
        density_kl_error=_standard_error(per_cell_density_kl),
        upper_bound=min(kl, _normal_bound(mean, log_variance)),
        per_dimension=alone[0] - alone[1],
        marginal_kl_per_dimension=alone[1] - alone[2],
        cap=math.log(n),
    )


@torch.no_grad()
def _log_prob(prior: Prior, z: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, " cells"]:
    """log p(z) in float32, on the CPU."""
    with working_on(torch.device("cpu")):
        log_p: Float[np.ndarray, " cells"] = copy.deepcopy(prior).cpu().log_prob(torch.from_numpy(z).float()).numpy()
    return log_p


def _log_normal(
    z: Float[np.ndarray, "*shape"], mean: Float[np.ndarray, "..."], log_variance: Float[np.ndarray, "..."]
) -> Float[np.ndarray, "*shape"]:
    log_density: Float[np.ndarray, "*shape"] = -0.5 * (
        (z - mean) ** 2 * np.exp(-log_variance) + log_variance + LOG_2_PI
    )
    return log_density


def _log_aggregate(
    z: Float[np.ndarray, "cells latent"],
    mean: Float[np.ndarray, "cells latent"],
    log_variance: Float[np.ndarray, "cells latent"],
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " latent"]]:
    """log q(z_i) of all dimensions together and log q(z_ik) of each one, with q the mean of the n posteriors."""
    n, n_latent = mean.shape
    together, alone = np.empty(n), np.empty((n, n_latent))
    for start in range(0, n, size := max(1, AT_ONCE // n)):
        rows = slice(start, start + size)
        total = np.zeros((len(z[rows]), n))
        for k in range(n_latent):
            pairs = _log_normal(z[rows, k, None], mean[:, k], log_variance[:, k])
            total += pairs
            alone[rows, k] = _log_mean_exp(pairs)
        together[rows] = _log_mean_exp(total)
    return together, alone


def _log_mean_exp(rows: Float[np.ndarray, "rows columns"]) -> Float[np.ndarray, " rows"]:
    highest = rows.max(1)
    mean: Float[np.ndarray, " rows"] = highest + np.log(np.exp(rows - highest[:, None]).mean(1))
    return mean


def _normal_bound(mean: Float[np.ndarray, "cells latent"], log_variance: Float[np.ndarray, "cells latent"]) -> float:
    covariance = np.cov(mean, rowvar=False, bias=True).reshape(mean.shape[1], -1)
    covariance = covariance + np.diag(np.exp(log_variance).mean(0))
    return 0.5 * float(np.linalg.slogdet(covariance)[1] - log_variance.mean(0).sum())


def _standard_error(values: Float[np.ndarray, " cells"]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
