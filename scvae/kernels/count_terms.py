"""What counts above zero add to the log-probability of a zero, for the CPU kernels."""

import math

import numpy as np
from numba import njit

from .compiling import INNER, STRICT, kernel
from .polynomials import ONE, log1p, rising
from .records import TABLE

LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(256)])


@kernel
def count_tables(theta):
    """1 / theta, and the lgamma and digamma terms of `nb_count` for x = 1 ... TABLE, in row x - 1 of each group.

    logs: lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(theta), the sum of log1p(k / theta) over k < x minus
    log(x!). drops: x - theta (digamma(x + theta) - digamma(theta)), the sum of k / (theta + k). Neither cancels.
    """
    inverse_theta = np.empty_like(theta)
    logs = np.empty((theta.shape[0], TABLE, theta.shape[1]), np.float32)
    drops = np.empty_like(logs)
    for k in range(theta.shape[0]):
        fill_count_tables(theta, inverse_theta, logs, drops, k, 0, theta.shape[1])
    return inverse_theta, logs, drops


@njit(forceinline=True, **INNER)
def fill_count_tables(theta, inverse_theta, logs, drops, k, first, last):
    """The tables of `count_tables` for group k of cells and the genes first ... last - 1."""
    for g in range(first, last):
        inverse_theta[k, g] = ONE / theta[k, g]
        logs[k, 0, g], drops[k, 0, g] = np.float32(0.0), np.float32(0.0)
    for x in range(2, TABLE + 1):
        _next_count(
            x, inverse_theta[k, first:last], logs[k, x - 2, first:last], drops[k, x - 2, first:last],
            logs[k, x - 1, first:last], drops[k, x - 1, first:last],
        )  # fmt: skip


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _next_count(x, inverse_theta, logs, drops, next_logs, next_drops):
    factor = np.float32(math.log(x))
    for g in range(inverse_theta.size):
        u = np.float32(x - 1) * inverse_theta[g]
        log, _, r = log1p(u)
        next_logs[g] = logs[g] + (log - factor)
        next_drops[g] = drops[g] + u * r


@njit(forceinline=True, **INNER)
def nb_count(count, mean, theta, log_zero, logs, drops, g):
    """Terms that a count adds to `log_zero`, the log-probability of a zero, besides count x log mean; and to slopes.

    log(theta / (theta + mean)) is log_zero / theta, so that a count of 1, the most frequent one, needs no logarithm.
    """
    r = theta / (theta + mean)
    if count == ONE:
        return np.float64(log_zero / theta), r, mean / (theta + mean)
    x = np.int64(count)
    if x <= TABLE and np.float32(x) == count and x > 1:
        value = np.float64(logs[x - 1, g]) + np.float64(count) * np.float64(log_zero / theta)
        return value, count * r, count * (mean / (theta + mean)) - drops[x - 1, g]
    return _nb_large_count(np.float64(count), np.float64(mean), np.float64(theta))


@njit(forceinline=True, **INNER)
def _nb_large_count(x, mean, theta):
    """`nb_count` in float64, for any x > 0."""
    scale = theta + mean
    value, rise = rising(x, theta, scale)
    return value, np.float32(x * theta / scale), np.float32(theta * rise - x * theta / scale)


@njit(forceinline=True, **INNER)
def log_factorial(x):
    """log(x!), for any x >= 0."""
    return LOG_FACTORIAL[np.int64(x)] if x < LOG_FACTORIAL.size and x == math.floor(x) else math.lgamma(x + 1.0)
