"""Numba kernels for the CPU: log-probabilities of the heads, and products; fast versions of `scvae.kernels.reference`.

Four rules hold throughout these files.

* Special functions are evaluated at non-zero counts only; a zero costs one logarithm.
* `exp` and `log1p` are those of `scvae.kernels.polynomials`, which vectorise.
* The *shape* of the input, never the number of threads, determines how work is cut into blocks, and partial sums are
  added in the order of the blocks: the same input gives the same bits.
* Functions that kernels call are inlined. Otherwise LLVM compiles each of them several times, alone and within each
  kernel, with sums in another order, and which version runs depends on what this process has compiled or loaded before.

Every array is C-contiguous; logits are overwritten by their gradient, so no second cells x genes array exists.
"""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from .compiling import INNER, PART, STRICT, SUMS, kernel
from .count_terms import log_factorial, nb_count
from .layers import add
from .native import fetch_add, multiply, vector
from .polynomials import ONE, exp, log1p
from .records import (
    ROWS_IN_HEAD,
    BernoulliHead,
    GaussianHead,
    JointHead,
    NegativeBinomialHead,
    PoissonHead,
    ZeroInflatedHead,
)

SEEN = np.float32(1.0)  # marks a count; it cannot be the log-probability of a zero, which is never positive
PIECE = 256  # rows of a product that a thread takes at a time
SLICE = 512  # number of genes summed in float32; longer sums are accumulated in float64


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _sum(values):
    """Sum in float64 of float32 sums over slices; each slice is a separate array, so that its loop vectorises."""
    total = 0.0
    for start in range(0, values.size, SLICE):
        piece = values[start : start + SLICE]
        part = np.float32(0.0)
        for g in range(piece.size):
            part += piece[g]
        total += part
    return total


@njit(forceinline=True, **INNER)
def _add_bias(logits, bias):
    """logits += bias; returns the largest, found among integers with the order of the floats, which LLVM vectorises."""
    top = np.int32(-0x80000000)
    for g in range(logits.size):
        logit = logits[g] + bias[g]
        logits[g] = logit
        bits = np.float32(logit).view(np.int32)
        top = max(top, bits ^ ((bits >> np.int32(31)) & np.int32(0x7FFFFFFF)))
    return np.int32(top ^ ((top >> np.int32(31)) & np.int32(0x7FFFFFFF))).view(np.float32)


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _exp_row(logits, top, out):
    """out = exp(logits - top); returns the sum."""
    total = 0.0
    for start in range(0, logits.size, SLICE):
        total += _exp_slice(logits[start : start + SLICE], top, out[start : start + SLICE])
    return total


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _exp_slice(logits, top, out):
    total = np.float32(0.0)
    for g in range(logits.size):
        e = exp(logits[g] - top)
        out[g] = e
        total += e
    return total


@njit(forceinline=True, **INNER)
def softmax_row(logits, bias, out):
    """Adds the bias to the logits; fills `out` with exp(logits - largest).

    Returns 1 / sum(out), which turns `out` into proportions, and log(sum(exp(logits))) in float64: every count of the
    row is multiplied by this number, so that its rounding to float32 would not average out.
    """
    top = _add_bias(logits, bias)
    total = _exp_row(logits, top, out)
    return np.float32(1.0 / total), np.float64(top) + math.log(total)


@njit(forceinline=True, **INNER)
def _nb_zeros(proportions, scale, library, theta, inverse_theta, log_probability, slope, theta_slope):
    """Values of all genes at count 0: log p, d log p / d log mean, d log p / d log theta.

    Multiplies the proportions by `scale` first. Returns the sums of log p and of the slope.
    """
    total, total_slope = 0.0, 0.0
    for start in range(0, proportions.size, SLICE):
        stop = start + SLICE
        part, part_slope = _nb_zeros_slice(
            proportions[start:stop], scale, library, theta[start:stop], inverse_theta[start:stop],
            log_probability[start:stop], slope[start:stop], theta_slope[start:stop],
        )  # fmt: skip
        total += part
        total_slope += part_slope
    return total, total_slope


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _nb_zeros_slice(proportions, scale, library, theta, inverse_theta, log_probability, slope, theta_slope):
    total, total_slope = np.float32(0.0), np.float32(0.0)
    for g in range(proportions.size):
        proportion = proportions[g] * scale
        proportions[g] = proportion
        mean = library * proportion
        spread, excess, r = log1p(mean * inverse_theta[g])
        log_p, pull = -theta[g] * spread, -mean * r
        log_probability[g] = log_p
        slope[g] = pull
        theta_slope[g] = -theta[g] * excess
        total += log_p
        total_slope += pull
    return total, total_slope


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _gradient_row(slope, total_slope, proportions, theta_slope, weight, logits, bias_gradient, theta_gradient):
    """logits = weight (slope - proportions total_slope), by the chain rule; adds to the bias and theta gradients."""
    for g in range(slope.size):
        gradient = weight * (slope[g] - proportions[g] * total_slope)
        logits[g] = gradient
        bias_gradient[g] += gradient
        theta_gradient[g] += weight * theta_slope[g]


