"""The special functions of the CPU kernels, as compiled into them, against numpy and mpmath."""

import itertools
import math

import numpy as np
import pytest
from numba import njit

from scvae.kernels import count_terms, cpu, polynomials, records
from scvae.kernels.compiling import STRICT
from tests import references

ULP = 2.0**-23
EPS = 2.0**-52


@njit(fastmath=STRICT)
def exp_of(x, out):
    for i in range(x.size):
        out[i] = polynomials.exp(x[i])


@njit(fastmath=STRICT)
def log1p_of(u, log, excess, reciprocal):
    for i in range(u.size):
        log[i], excess[i], reciprocal[i] = polynomials.log1p(u[i])


# only kernels can call these functions, which have no wrappers for Python
@njit
def softmax_row(logits, bias, out):
    return cpu.softmax_row(logits, bias, out)


@njit
def add_bias(logits, bias):
    return cpu._add_bias(logits, bias)


@njit
def rising(x, theta, scale):
    return polynomials.rising(x, theta, scale)


@njit
def digamma_rise(x, theta):
    return polynomials.digamma_rise(x, theta)


def test_exp_is_within_two_units_in_the_last_place():
    x = np.concatenate([np.linspace(-87.0, 0.0, 500_001), -np.geomspace(1e-30, 1.0, 100_001)]).astype(np.float32)
    out = np.empty_like(x)
    exp_of(x, out)
    assert np.max(np.abs(out / np.exp(x.astype(np.float64)) - 1)) < 2 * ULP


def test_exp_far_below_its_range_is_negligible_but_not_negative():
    x = np.array([-87.0, -100.0, -1e4, -3e38, -np.inf], np.float32)
    out = np.empty_like(x)
    exp_of(x, out)
    assert np.all((out > 0) & (out < 2e-38))


def test_log1p_is_accurate_over_sixty_decades():
    u = np.concatenate([np.geomspace(1e-30, 1e30, 500_001), np.linspace(0.2, 2.0, 100_001)]).astype(np.float32)
    log, excess, reciprocal = np.empty_like(u), np.empty_like(u), np.empty_like(u)
    log1p_of(u, log, excess, reciprocal)
    assert np.max(np.abs(reciprocal * (1 + u.astype(np.float64)) - 1)) < 2.5 * ULP
    assert np.max(np.abs(log / np.log1p(u.astype(np.float64)) - 1)) < 2.5 * ULP


def test_log1p_minus_its_tangent_keeps_its_digits_where_it_nearly_vanishes():
    """u - u + u^2 / 2: subtraction in float32 leaves nothing of it below u = 1e-7."""
    u = np.concatenate([np.geomspace(1e-18, 1e30, 4001), np.linspace(0.2, 2.0, 1001)]).astype(np.float32)
    log, excess, reciprocal = np.empty_like(u), np.empty_like(u), np.empty_like(u)
    log1p_of(u, log, excess, reciprocal)
    expected = np.array([references.log1p_excess(v) for v in u])
    relative = np.abs(excess / expected - 1)
    assert relative[u < 0.4].max() < 4 * ULP
    assert relative.max() < 16 * ULP


def test_log1p_of_zero_is_zero():
    log, excess, reciprocal = np.ones((3, 1), np.float32)
    log1p_of(np.zeros(1, np.float32), log, excess, reciprocal)
    assert (log[0], excess[0], reciprocal[0]) == (0, 0, 1)


@pytest.mark.parametrize("spread", [1e-3, 1.0, 20.0, 85.0])
@pytest.mark.parametrize("n", [1, 401, 5000])
def test_softmax_and_its_normaliser_are_right_in_float32(n, spread):
    logits = np.random.default_rng(n).uniform(-spread, 0.0, n).astype(np.float32) + np.float32(7.0)
    proportions, bias = np.empty_like(logits), np.full_like(logits, 3.0)
    scale, normaliser = softmax_row(logits - bias, bias, proportions)
    logits = (logits - bias) + bias
    proportions *= scale
    exact = np.exp(logits.astype(np.float64) - 7.0)
    assert normaliser == pytest.approx(7.0 + np.log(exact.sum()), abs=2 * ULP)
    seen = exact / exact.sum() > 1e-37  # below, float32 numbers lose digits one by one
    # the difference of two logits is rounded in its last place, which exp turns into a relative error
    assert np.max(np.abs(proportions / (exact / exact.sum()) - 1)[seen]) < (4 + spread / 2) * ULP


@pytest.mark.parametrize("n", [1, 2, 9, 513, 2000])
def test_a_nan_among_the_logits_is_not_hidden(n):
    for at in {0, n // 2, n - 1}:
        logits = np.zeros(n, np.float32)
        logits[at] = np.nan
        assert np.isnan(softmax_row(logits, np.zeros_like(logits), np.empty_like(logits))[1])


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("n", [1, 15, 16, 2000])
def test_the_maximum_by_integer_comparison_is_that_of_the_floats(n, sign):
    values = (sign * np.random.default_rng(n).gamma(0.1, 1e3, n)).astype(np.float32)
    bias = np.random.default_rng(n + 1).normal(size=n).astype(np.float32)
    sums = values.copy()
    assert add_bias(sums, bias) == (values + bias).max()
    np.testing.assert_array_equal(sums, values + bias)
    assert add_bias(-values, 0 * bias) == -values.min()
    assert add_bias(np.array([-0.0, 0.0, -np.inf], np.float32), np.zeros(3, np.float32)) == 0.0


@pytest.mark.parametrize("theta", [1e-6, 0.1, 1.0, 30.0, 1e6, 1e15])
def test_tables_of_small_counts_hold_the_rising_factorial_and_its_slope(theta):
    table = count_terms.count_tables(np.full((1, 3), theta, np.float32))
    theta = float(np.float32(theta))
    for x in range(1, records.TABLE + 1):
        value, slope = references.rising(float(x), theta)
        assert table[1][0, x - 1] == pytest.approx([value - x * math.log(theta)] * 3, rel=20 * ULP, abs=20 * ULP)
        assert table[2][0, x - 1] == pytest.approx([x - theta * slope] * 3, rel=20 * ULP, abs=1e-13 * x)


COUNTS = (1e-3, 0.5, 1.0, 2.0, 15.0, 16.0, 17.0, 100.5, 1e5)


@pytest.mark.parametrize("theta", [1e-6, 0.1, 1.0, 5.999, 6.0, 300.0, 1e6])
def test_rising_factorial_and_its_slope_are_those_of_mpmath(theta):
    for x, scale in itertools.product(COUNTS, (1.0, theta + 1e-8, theta + 1e5)):
        value, slope = rising(x, theta, scale)
        expected, expected_slope = references.rising(x, theta)
        expected -= x * math.log(scale)
        added = sum(abs(math.lgamma(v)) for v in (x + theta, theta, x + 1.0)) + abs(x * math.log(scale))
        # a product of up to 16 rounded factors comes first, whose relative error is an absolute one of its logarithm
        assert value == pytest.approx(expected, rel=1e-13, abs=4 * EPS * (added + min(x, 16.0)))
        assert slope == pytest.approx(expected_slope, rel=1e-11)


@pytest.mark.parametrize("theta", [1e-6, 0.1, 1.0, 5.999, 6.0, 300.0, 1e6])
def test_digamma_rise_keeps_its_digits_at_every_inverse_dispersion(theta):
    for x in COUNTS:
        assert digamma_rise(x, theta) == pytest.approx(references.rising(x, theta)[1], rel=1e-11)
