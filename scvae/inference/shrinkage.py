"""Adaptive shrinkage of many estimates: which of them differ from the typical value, and by how much."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.special import log_ndtr

SMALLEST = 0.2  # nats, standard deviation of the narrowest prior of a change; narrower ones are taken as no change
RATIO = math.sqrt(2.0)  # between the standard deviations of neighbouring priors
UNCHANGED_WEIGHT = 0.3  # pseudo-observations of "unchanged", as a fraction of the estimates: see `shrink`
ROUNDS, TOLERANCE = 500, 1e-5
CENTRING_ROUNDS, BETWEEN, CENTRED = 40, 10, 1e-4  # steps of the centre, rounds of EM between them, smallest step
LOG_2, ROOT_2_PI = math.log(2.0), math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Posterior:
    """The posterior of the change behind each estimate.

    Parameters
    ----------
    mean, sd
        Posterior mean and standard deviation of the change from the centre.
    error_probability
        Posterior probability that the change does not exceed the threshold in its more probable direction; for a
        threshold of 0, the local false sign rate (Stephens 2017, equation 12).
    centre
        The value of an estimate without a change.
    unchanged
        Estimated fraction of the estimates without any change.
    prior_sd, prior_weight
        The prior: no change; then, for each sd, |N(0, sd^2)| upwards; then the same downwards.
    """

    mean: Float[np.ndarray, " estimates"]
    sd: Float[np.ndarray, " estimates"]
    error_probability: Float[np.ndarray, " estimates"]
    centre: float
    unchanged: float
    prior_sd: Float[np.ndarray, " widths"]
    prior_weight: Float[np.ndarray, " priors"]


def shrink(
    estimate: Float[np.ndarray, " estimates"], error: Float[np.ndarray, " estimates"], *, threshold: float = 0.0
) -> Posterior:
    """Adaptive shrinkage (Stephens 2017, "False discovery rates: a new deal").

    estimate ~ N(centre + change, error^2), and change is 0 or drawn from a mixture of half-normal distributions on a
    grid of scales. Upward and downward changes have separate weights, so that changes mostly in one direction do not
    move the centre. EM finds the centre and weights that maximise the likelihood of all estimates. As in that paper,
    pseudo-observations raise the fraction of no change: a change much smaller than its error cannot be distinguished
    from none, and maximum-likelihood weights would give more false discoveries than reported. If most changes go one
    way, this also pulls the centre slightly towards them (by 0.014 nats with two thirds changed, 3 in 4 upwards).

    Parameters
    ----------
    estimate, error
        Estimates and their standard errors; at least one.
    threshold
        Changes up to this size, in either direction, do not count.
    """
    centre = _weighted_median(estimate, error)
    reach = 2.0 * math.sqrt(max(float(np.max((estimate - centre) ** 2 - error**2)), 0.0))  # as in Stephens 2017
    n_widths = 1 + max(0, math.ceil(math.log(max(reach, SMALLEST) / SMALLEST, RATIO)))
    width = SMALLEST * RATIO ** np.arange(n_widths)
    weight = np.concatenate([[0.5], np.full(2 * n_widths, 0.25 / n_widths)])
    for _ in range(CENTRING_ROUNDS):
        density = _density(estimate - centre, error, width)
        for _ in range(BETWEEN):
            weight = _fitted(density, weight)
        step = _step(estimate - centre, error, width, _shares(density, weight))
        centre += step
        if abs(step) < CENTRED:
            break
    density = _density(estimate - centre, error, width)
    for _ in range(ROUNDS):
        before, weight = weight, _fitted(density, weight)
        if np.abs(weight - before).max() < TOLERANCE:
            break
    return _posterior(estimate - centre, error, width, weight, _shares(density, weight), threshold, centre)


def _density(
    change: Float[np.ndarray, " estimates"], error: Float[np.ndarray, " estimates"], width: Float[np.ndarray, " widths"]
) -> Float[np.ndarray, "estimates priors"]:
    """Density of each estimate under each prior, relative to the largest.

    For an upward half-normal of scale s: 2 N(change; 0, s^2 + error^2) Phi(change s / (error sqrt(s^2 + error^2))).
    """
    total = error[:, None] ** 2 + width**2
    tilt = change[:, None] * width / (error[:, None] * np.sqrt(total))
    half = LOG_2 - 0.5 * (change[:, None] ** 2 / total + np.log(total))
    none = -0.5 * ((change / error) ** 2 + 2.0 * np.log(error))
    log_density = np.concatenate([none[:, None], half + log_ndtr(tilt), half + log_ndtr(-tilt)], axis=1)
    density: Float[np.ndarray, "estimates priors"] = np.exp(log_density - log_density.max(1, keepdims=True))
    return density


def _shares(
    density: Float[np.ndarray, "estimates priors"], weight: Float[np.ndarray, " priors"]
) -> Float[np.ndarray, "estimates priors"]:
    """Posterior probability of each prior for each estimate."""
    joint = density * weight
    shares: Float[np.ndarray, "estimates priors"] = joint / joint.sum(1, keepdims=True)
    return shares


def _fitted(
    density: Float[np.ndarray, "estimates priors"], weight: Float[np.ndarray, " priors"]
) -> Float[np.ndarray, " priors"]:
    """The weights after one round of EM, including the pseudo-observations of no change."""
    taken: Float[np.ndarray, " priors"] = weight * (density / (density @ weight)[:, None]).sum(0)
    taken[0] += UNCHANGED_WEIGHT * len(density)
    weights: Float[np.ndarray, " priors"] = taken / taken.sum()
    return weights


def _step(
    change: Float[np.ndarray, " estimates"],
    error: Float[np.ndarray, " estimates"],
    width: Float[np.ndarray, " widths"],
    share: Float[np.ndarray, "estimates priors"],
) -> float:
    """One Newton step of the centre, given the posterior probability of each prior for each estimate."""
    total = error[:, None] ** 2 + width**2
    slope = width / (error[:, None] * np.sqrt(total))
    gradient = (share[:, 0] * change / error**2).sum()
    curvature = (share[:, 0] / error**2).sum()
    for sign, part in ((1.0, share[:, 1 : 1 + len(width)]), (-1.0, share[:, 1 + len(width) :])):
        tilt = sign * slope * change[:, None]
        hazard = _hazard(tilt)
        gradient += (part * (change[:, None] / total - sign * slope * hazard)).sum()
        curvature += (part * (1.0 / total + slope**2 * hazard * (hazard + tilt))).sum()
    return float(gradient / curvature)


def _hazard(at: Float[np.ndarray, "estimates widths"]) -> Float[np.ndarray, "estimates widths"]:
    """phi(at) / Phi(at)."""
    ratio: Float[np.ndarray, "estimates widths"] = np.exp(-0.5 * at**2 - log_ndtr(at)) / ROOT_2_PI
    return ratio


def _posterior(
    change: Float[np.ndarray, " estimates"],
    error: Float[np.ndarray, " estimates"],
    width: Float[np.ndarray, " widths"],
    weight: Float[np.ndarray, " priors"],
    share: Float[np.ndarray, "estimates priors"],
    threshold: float,
    centre: float,
) -> Posterior:
    """Moments and tails of the posterior of each change: a mixture of normal distributions truncated at 0."""
    trust = width**2 / (error[:, None] ** 2 + width**2)
    sd = np.sqrt(trust) * error[:, None]
    average, square, beyond = np.zeros_like(change), np.zeros_like(change), []
    for sign, part in ((1.0, share[:, 1 : 1 + len(width)]), (-1.0, share[:, 1 + len(width) :])):
        location = sign * trust * change[:, None]
        mean = np.maximum(location + sd * _hazard(location / sd), 0.0)
        average += sign * (part * mean).sum(1)
        square += (part * np.maximum(sd**2 + location * mean, 0.0)).sum(1)
        beyond.append((part * np.exp(log_ndtr((location - threshold) / sd) - log_ndtr(location / sd))).sum(1))
    return Posterior(
        mean=average,
        sd=np.sqrt(np.maximum(square - average**2, 0.0)),
        error_probability=np.clip(1.0 - np.maximum(*beyond), 0.0, 1.0),
        centre=centre,
        unchanged=float(share[:, 0].mean()),
        prior_sd=width,
        prior_weight=weight,
    )


def bayesian_fdr(error_probability: Float[np.ndarray, " estimates"]) -> Float[np.ndarray, " estimates"]:
    """Expected fraction of false discoveries among this estimate and all that are at least as certain.

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
