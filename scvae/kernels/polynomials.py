"""Special functions of the CPU kernels: exp and log1p in single precision, differences of lgamma and digamma.

`exp` and `log1p` are branch-free polynomials, so that LLVM turns a loop over genes into vector instructions; a call
into the C library would not vectorise.
"""

import math

import numpy as np
from numba import njit

from .compiling import INNER

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
LN2 = np.float32(0.6931471805599453)
HALF, ONE, TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)
SMALL_COUNT = 16  # up to this count, lgamma and digamma differences are finite products and sums


@njit(inline="always")
def exp(x):
    """exp for x <= 0 in float32, 2 ulp; below -87 it stays at 1.6e-38 (Cephes expf: Cody-Waite, degree 6)."""
    x = max(x, np.float32(-87.0))
    k = np.floor(x * LOG2_E + HALF)
    r = x - k * LN2_HIGH - k * LN2_LOW
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + ONE
    return p * np.int32((np.int32(k) + np.int32(127)) << np.int32(23)).view(np.float32)


@njit(inline="always")
def log1p(u):
    """log(1 + u), log(1 + u) - u / (1 + u), and 1 / (1 + u), for u >= 0 in float32.

    1 + u = 2^k (1 + f) with f in [sqrt(1/2) - 1, sqrt(2) - 1]; for small u, k = 0 and f = u without rounding.
    log(1 + f) = 2 artanh(s) with s = f / (2 + f), by its odd series 2 s + s^3 p(s^2). For k = 0, u / (1 + u) is
    2 s / (1 + s), so the difference is s^2 (2 / (1 + s) + s p). Nothing cancels; plain subtraction would leave no
    digit of u^2 / 2. Relative errors are about 3e-7 for the first value and 2e-6 for the second, even for tiny u. One
    division serves for both, because divisions take most of the time.
    """
    w = ONE + u
    bits = np.float32(w).view(np.int32) - np.int32(0x3F3504F3)
    k = bits >> np.int32(23)
    mantissa = np.int32((bits & np.int32(0x007FFFFF)) + np.int32(0x3F3504F3)).view(np.float32)
    f = u if k == 0 else mantissa - ONE
    d = TWO + f
    both = ONE / (w * d)
    r = both * d
    r += r * (ONE - w * r)  # one Newton step restores full precision
    s = f * (both * w)
    z = s * s
    p = np.float32(0.24279078841)  # Cephes/fdlibm coefficients of the even part
    p = p * z + np.float32(0.28498786688)
    p = p * z + np.float32(0.40000972152)
    p = p * z + np.float32(0.66666662693)
    log = np.float32(k) * LN2 + s * (TWO + z * p)
    return log, z * ((TWO + u) * r + s * p) if k == 0 else log - u * r, r


@njit(inline="always")
def _digamma_tail(x):
    """log(x) - 1 / (2 x) - digamma(x) for x >= 6 in float64 (Abramowitz & Stegun 6.3.18)."""
    z = 1.0 / (x * x)
    return z * (1 / 12 - z * (1 / 120 - z * (1 / 252 - z * (1 / 240 - z * (1 / 132 - z * (691 / 32760))))))


@njit(forceinline=True, **INNER)
def digamma_rise(x, theta):
    """digamma(x + theta) - digamma(theta) for x, theta > 0 in float64.

    The recurrence raises both arguments above 6, then the asymptotic series are subtracted term by term: at large
    theta, the difference of two complete digammas would have few correct digits.
    """
    rise = 0.0
    while theta < 6.0:
        rise += x / (theta * (theta + x))
        theta += 1.0
    top = theta + x
    return rise + math.log1p(x / theta) + 0.5 * x / (theta * top) + _digamma_tail(theta) - _digamma_tail(top)


@njit(forceinline=True, **INNER)
def rising(x, theta, scale):
    """lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(scale), and its derivative in theta, in float64.

    For a small count, the value is one logarithm of a ratio of products, and the derivative of the numerator is
    accumulated by the product rule. Neither over- nor underflows for any theta, scale in 1e-8 ... 1e15.
    """
    if x <= SMALL_COUNT and x == math.floor(x):
        upper, lower, slope, k = 1.0, 1.0, 0.0, 0.0
        while k < x:
            slope = slope * (theta + k) + upper
            upper *= theta + k
            lower *= (k + 1.0) * scale
            k += 1.0
        return math.log(upper / lower), slope / upper
    value = math.lgamma(x + theta) - math.lgamma(theta) - math.lgamma(x + 1.0) - x * math.log(scale)
    return value, digamma_rise(x, theta)
