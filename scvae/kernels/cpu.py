"""Numba kernels for the CPU: fast versions of the operations in `scvae.kernels.reference`.

Four rules hold throughout this file.

* Special functions are evaluated at non-zero counts only; a zero costs one logarithm.
* `_exp` and `_log1p` are branch-free polynomials in single precision, so that LLVM turns a loop over genes into vector
  instructions; a call into the C library would not vectorise.
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

from .native import INNER, PART, fetch_add, kernel, multiply, vector
from .records import ROWS_IN_HEAD, TABLE, BernoulliHead, NegativeBinomialHead, PoissonHead, ZeroInflatedHead

LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.693359375)
LN2_LOW = np.float32(-2.12194440e-4)
LN2 = np.float32(0.6931471805599453)
HALF, ONE, TWO = np.float32(0.5), np.float32(1.0), np.float32(2.0)
TINY = np.float32(np.finfo(np.float32).eps)  # least probability of a count above zero
SEEN = np.float32(1.0)  # marks a count; it cannot be the log-probability of a zero, which is never positive
SMALL_COUNT = 16  # up to this count, lgamma and digamma differences are finite products and sums
PIECE = 256  # rows or columns of a matrix that a thread takes at a time
SLICE = 512  # number of genes summed in float32; longer sums are accumulated in float64
LOG_FACTORIAL = np.array([math.lgamma(x + 1.0) for x in range(256)])

# Contraction and reciprocals are allowed; sums keep the order in which they are written (no "reassoc"), except in SUMS.
STRICT = {"contract", "arcp", "nsz", "nnan"}
SUMS = {"contract", "arcp", "nsz", "nnan", "reassoc"}


@njit(inline="always")
def _exp(x):
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
def _log1p(u):
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
def _digamma_rise(x, theta):
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
def _rising(x, theta, scale):
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
    return value, _digamma_rise(x, theta)


@kernel
def count_tables(theta):
    """1 / theta, and the lgamma and digamma terms of `_nb_count` for x = 1 ... TABLE, in row x - 1 of each group.

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
        log, _, r = _log1p(u)
        next_logs[g] = logs[g] + (log - factor)
        next_drops[g] = drops[g] + u * r


@njit(forceinline=True, **INNER)
def _nb_count(count, mean, theta, log_zero, logs, drops, g):
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
    """`_nb_count` in float64, for any x > 0."""
    scale = theta + mean
    value, rise = _rising(x, theta, scale)
    return value, np.float32(x * theta / scale), np.float32(theta * rise - x * theta / scale)


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
        e = _exp(logits[g] - top)
        out[g] = e
        total += e
    return total


@njit(forceinline=True, **INNER)
def _softmax_row(logits, bias, out):
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
        spread, excess, r = _log1p(mean * inverse_theta[g])
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


@njit(forceinline=True, fastmath=SUMS, **INNER)
def _add(target, values):
    for g in range(values.size):
        target[g] += values[g]


