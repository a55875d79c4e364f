"""Negative-binomial quasi-likelihood tests of counts in neighbourhoods, as Milo makes them with edgeR.

Milo (Dann et al. 2022) fits counts of samples in neighbourhoods by edgeR, which is in R: a dispersion that
neighbourhoods share (Cox-Reid adjusted profile likelihood; McCarthy et al. 2012), quasi-likelihood dispersions
moderated by empirical Bayes (Smyth 2004; Lund et al. 2012) and F tests. This is the same for two groups of samples,
whose means have no other covariate. edgeR lets the shared dispersion depend on the mean; neighbourhoods have equally
many cells, so that one value serves."""

from __future__ import annotations

import numpy as np
from scipy import optimize, special, stats

NEWTON = 30
TINY = 1e-12


def nb_ql(count: np.ndarray, exposure: np.ndarray, side: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p-values and log ratios of side over the others, for counts of units x neighbourhoods and one exposure a unit."""
    groups = [np.flatnonzero(side), np.flatnonzero(~side)]

    def lost(log_phi: float) -> float:
        return -sum(_adjusted(count[g], exposure[g], np.exp(log_phi)).sum() for g in groups)

    phi = float(np.exp(optimize.minimize_scalar(lost, bounds=(-12.0, 3.0), method="bounded").x))
    deviance = sum(_deviance(count[g], _means(count[g], exposure[g], phi), phi) for g in groups)
    both = _deviance(count, _means(count, exposure, phi), phi)
    df = len(count) - 2
    prior, df_prior = _moderation(np.maximum(deviance / df, TINY), df)
    scale = prior if np.isinf(df_prior) else (df_prior * prior + deviance) / (df_prior + df)
    p = stats.f.sf(np.maximum(both - deviance, 0.0) / scale, 1, min(df_prior + df, 1e6))
    logs = [np.log((count[g].sum(0) + 0.5) / exposure[g].sum()) for g in groups]
    return p, logs[0] - logs[1]


def _means(count: np.ndarray, exposure: np.ndarray, phi: float) -> np.ndarray:
    """Expected counts at the maximum-likelihood rate of one group, by Newton's steps of its logarithm."""
    rate = np.maximum(count.sum(0), 1e-3) / exposure.sum()
    for _ in range(NEWTON):
        mean = exposure[:, None] * rate
        score = ((count - mean) / (1.0 + phi * mean)).sum(0)
        rate = rate * np.exp(np.clip(score / (mean / (1.0 + phi * mean)).sum(0), -1.0, 1.0))
        rate = np.maximum(rate, 1e-3 / exposure.sum())
    return exposure[:, None] * rate


def _adjusted(count: np.ndarray, exposure: np.ndarray, phi: float) -> np.ndarray:
    mean, size = _means(count, exposure, phi), 1.0 / phi
    log_p = special.gammaln(count + size) - special.gammaln(size) - size * np.log1p(phi * mean)
    log_p += special.xlogy(count, phi * mean) - count * np.log1p(phi * mean)
    return log_p.sum(0) - 0.5 * np.log((mean / (1.0 + phi * mean)).sum(0))


def _deviance(count: np.ndarray, mean: np.ndarray, phi: float) -> np.ndarray:
    size = 1.0 / phi
    return 2.0 * (special.xlogy(count, count / mean) - (count + size) * np.log((count + size) / (mean + size))).sum(0)


def _moderation(scale: np.ndarray, df: int) -> tuple[float, float]:
    """Prior value and degrees of freedom of scaled chi-square variances (Smyth 2004, section 6.2)."""
    logs = np.log(scale) - special.digamma(df / 2) + np.log(df / 2)
    excess = logs.var(ddof=1) - special.polygamma(1, df / 2)
    if excess <= 0:
        return float(np.exp(logs.mean())), np.inf
    half = optimize.brentq(lambda x: special.polygamma(1, x) - excess, 1e-3, 1e8)
    return float(np.exp(logs.mean() + special.digamma(half) - np.log(half))), 2.0 * half