def _nb_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
              log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """Negative-binomial log p per row from logits; logits become weight x d log p / d logits.

    Row i of the logits belongs to cell i % cells, so the draws of the latent variables follow one another. The logits
    come without `bias`, which is added here. weight x d log p / d bias and / d log theta are added to bias_gradient
    (genes) and theta_gradient (groups, genes). `room` has space for ROWS_IN_HEAD rows of genes.
    """
    n_genes = logits.shape[1]
    n_cells = library.size
    theta, inverse_theta, logs, drops = head.theta, head.inverse_theta, head.logs, head.drops
    proportions, log_p = vector(room, 0, n_genes), vector(room, n_genes, n_genes)
    slope, theta_slope = vector(room, 2 * n_genes, n_genes), vector(room, 3 * n_genes, n_genes)
    for i in range(first, last):
        c = i % n_cells
        row_theta, row_inverse = theta[group[c]], inverse_theta[group[c]]
        row_logs, row_drops = logs[group[c]], drops[group[c]]
        scale, log_total = softmax_row(logits[i], bias, proportions)
        log_norm = math.log(np.float64(library[c])) - log_total
        total, total_slope = _nb_zeros(
            proportions, scale, library[c], row_theta, row_inverse, log_p, slope, theta_slope
        )
        # the log mean at the non-zero counts comes from the logits, before they are overwritten
        for j in range(indptr[c], indptr[c + 1]):
            if counts[j] > 0:
                g = indices[j]
                value, pull, theta_pull = nb_count(
                    counts[j], library[c] * proportions[g], row_theta[g], log_p[g], row_logs, row_drops, g
                )
                total += value + np.float64(counts[j]) * (logits[i, g] + log_norm)
                slope[g] += pull
                total_slope += pull
                theta_slope[g] += theta_pull
        log_probability[i] = total
        if not want_gradient:
            continue
        _gradient_row(
            slope, np.float32(total_slope), proportions, theta_slope, weight[i],
            logits[i], bias_gradient, theta_gradient[group[c]],
        )  # fmt: skip


