"""Differences between two groups of donors: counts of many features, with a random effect of the donor.

A unit is the cells of one donor on one side of the comparison. Its count of a feature (a gene, or a neighbourhood of
cells) is taken as

    n ~ NB(mean = exposure exp(eta), variance = mean + spread mean^2),   eta = block + x delta + u,   u ~ N(0, tau^2),

where `spread` is what the cells of the unit leave uncertain, x says on which side the unit is, and tau is how much
donors differ. Each block of units (a donor who is on both sides, or a batch) has a level of its own. u is integrated
out by Laplace's approximation (Breslow & Clayton 1993), so that a donor with few counts weighs little:
1 / (1 / W + tau^2), where W is the information in its counts.

tau is unknown, and a few donors say little about it. As in Smyth (2004), all features say what is usual: tau has a
prior on a grid of values, which EM fits to the restricted likelihoods of all features. The p-value of a feature is the
mean, over its posterior of tau, of that of the signed root of the likelihood ratio. Such a mixture of normal
distributions has the heavy tails of a moderated t.

Features vary together: genes belong to programmes, and neighbourhoods overlap. If each were an observation of its own,
the prior would follow the accidents of a few. So the residuals say how many independent features amount to the same
(`_dependence`), and the prior has one pseudo-observation, spread evenly over the grid, beside these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import log_ndtr, ndtri_exp

from .contrast import TINY, nb_log_density

SPREADS = np.geomspace(0.03, 3.0, 16)  # standard deviations of donors in nats; below the first, they hardly differ
EM_ROUNDS, TOLERANCE = 200, 1e-4
ROUNDS = 8  # of scoring at each tau; they start where the tau before ended
LONGEST_STEP = 3.0  # nats, of one round
LEAST = 0.5  # expected count of one side of a block: without a count, its level would have no bound
HALF = 0.5  # count added before logarithms are taken
EFFECTIVE = 400  # grid of the number of independent features
MANY = 10.0  # expected counts beyond which a ratio gets little more certain
LOG_2 = float(np.log(2.0))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Units:
    """Counts of all features in the units of a comparison.

    Parameters
    ----------
    count, exposure, spread
        Count (which need not be an integer), exposure, and variance within the unit beyond Poisson over the squared
        mean.
    on_side
        Whether the unit belongs to the group; if not, to the reference.
    block
        Which units share a level; each from 0 on.
    """

    count: Float[np.ndarray, "units features"]
    exposure: Float[np.ndarray, "units features"]
    spread: Float[np.ndarray, "units features"]
    on_side: Bool[np.ndarray, " units"]
    block: Int[np.ndarray, " units"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Difference:
    """Log ratio of group over reference for each feature.

    Parameters
    ----------
    estimate
        The difference delta, in nats.
    error
        Standard error, at the typical tau of the posterior.
    tail_error
        An error such that the p-value is that of estimate / tail_error under a normal distribution; it is larger, as a
        t has heavier tails.
    log_p
        Logarithm of the two-sided p-value.
    donor_sd
        Posterior mean of tau.
    """

    estimate: Float[np.ndarray, " features"]
    error: Float[np.ndarray, " features"]
    tail_error: Float[np.ndarray, " features"]
    log_p: Float[np.ndarray, " features"]
    donor_sd: Float[np.ndarray, " features"]


def difference(units: Units) -> Difference:
    """Compares the two sides; each feature needs a count, and the units more than one for each block and one more."""
    sides = 2 * units.block + units.on_side
    members = np.equal.outer(np.unique(units.block), units.block).astype(float)
    of_side = np.equal.outer(sides, sides).astype(float)
    floor = np.log(LEAST / (of_side @ units.exposure))
    typical = units.count.sum(0) / units.exposure.sum(0)
    start = np.log((units.count + HALF) / (units.exposure + HALF / typical))
    full = null = np.maximum(start, floor)
    likelihood, log_p, estimate, error = (np.empty((len(SPREADS), units.count.shape[1])) for _ in range(4))
    for k, sd in enumerate(SPREADS):
        full, estimate[k], error[k], with_effect, restricted = _fitted(units, members, floor, full, sd, effect=True)
        null, _, _, without, _ = _fitted(units, members, floor, null, sd, effect=False)
        likelihood[k] = restricted
        log_p[k] = LOG_2 + log_ndtr(-np.sqrt(2.0 * np.maximum(with_effect - without, 0.0)))
    share = _posterior(likelihood, _dependence(*_residuals(start, units)))
    mean = (share * estimate).sum(0)
    largest = log_p.max(0)
    log_mean_p = np.minimum(largest + np.log((share * np.exp(log_p - largest)).sum(0)), 0.0)
    score = -ndtri_exp(np.minimum(log_mean_p - LOG_2, -LOG_2))
    usual = np.sqrt((share * error**2).sum(0))
    return Difference(
        estimate=mean,
        error=usual,
        # below a score of 1, the quotient tends to 0 / 0
        tail_error=np.where(score > 1.0, np.abs(mean) / np.maximum(score, 1.0), np.maximum(usual, np.abs(mean))),
        log_p=log_mean_p,
        donor_sd=(share * SPREADS[:, None]).sum(0),
    )


def _fitted(
    units: Units,
    members: Float[np.ndarray, "blocks units"],
    floor: Float[np.ndarray, "units features"],
    eta: Float[np.ndarray, "units features"],
    sd: float,
    *,
    effect: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """eta at its mode for one tau; delta and its error; the marginal and the restricted log-likelihood."""
    n, spread, tau2 = units.count, units.spread, sd**2
    x = units.on_side[:, None].astype(float)
    log_exposure = np.log(units.exposure)
    for _ in range(ROUNDS):
        mean = np.exp(eta + log_exposure)
        weight = 1.0 / ((1.0 + spread * mean) / mean + tau2)
        response = eta + np.clip((n - mean) / mean, -LONGEST_STEP, LONGEST_STEP)
        total = np.maximum(members @ weight, TINY)
        level = members.T @ ((members @ (weight * response)) / total)
        centred = x - members.T @ ((members @ (weight * x)) / total)
        information = np.maximum((weight * centred**2).sum(0), TINY)
        delta = (weight * centred * response).sum(0) / information if effect else np.zeros(n.shape[1])
        fixed = level + delta * centred
        u = tau2 * weight * (response - fixed)
        eta = np.maximum(fixed + u, floor)
    mean = np.exp(eta + log_exposure)
    marginal = (
        nb_log_density(n, mean, spread)
        - 0.5 * (u**2 / tau2 + np.log1p(tau2 * mean / (1.0 + spread * mean)))
    ).sum(0)  # fmt: skip
    restricted = marginal - 0.5 * (np.log(total).sum(0) + np.log(information))
    return eta, delta, information**-0.5, marginal, restricted


def _posterior(
    log_likelihood: Float[np.ndarray, "grid features"], dependence: float
) -> Float[np.ndarray, "grid features"]:
    """Posterior of tau for each feature, with the prior that EM fits to all of them.

    `dependence` is the number of pseudo-observations of the prior, as a fraction of the features.
    """
    density = np.exp(log_likelihood - log_likelihood.max(0))
    prior = np.full(len(density), 1.0 / len(density))
    for _ in range(EM_ROUNDS):
        taken = (prior[:, None] * density / (prior @ density)).mean(1)
        before, prior = prior, (taken + dependence / len(prior)) / (1.0 + dependence)
        if np.abs(prior - before).max() < TOLERANCE:
            break
    joint = prior[:, None] * density
    share: Float[np.ndarray, "grid features"] = joint / joint.sum(0)
    return share


def _residuals(
    log_ratio: Float[np.ndarray, "units features"], units: Units
) -> tuple[Float[np.ndarray, "units features"], int]:
    """What the blocks and sides leave of each feature, with a sum of squares of 1, and the degrees of freedom."""
    effects = np.column_stack([np.equal.outer(units.block, np.unique(units.block)), units.on_side]).astype(float)
    basis = np.linalg.qr(effects)[0]
    left = log_ratio - basis @ (basis.T @ log_ratio)
    return left / np.sqrt(np.maximum((left**2).sum(0), TINY)), len(left) - effects.shape[1]


def _dependence(residuals: Float[np.ndarray, "units features"], d: int) -> float:
    """1 over the number of independent features: pseudo-observations of the prior of tau for each feature.

    p features whose residuals, with d degrees of freedom, have correlations rho say as much about variances as
    n = p^2 / sum rho^2 independent ones, since squares of normal variables have the correlation rho^2. The mean square
    of the sample correlations exceeds 1 / d, its value without correlation, by 2 m / (d^2 n) on average, and scatters
    nearly like chi^2 with m = (d - 1) (d + 2) / 2 degrees of freedom. This gives the posterior of n, with a prior even
    in log n from 1 to p, and so the mean of 1 / n.
    """
    n_features, m = residuals.shape[1], (d - 1) * (d + 2) / 2
    mean_square = float(((residuals @ residuals.T) ** 2).sum()) / n_features**2
    excess = max(mean_square - 1.0 / d, 0.0) * d * d / 2.0
    number = np.geomspace(1.0, n_features, EFFECTIVE)
    log_share = 0.5 * (m * np.log(number) - number * excess)
    share = np.exp(log_share - log_share.max())
    return float((share / number).sum() / share.sum())


def size_factors(
    count: Float[np.ndarray, "units features"], exposure: Float[np.ndarray, "units features"]
) -> Float[np.ndarray, " units"]:
    """Factor of each unit's typical feature over that of all units, as the median of ratios for bulk data.

    Proportions add up to 1, so that a few abundant features that rise in a unit make all its others fall. The median is
    weighted by expected counts, up to one that is hardly uncertain.
    """
    expected = exposure * (count.sum(0) / exposure.sum(0))
    ratio = np.log((count + HALF) / (expected + HALF))
    weight = expected / (1.0 + expected / MANY)
    order = np.argsort(ratio, axis=1)
    cumulated = np.cumsum(np.take_along_axis(weight, order, 1), 1)
    middle = (cumulated < 0.5 * cumulated[:, -1:]).sum(1)
    log_factor = np.take_along_axis(ratio, np.take_along_axis(order, middle[:, None], 1), 1)[:, 0]
    factors: Float[np.ndarray, " units"] = np.exp(log_factor - log_factor.mean())
    return factors


def weighted_fdr(
    log_p: Float[np.ndarray, " features"], weight: Float[np.ndarray, " features"]
) -> Float[np.ndarray, " features"]:
    """Benjamini & Hochberg's adjusted p-values with weights, as for overlapping neighbourhoods (Dann et al. 2022)."""
    order = np.argsort(log_p, kind="stable")
    tail = np.log(weight.sum()) + log_p[order] - np.log(np.cumsum(weight[order]))
    adjusted = np.empty(len(log_p))
    adjusted[order] = np.exp(np.minimum(np.minimum.accumulate(tail[::-1])[::-1], 0.0))
    return adjusted
