"""Special functions for the Triton kernels.

The functions of the device differ from those of the interpreter in which the kernels are tested (exp by several units
in the last place), and the interpreter has no log1p, lgamma or digamma. Every branch is written as `tl.where`.
"""

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN2_HIGH = tl.constexpr(0.693359375)
LN2_LOW = tl.constexpr(-2.12194440e-4)
LN2 = tl.constexpr(0.6931471805599453)
HALF_LOG_2_PI = tl.constexpr(0.9189385332046727)
SQRT_HALF_BITS = tl.constexpr(0x3F3504F3)
MANTISSA = tl.constexpr(0x007FFFFF)
CLIMB = tl.constexpr(8)  # Stirling's series are used from here; below, the recurrence takes as many steps


@triton.jit
def exp(x):
    """exp for x <= 0 in float32, 2 ulp; below -87 it stays at 1.6e-38 (Cephes expf: Cody-Waite, degree 6)."""
    x = tl.where(x < -87.0, -87.0, x)  # tl.maximum would replace NaN by a number
    k = tl.floor(x * LOG2_E + 0.5)
    r = x - k * LN2_HIGH - k * LN2_LOW
    p = r * 1.9875691500e-4 + 1.3981999507e-3
    p = p * r + 8.3334519073e-3
    p = p * r + 4.1665795894e-2
    p = p * r + 1.6666665459e-1
    p = p * r + 5.0000001201e-1
    p = p * r * r + r + 1.0
    return p * ((k.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit
def log1p(u, r):
    """log(1 + u), and log(1 + u) - u / (1 + u), for u >= 0 in float32 with r = 1 / (1 + u); see `polynomials.log1p`."""
    w = 1.0 + u
    bits = w.to(tl.int32, bitcast=True) - SQRT_HALF_BITS
    k = bits >> 23
    mantissa = ((bits & MANTISSA) + SQRT_HALF_BITS).to(tl.float32, bitcast=True)
    f = tl.where(k == 0, u, mantissa - 1.0)
    s = f / (2.0 + f)
    z = s * s
    p = z * 0.24279078841 + 0.28498786688
    p = p * z + 0.40000972152
    p = p * z + 0.66666662693
    log = k.to(tl.float32) * LN2 + s * (2.0 + z * p)
    return log, tl.where(k == 0, z * ((2.0 + u) * r + s * p), log - u * r)


@triton.jit
def _log1p_double(u):
    """log(1 + u) for u >= 0 in float64: the logarithm of the rounded 1 + u, corrected for the rounding (Kahan)."""
    w = 1.0 + u
    exact = w == 1.0
    return tl.where(exact, u, tl.log(w) * (u / tl.where(exact, 1.0, w - 1.0)))


@triton.jit
def _log_gamma_tail(z):
    """lgamma(z) - ((z - 1/2) log z - z + log(2 pi) / 2) for z >= 8 in float64 (Abramowitz & Stegun 6.1.41)."""
    w = 1.0 / (z * z)
    return (1 / 12 - w * (1 / 360 - w * (1 / 1260 - w * (1 / 1680 - w * (1 / 1188))))) / z


@triton.jit
def _digamma_tail(z):
    """log(z) - 1 / (2 z) - digamma(z) for z >= 8 in float64 (Abramowitz & Stegun 6.3.18)."""
    w = 1.0 / (z * z)
    return w * (1 / 12 - w * (1 / 120 - w * (1 / 252 - w * (1 / 240 - w * (1 / 132 - w * (691 / 32760 - w / 12))))))


@triton.jit
def log_factorial(x):
    """lgamma(x + 1) for x >= 0 in float64."""
    climbed = x + 1.0
    for k in tl.static_range(2, CLIMB + 1):
        climbed *= x + k
    z = x + (1.0 + CLIMB)
    return (z - 0.5) * tl.log(z) - z + HALF_LOG_2_PI + _log_gamma_tail(z) - tl.log(climbed)


@triton.jit
def rising(x, theta, scale):
    """lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) - x log(scale), and its derivative in theta, in float64.

    The recurrence raises both arguments to 8 or more, then Stirling's series of the first two terms are subtracted term
    by term: at large theta, the difference of two complete values would have few correct digits.
    """
    low = theta < CLIMB
    upper, lower = x + theta, theta
    rise = x / (theta * (x + theta))
    for k in tl.static_range(1, CLIMB):
        upper *= x + theta + k
        lower *= theta + k
        rise += x / ((theta + k) * (x + theta + k))
    ratio = tl.where(low, lower / upper, 1.0)
    rise = tl.where(low, rise, 0.0)
    base = tl.where(low, theta + CLIMB, theta)
    top = base + x
    log_ratio = _log1p_double(x / base)
    value = (top - 0.5) * log_ratio - x + _log_gamma_tail(top) - _log_gamma_tail(base)
    value += x * tl.log(base / scale) + tl.log(ratio) - log_factorial(x)
    rise += log_ratio + 0.5 * x / (base * top) + _digamma_tail(base) - _digamma_tail(top)
    return value, rise