def _zinb_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """As `_nb_block`, with zero inflation: the second half of each row holds the logits q of pi.

    log p(0) = log(pi + (1 - pi) NB(0)) = log(exp(q) + NB(0)) - softplus(q). A zero comes from the negative binomial
    with probability sigmoid(log NB(0) - q); the slopes of the negative binomial are multiplied by it.
    """
    n_genes = logits.shape[1] // 2
    n_cells = library.size
    theta, inverse_theta, logs, drops = head.theta, head.inverse_theta, head.logs, head.drops
    proportions, log_p = vector(room, 0, n_genes), vector(room, n_genes, n_genes)
    slope, theta_slope = vector(room, 2 * n_genes, n_genes), vector(room, 3 * n_genes, n_genes)
    for i in range(first, last):
        c = i % n_cells
        row_theta, row_inverse = theta[group[c]], inverse_theta[group[c]]
        row_logs, row_drops = logs[group[c]], drops[group[c]]
        row, inflation = logits[i, :n_genes], logits[i, n_genes:]
        scale, log_total = softmax_row(row, bias[:n_genes], proportions)
        add(inflation, bias[n_genes:])
        log_norm = math.log(np.float64(library[c])) - log_total
        _nb_zeros(proportions, scale, library[c], row_theta, row_inverse, log_p, slope, theta_slope)
        total = 0.0
        for j in range(indptr[c], indptr[c + 1]):
            if counts[j] > 0:  # replaces the value at a zero; SEEN marks the gene for `_inflate`
                g = indices[j]
                value, pull, theta_pull = nb_count(
                    counts[j], library[c] * proportions[g], row_theta[g], log_p[g], row_logs, row_drops, g
                )
                total += value + np.float64(counts[j]) * (row[g] + log_norm) + log_p[g]
                slope[g] += pull
                theta_slope[g] += theta_pull
                log_p[g] = SEEN
        _inflate(log_p, inflation, slope, theta_slope)
        log_probability[i] = total + _sum(log_p)
        if not want_gradient:
            continue
        _gradient_row(
            slope, np.float32(_sum(slope)), proportions, theta_slope, weight[i],
            row, bias_gradient[:n_genes], theta_gradient[group[c]],
        )  # fmt: skip
        for g in range(n_genes):
            inflation[g] *= weight[i]
        add(bias_gradient[n_genes:], inflation)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _inflate(log_p, inflation, slope, theta_slope):
    """Turns log NB(0) and its slopes into log p(0) and its slopes, and q into d log p / d q.

    If log_p is SEEN, there is a count: softplus(q) is subtracted from log p, and the slopes do not change.
    """
    for g in range(log_p.size):
        q = inflation[g]
        seen = log_p[g] > 0
        e = exp(-abs(q))
        r = ONE / (ONE + e)
        softplus = max(q, np.float32(0.0)) + log1p(e)[0]
        sigmoid = r if q >= 0 else e * r
        base = q if seen else log_p[g]
        gap = base - q
        e = exp(-abs(gap))
        r = ONE / (ONE + e)
        from_base = r if gap >= 0 else e * r
        log_zero = max(base, q) + log1p(e)[0]
        log_p[g] = -softplus if seen else log_zero - softplus
        inflation[g] = -sigmoid if seen else (ONE - from_base) - sigmoid
        slope[g] = slope[g] if seen else slope[g] * from_base
        theta_slope[g] = theta_slope[g] if seen else theta_slope[g] * from_base


def _poisson_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                   log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """As `_nb_block`, without dispersion: the zeros of a row give -library in total, as its proportions sum to 1."""
    n_genes = logits.shape[1]
    n_cells = library.size
    proportions = vector(room, 0, n_genes)
    for i in range(first, last):
        c = i % n_cells
        scale, log_total = softmax_row(logits[i], bias, proportions)
        log_norm = math.log(np.float64(library[c])) - log_total
        total, seen = -np.float64(library[c]), 0.0
        for j in range(indptr[c], indptr[c + 1]):
            x = np.float64(counts[j])
            if x > 0:
                seen += x
                total += x * (logits[i, indices[j]] + log_norm) - log_factorial(x)
        log_probability[i] = total
        if not want_gradient:
            continue
        pulled = np.float32(-seen * scale * weight[i])
        for g in range(n_genes):
            logits[i, g] = pulled * proportions[g]
        for j in range(indptr[c], indptr[c + 1]):
            logits[i, indices[j]] += weight[i] * counts[j]
        add(bias_gradient, logits[i])


def _bernoulli_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                     log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """Bernoulli log p per row from logits; logits become weight x d log p / d logits. Arguments as in `_nb_block`."""
    n_genes = logits.shape[1]
    n_cells = library.size
    log_p = vector(room, 0, n_genes)
    for i in range(first, last):
        c = i % n_cells
        add(logits[i], bias)
        total = 0.0
        for j in range(indptr[c], indptr[c + 1]):
            total += np.float64(counts[j]) * np.float64(logits[i, indices[j]])
        _bernoulli_zeros(logits[i], weight[i], log_p)
        log_probability[i] = total + _sum(log_p)
        for j in range(indptr[c], indptr[c + 1]):
            logits[i, indices[j]] += weight[i] * counts[j]
        add(bias_gradient, logits[i])


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _bernoulli_zeros(logits, weight, log_p):
    """log p(0) = -softplus(logit), and logits become weight x its slope, -sigmoid(logit)."""
    for g in range(logits.size):
        e = exp(-abs(logits[g]))
        r = ONE / (ONE + e)
        log_p[g] = -max(logits[g], np.float32(0.0)) - log1p(e)[0]
        logits[g] = -weight * (r if logits[g] >= 0 else e * r)


