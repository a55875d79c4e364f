"""The encoder's input of a cell, and of an expected one under each head, for the CPU kernels."""

import numpy as np
from numba import njit
from numba.extending import overload

from .compiling import INNER, PART, STRICT
from .cpu import log1p_row, softmax_row
from .layers import add
from .polynomials import ONE, exp, log1p
from .records import GaussianHead, JointHead, NegativeBinomialHead, PoissonHead, ZeroInflatedHead

TINY = np.float32(np.finfo(np.float32).eps)  # least probability of a count above zero


def input_row(head, values, scale, out):
    """out = log1p(scale * counts), or scale * real values."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(input_row, jit_options=PART)
def _input_row(head, values, scale, out):
    return _joint_input if head.instance_class is JointHead else _log1p_input


def _log1p_input(head, values, scale, out):
    log1p_row(values, scale, out)


def _joint_input(head, values, scale, out):
    if head.is_real:
        for j in range(values.size):
            out[j] = scale * values[j]
    else:
        log1p_row(values, scale, out)


def expected_log1p_row(head, logits, bias, group, library, scale, out):
    """E log1p(scale * count) of one cell under `head`: see `scvae.likelihoods.counts.expected_log1p`.

    Adds the bias to the logits. Of real values, scale * the expected standardised value.
    """
    raise NotImplementedError("kernels call this; Python does not")


@overload(expected_log1p_row, jit_options=PART)
def _expected_log1p_row(head, logits, bias, group, library, scale, out):
    return EXPECTED[head.instance_class]


def _nb_expected(head, logits, bias, group, library, scale, out):
    factor, _ = softmax_row(logits, bias, out)
    _nb_expected_row(out, np.float32(factor * library), head.theta[group], head.inverse_theta[group], scale)


def _zinb_expected(head, logits, bias, group, library, scale, out):
    n = out.size
    factor, _ = softmax_row(logits[:n], bias[:n], out)
    add(logits[n:], bias[n:])
    _zinb_expected_row(
        out, np.float32(factor * library), head.theta[group], head.inverse_theta[group], logits[n:], scale
    )


def _poisson_expected(head, logits, bias, group, library, scale, out):
    factor, _ = softmax_row(logits, bias, out)
    _poisson_expected_row(out, np.float32(factor * library), scale)


def _gaussian_expected(head, logits, bias, group, library, scale, out):
    for g in range(out.size):
        out[g] = scale * (logits[g] + bias[g])


def _joint_expected(head, logits, bias, group, library, scale, out):
    if head.is_real:
        expected_log1p_row(head.real, logits, bias, group, library, scale, out)
    else:
        expected_log1p_row(head.counts, logits, bias, group, library, scale, out)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _nb_expected_row(out, factor, theta, inverse_theta, scale):
    for g in range(out.size):
        mean = factor * out[g]
        above_zero = max(ONE - exp(-theta[g] * log1p(mean * inverse_theta[g])[0]), TINY)
        out[g] = above_zero * log1p(scale * mean / above_zero)[0]


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _zinb_expected_row(out, factor, theta, inverse_theta, zero_logit, scale):
    for g in range(out.size):
        e = exp(-abs(zero_logit[g]))
        kept = (e if zero_logit[g] >= 0 else ONE) / (ONE + e)
        mean = factor * out[g]
        above_zero = max(kept * (ONE - exp(-theta[g] * log1p(mean * inverse_theta[g])[0])), TINY)
        out[g] = above_zero * log1p(scale * kept * mean / above_zero)[0]


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _poisson_expected_row(out, factor, scale):
    for g in range(out.size):
        mean = factor * out[g]
        above_zero = max(ONE - exp(-mean), TINY)
        out[g] = above_zero * log1p(scale * mean / above_zero)[0]


EXPECTED = {
    NegativeBinomialHead: _nb_expected,
    ZeroInflatedHead: _zinb_expected,
    PoissonHead: _poisson_expected,
    GaussianHead: _gaussian_expected,
    JointHead: _joint_expected,
}
