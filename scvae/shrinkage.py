"""Many estimates of one kind, judged together: which of them differ from what is typical, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import ndtr

SMALLEST = (
    0.2  # standard deviation of the narrowest prior of a change, in nats; narrower ones pass for no change at all
)
RATIO = math.sqrt(2.0)  # of the standard deviations of neighbouring priors
UNCHANGED_WEIGHT = 0.15  # pseudo-observations of "unchanged", as a share of the estimates: see `shrink`
ROUNDS, CENTRING_ROUNDS, TOLERANCE = 500, 100, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior:
    """What `shrink` makes of each estimate.

    Parameters
    ----------
    mean, sd
        Posterior mean and standard deviation of the change from the centre.
    error_probability
        Posterior probability that the change is not beyond the threshold in the direction that is more probable: the
        local false sign rate (Stephens 2017, equation 12) where the threshold is 0.
    centre
        The change that counts as none.
    unchanged
        Estimated share of the estimates without any change.
    """

    mean: Float[np.ndarray, " estimates"]
    sd: Float[np.ndarray, " estimates"]
    error_probability: Float[np.ndarray, " estimates"]
    centre: float
    unchanged: float


def shrink(
    estimate: Float[np.ndarray, " estimates"], error: Float[np.ndarray, " estimates"], *, threshold: float = 0.0
) -> Posterior:
    """Adaptive shrinkage (Stephens 2017, "False discovery rates: a new deal").

    estimate ~ N(centre + change, error^2), and change is 0 or drawn from a mixture of N(0, s^2) on a grid of s. Centre
    and weights of the mixture maximise the likelihood of all estimates, by EM. As in that paper the share of no change
    is pulled upwards by pseudo-observations, since a change much smaller than its error cannot be told from none:
    weights that only fit best put the false discoveries above what they are said to be.

    Parameters
    ----------
    estimate, error
        Estimates and their standard errors, of at least one thing.
    threshold
        Changes up to this size, either way, do not count.
    """
    centre = _weighted_median(estimate, error)
    reach = 2.0 * math.sqrt(max(float(np.max((estimate - centre) ** 2 - error**2)), 0.0))  # as in Stephens 2017
    n_widths = 1 + max(0, math.ceil(math.log(max(reach, SMALLEST) / SMALLEST, RATIO)))
    width = np.concatenate([[0.0], SMALLEST * RATIO ** np.arange(n_widths)])
    total = error[:, None] ** 2 + width**2
    pseudo = np.zeros(len(width))
    pseudo[0] = UNCHANGED_WEIGHT * len(estimate)
    weight = np.concatenate([[0.5], np.full(n_widths, 0.5 / n_widths)])
    for turn in range(ROUNDS):
        if turn <= CENTRING_ROUNDS:
            log_density = -0.5 * ((estimate - centre)[:, None] ** 2 / total + np.log(total))
            density = np.exp(log_density - log_density.max(1, keepdims=True))
        share = density * weight
        share /= share.sum(1, keepdims=True)
        before, weight = weight, share.sum(0) + pseudo
        weight /= weight.sum()
        if turn < CENTRING_ROUNDS:
            pull = share / total
            centre = float((pull * estimate[:, None]).sum() / pull.sum())
        elif np.abs(weight - before).max() < TOLERANCE:
            break
    share = density * weight
    share /= share.sum(1, keepdims=True)
    return _posterior(estimate - centre, error, width, share, threshold, centre)


def _posterior(
    change: Float[np.ndarray, " estimates"],
    error: Float[np.ndarray, " estimates"],
    width: Float[np.ndarray, " widths"],
    share: Float[np.ndarray, "estimates widths"],
    threshold: float,
    centre: float,
) -> Posterior:
    """Moments and tails of the mixture of normals that each change follows given its estimate."""
    trust = width[1:] ** 2 / (error[:, None] ** 2 + width[1:] ** 2)
    mean, sd = trust * change[:, None], np.sqrt(trust) * error[:, None]
    changed = share[:, 1:]
    above = (changed * ndtr((mean - threshold) / sd)).sum(1)
    below = (changed * ndtr((-threshold - mean) / sd)).sum(1)
    average = (changed * mean).sum(1)
    return Posterior(
        mean=average,
        sd=np.sqrt(np.maximum((changed * (sd**2 + mean**2)).sum(1) - average**2, 0.0)),
        error_probability=np.clip(1.0 - np.maximum(above, below), 0.0, 1.0),
        centre=centre,
        unchanged=float(share[:, 0].mean()),
    )


def bayesian_fdr(error_probability: Float[np.ndarray, " estimates"]) -> Float[np.ndarray, " estimates"]:
    """Expected share of false discoveries among this estimate and all that are at least as certain.

    The running mean of the sorted error probabilities (Käll et al. 2008; the q-value of Stephens 2017).
    """
    order = np.argsort(error_probability, kind="stable")
    running = np.empty(len(order))
    running[order] = np.cumsum(error_probability[order]) / np.arange(1, len(order) + 1)
    return running


def _weighted_median(values: Float[np.ndarray, " n"], error: Float[np.ndarray, " n"]) -> float:
    order = np.argsort(values, kind="stable")
    precision = np.cumsum(error[order] ** -2.0)
    return float(values[order[np.searchsorted(precision, 0.5 * precision[-1])]])