def _gaussian_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                    log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """Normal log density per row of the standardised values `counts`, of which all are stored, as in `_nb_block`.

    theta_gradient is that of log_free_scale.
    """
    n_genes = logits.shape[1]
    log_p = vector(room, 0, n_genes)
    for i in range(first, last):
        _gaussian_row(
            counts[indptr[i] : indptr[i + 1]], head.precision, head.share, head.constant, weight[i], logits[i],
            bias, log_p, bias_gradient, theta_gradient[0],
        )  # fmt: skip
        log_probability[i] = _sum(log_p)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _gaussian_row(values, precision, share, constant, weight, logits, bias, log_p, bias_gradient, theta_gradient):
    for g in range(values.size):
        gap = values[g] - (logits[g] + bias[g])
        pull = gap * precision[g]
        log_p[g] = -(constant[g] + np.float32(0.5) * gap * pull)
        logits[g] = weight * pull
        bias_gradient[g] += weight * pull
        theta_gradient[g] += weight * share[g] * (gap * pull - ONE)


def _joint_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                 log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """That of the head's kind."""
    if head.is_real:
        log_prob_block(head.real, logits, bias, indptr, indices, counts, library, group, weight, first, last,
                       want_gradient, log_probability, bias_gradient, theta_gradient, room)  # fmt: skip
    else:
        log_prob_block(head.counts, logits, bias, indptr, indices, counts, library, group, weight, first, last,
                       want_gradient, log_probability, bias_gradient, theta_gradient, room)  # fmt: skip


@njit(forceinline=True, fastmath=STRICT, **INNER)
def log1p_row(values, scale, out):
    """out[j] = log(1 + scale * values[j])."""
    for j in range(values.size):
        out[j] = log1p(scale * values[j])[0]


@kernel
def log1p_scaled(counter, block, indptr, values, scale, out):
    """out[j] = log(1 + scale[row of j] * values[j])."""
    while True:
        first = block * fetch_add(counter, 0, 1)
        if first >= scale.size:
            return
        for i in range(first, min(first + block, scale.size)):
            log1p_row(values[indptr[i] : indptr[i + 1]], scale[i], out[indptr[i] : indptr[i + 1]])


def log_prob_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                   log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """log p of some rows under the distribution that the type of `head` names: see `_nb_block`."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(log_prob_block, jit_options=PART)
def _log_prob_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                    log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    return BLOCKS[head.instance_class]


BLOCKS = {
    NegativeBinomialHead: _nb_block,
    ZeroInflatedHead: _zinb_block,
    PoissonHead: _poisson_block,
    BernoulliHead: _bernoulli_block,
    GaussianHead: _gaussian_block,
    JointHead: _joint_block,
}


@kernel
def log_prob_rows(counter, head, features, weight, logits, bias, indptr, indices, counts, library, group, row_weight,
                  block, want_gradient, of_features, log_probability, bias_gradient, theta_gradient):  # fmt: skip
    """The output layer and `log_prob_block`, in blocks of rows; each has its own slab of gradients.

    With want_gradient, of_features is filled with row_weight x d log p / d features.
    """
    n_rows = logits.shape[0]
    room = np.empty(ROWS_IN_HEAD * logits.shape[1], np.float32)
    while True:
        b = fetch_add(counter, 0, 1)
        first, last = b * block, min((b + 1) * block, n_rows)
        if first >= n_rows:
            return
        multiply(features[first:last], False, weight, True, np.float32(0.0), logits[first:last])
        log_prob_block(head, logits, bias, indptr, indices, counts, library, group, row_weight, first, last,
                       want_gradient, log_probability, bias_gradient[b], theta_gradient[b], room)  # fmt: skip
        if want_gradient:
            multiply(logits[first:last], False, weight, False, np.float32(0.0), of_features[first:last])


@kernel
def multiply_pieces(counter, a, transpose_a, b, beta, out):
    """out = a @ b + beta out, or a.T @ b + beta out, in blocks of rows of `out`."""
    n = out.shape[0]
    while True:
        first = PIECE * fetch_add(counter, 0, 1)
        if first >= n:
            return
        last = min(first + PIECE, n)
        part = a[:, first:last] if transpose_a else a[first:last]
        multiply(part, transpose_a, b, False, beta, out[first:last])
