"""Laws of probability from their definitions: mpmath for densities and derivatives, scipy for moments and sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from mpmath import mp, mpf
from scipy import stats

DIGITS = 60  # far more than cancel: lgamma(1e5 + 1e6) has 8 digits before the point

Law = Callable[..., Any]


def poisson(x, log_mean):
    return x * log_mean - mp.exp(log_mean) - mp.loggamma(x + 1)


def negative_binomial(x, log_mean, log_inverse_dispersion):
    mean, theta = mp.exp(log_mean), mp.exp(log_inverse_dispersion)
    coefficient = mp.loggamma(x + theta) - mp.loggamma(theta) - mp.loggamma(x + 1)
    return coefficient + x * mp.log(mean / (mean + theta)) - theta * mp.log1p(mean / theta)


def zero_inflated_negative_binomial(x, log_mean, log_inverse_dispersion, zero_logit):
    lost = 1 / (1 + mp.exp(-zero_logit))
    kept = 1 / (1 + mp.exp(zero_logit))
    probability = kept * mp.exp(negative_binomial(x, log_mean, log_inverse_dispersion))
    return mp.log(probability + lost if x == 0 else probability)


def bernoulli(x, logit):
    return mp.log(1 / (1 + mp.exp(-logit)) if x == 1 else 1 / (1 + mp.exp(logit)))


def gaussian(x, mean, log_scale):
    return -(((x - mean) / mp.exp(log_scale)) ** 2) / 2 - log_scale - mp.log(2 * mp.pi) / 2


def log_probability(law: Law, x: float, parameters: Sequence[float]) -> float:
    """log p(x | parameters), rounded once at the end."""
    with mp.workdps(DIGITS):
        return float(law(mpf(float(x)), *(mpf(float(p)) for p in parameters)))


def gradient(law: Law, x: float, parameters: Sequence[float]) -> list[float]:
    """d log p(x | parameters) / d each parameter, by differences in `DIGITS` digits."""
    with mp.workdps(DIGITS):
        at = [mpf(float(p)) for p in parameters]

        def along(i: int):
            return lambda value: law(mpf(float(x)), *at[:i], value, *at[i + 1 :])

        return [float(mp.diff(along(i), value)) for i, value in enumerate(at)]


def rising(x: float, theta: float) -> tuple[float, float]:
    """lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) and its derivative in theta."""
    with mp.workdps(DIGITS):
        a, t = mpf(float(x)), mpf(float(theta))
        value = mp.loggamma(a + t) - mp.loggamma(t) - mp.loggamma(a + 1)
        return float(value), float(mp.digamma(a + t) - mp.digamma(t))


def log1p_excess(u: float) -> float:
    """log(1 + u) - u / (1 + u)."""
    with mp.workdps(DIGITS):
        v = mpf(float(u))
        return float(mp.log1p(v) - v / (1 + v))


def scipy_negative_binomial(log_mean: float, log_inverse_dispersion: float):
    mean, theta = np.exp(log_mean), np.exp(log_inverse_dispersion)
    return stats.nbinom(theta, theta / (theta + mean))


class ScipyZeroInflated:
    """A mixture of 0 and a scipy negative binomial; its moments are sums over the support."""

    def __init__(self, log_mean: float, log_inverse_dispersion: float, zero_logit: float) -> None:
        self.base = scipy_negative_binomial(log_mean, log_inverse_dispersion)
        self.lost = 1.0 / (1.0 + np.exp(-zero_logit))

    def pmf(self, x):
        return (1.0 - self.lost) * self.base.pmf(x) + self.lost * (np.asarray(x) == 0)

    def cdf(self, x):
        return (1.0 - self.lost) * self.base.cdf(x) + self.lost

    def mean(self):
        return self.moment(lambda x: x)

    def var(self):
        mean = self.mean()
        return self.moment(lambda x: (x - mean) ** 2)

    def moment(self, of: Callable[[np.ndarray], np.ndarray]) -> float:
        support = np.arange(2 * self.base.ppf(1 - 1e-15) + 10)
        return float((of(support) * self.pmf(support)).sum())