@njit(forceinline=True, **INNER)
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
        scale, log_total = _softmax_row(logits[i], bias, proportions)
        log_norm = math.log(np.float64(library[c])) - log_total
        total, total_slope = _nb_zeros(
            proportions, scale, library[c], row_theta, row_inverse, log_p, slope, theta_slope
        )
        # the log mean at the non-zero counts comes from the logits, before they are overwritten
        for j in range(indptr[c], indptr[c + 1]):
            if counts[j] > 0:
                g = indices[j]
                value, pull, theta_pull = _nb_count(
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


@njit(forceinline=True, **INNER)
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
        scale, log_total = _softmax_row(row, bias[:n_genes], proportions)
        _add(inflation, bias[n_genes:])
        log_norm = math.log(np.float64(library[c])) - log_total
        _nb_zeros(proportions, scale, library[c], row_theta, row_inverse, log_p, slope, theta_slope)
        total = 0.0
        for j in range(indptr[c], indptr[c + 1]):
            if counts[j] > 0:  # replaces the value at a zero; SEEN marks the gene for `_inflate`
                g = indices[j]
                value, pull, theta_pull = _nb_count(
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
        _add(bias_gradient[n_genes:], inflation)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _inflate(log_p, inflation, slope, theta_slope):
    """Turns log NB(0) and its slopes into log p(0) and its slopes, and q into d log p / d q.

    If log_p is SEEN, there is a count: softplus(q) is subtracted from log p, and the slopes do not change.
    """
    for g in range(log_p.size):
        q = inflation[g]
        seen = log_p[g] > 0
        e = _exp(-abs(q))
        r = ONE / (ONE + e)
        softplus = max(q, np.float32(0.0)) + _log1p(e)[0]
        sigmoid = r if q >= 0 else e * r
        base = q if seen else log_p[g]
        gap = base - q
        e = _exp(-abs(gap))
        r = ONE / (ONE + e)
        from_base = r if gap >= 0 else e * r
        log_zero = max(base, q) + _log1p(e)[0]
        log_p[g] = -softplus if seen else log_zero - softplus
        inflation[g] = -sigmoid if seen else (ONE - from_base) - sigmoid
        slope[g] = slope[g] if seen else slope[g] * from_base
        theta_slope[g] = theta_slope[g] if seen else theta_slope[g] * from_base


@njit(forceinline=True, **INNER)
def _poisson_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                   log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """As `_nb_block`, without dispersion: the zeros of a row give -library in total, as its proportions sum to 1."""
    n_genes = logits.shape[1]
    n_cells = library.size
    proportions = vector(room, 0, n_genes)
    for i in range(first, last):
        c = i % n_cells
        scale, log_total = _softmax_row(logits[i], bias, proportions)
        log_norm = math.log(np.float64(library[c])) - log_total
        total, seen = -np.float64(library[c]), 0.0
        for j in range(indptr[c], indptr[c + 1]):
            x = np.float64(counts[j])
            if x > 0:
                seen += x
                total += x * (logits[i, indices[j]] + log_norm) - _log_factorial(x)
        log_probability[i] = total
        if not want_gradient:
            continue
        pulled = np.float32(-seen * scale * weight[i])
        for g in range(n_genes):
            logits[i, g] = pulled * proportions[g]
        for j in range(indptr[c], indptr[c + 1]):
            logits[i, indices[j]] += weight[i] * counts[j]
        _add(bias_gradient, logits[i])


@njit(forceinline=True, **INNER)
def _log_factorial(x):
    return LOG_FACTORIAL[np.int64(x)] if x < LOG_FACTORIAL.size and x == math.floor(x) else math.lgamma(x + 1.0)


@njit(forceinline=True, **INNER)
def _bernoulli_block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
                     log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
    """Bernoulli log p per row from logits; logits become weight x d log p / d logits. Arguments as in `_nb_block`."""
    n_genes = logits.shape[1]
    n_cells = library.size
    log_p = vector(room, 0, n_genes)
    for i in range(first, last):
        c = i % n_cells
        _add(logits[i], bias)
        total = 0.0
        for j in range(indptr[c], indptr[c + 1]):
            total += np.float64(counts[j]) * np.float64(logits[i, indices[j]])
        _bernoulli_zeros(logits[i], weight[i], log_p)
        log_probability[i] = total + _sum(log_p)
        for j in range(indptr[c], indptr[c + 1]):
            logits[i, indices[j]] += weight[i] * counts[j]
        _add(bias_gradient, logits[i])


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _bernoulli_zeros(logits, weight, log_p):
    """log p(0) = -softplus(logit), and logits become weight x its slope, -sigmoid(logit)."""
    for g in range(logits.size):
        e = _exp(-abs(logits[g]))
        r = ONE / (ONE + e)
        log_p[g] = -max(logits[g], np.float32(0.0)) - _log1p(e)[0]
        logits[g] = -weight * (r if logits[g] >= 0 else e * r)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def log1p_row(values, scale, out):
    """out[j] = log(1 + scale * values[j])."""
    for j in range(values.size):
        out[j] = _log1p(scale * values[j])[0]


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
    block = BLOCKS[head.instance_class]

    def call(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
             log_probability, bias_gradient, theta_gradient, room):  # fmt: skip
        block(head, logits, bias, indptr, indices, counts, library, group, weight, first, last, want_gradient,
              log_probability, bias_gradient, theta_gradient, room)  # fmt: skip

    return call


BLOCKS = {
    NegativeBinomialHead: _nb_block,
    ZeroInflatedHead: _zinb_block,
    PoissonHead: _poisson_block,
    BernoulliHead: _bernoulli_block,
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
def multiply_rows(counter, a, b, beta, out):
    """out = a @ b + beta out, in blocks of rows of `a`."""
    n = out.shape[0]
    while True:
        first = PIECE * fetch_add(counter, 0, 1)
        if first >= n:
            return
        last = min(first + PIECE, n)
        multiply(a[first:last], False, b, False, beta, out[first:last])


@kernel
def multiply_transposed(counter, a, b, beta, out):
    """out = a.T @ b + beta out, in blocks of columns of `a`."""
    n = out.shape[0]
    while True:
        first = PIECE * fetch_add(counter, 0, 1)
        if first >= n:
            return
        last = min(first + PIECE, n)
        multiply(a[:, first:last], True, b, False, beta, out[first:last])


def expected_log1p_row(head, logits, bias, group, library, scale, out):
    """E log1p(scale * count) of one cell under `head`: see `scvae.likelihoods.counts.expected_log1p`.

    Adds the bias to the logits.
    """
    raise NotImplementedError("kernels call this; Python does not")


@overload(expected_log1p_row, jit_options=PART)
def _expected_log1p_row(head, logits, bias, group, library, scale, out):
    return EXPECTED[head.instance_class]


def _nb_expected(head, logits, bias, group, library, scale, out):
    factor, _ = _softmax_row(logits, bias, out)
    _nb_expected_row(out, np.float32(factor * library), head.theta[group], head.inverse_theta[group], scale)


def _zinb_expected(head, logits, bias, group, library, scale, out):
    n = out.size
    factor, _ = _softmax_row(logits[:n], bias[:n], out)
    _add(logits[n:], bias[n:])
    _zinb_expected_row(
        out, np.float32(factor * library), head.theta[group], head.inverse_theta[group], logits[n:], scale
    )


def _poisson_expected(head, logits, bias, group, library, scale, out):
    factor, _ = _softmax_row(logits, bias, out)
    _poisson_expected_row(out, np.float32(factor * library), scale)


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _nb_expected_row(out, factor, theta, inverse_theta, scale):
    for g in range(out.size):
        mean = factor * out[g]
        above_zero = max(ONE - _exp(-theta[g] * _log1p(mean * inverse_theta[g])[0]), TINY)
        out[g] = above_zero * _log1p(scale * mean / above_zero)[0]


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _zinb_expected_row(out, factor, theta, inverse_theta, zero_logit, scale):
    for g in range(out.size):
        e = _exp(-abs(zero_logit[g]))
        kept = (e if zero_logit[g] >= 0 else ONE) / (ONE + e)
        mean = factor * out[g]
        above_zero = max(kept * (ONE - _exp(-theta[g] * _log1p(mean * inverse_theta[g])[0])), TINY)
        out[g] = above_zero * _log1p(scale * kept * mean / above_zero)[0]


@njit(forceinline=True, fastmath=STRICT, **INNER)
def _poisson_expected_row(out, factor, scale):
    for g in range(out.size):
        mean = factor * out[g]
        above_zero = max(ONE - _exp(-mean), TINY)
        out[g] = above_zero * _log1p(scale * mean / above_zero)[0]


EXPECTED = {NegativeBinomialHead: _nb_expected, ZeroInflatedHead: _zinb_expected, PoissonHead: _poisson_expected}
