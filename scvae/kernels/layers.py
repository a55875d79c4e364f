"""Numba kernels for the small layers of encoder and decoder: forwards and backwards for the cells of a block.

Matrices of weights are inputs x outputs. Gradients of weights are added to what their arrays hold. Loops over units
have no branches inside, and no slice of a matrix is assigned: LLVM takes seconds over each of either.
"""

import math

import numpy as np
from numba import njit

from .compiling import INNER, SUMS
from .native import multiply, vector

EPS = np.float32(1e-5)  # as in torch's LayerNorm
ZERO, HALF, ONE = np.float32(0.0), np.float32(0.5), np.float32(1.0)
BETA1, BETA2, TINY = np.float32(0.9), np.float32(0.999), np.float32(1e-8)  # as in `scvae.model.optimizer`


@njit(forceinline=True, **INNER)
def clear(target):
    """target = 0."""
    for k in range(target.size):
        target[k] = ZERO


@njit(forceinline=True, **INNER)
def add(target, values):
    """target += values."""
    for k in range(target.size):
        target[k] += values[k]


@njit(**INNER)
def copy_columns(rows, start, n, target, target_start, factor):
    """Copies `n` columns from `start` on, times the factor, to those of `target` from `target_start` on."""
    for i in range(rows.shape[0]):
        source = vector(rows, i * rows.shape[1] + start, n)
        copy = vector(target, i * target.shape[1] + target_start, n)
        for k in range(n):
            copy[k] = factor * source[k]


@njit(**INNER)
def add_to_rows(rows, values):
    """Adds the values to each row."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            rows[i, k] += values[k]


@njit(**INNER)
def add_rows(rows, out):
    """Adds the sum of the rows."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            out[k] += rows[i, k]


@njit(**INNER)
def linear_backward(x, weight, of_out, of_weight, of_bias, of_x, beta):
    """Adds to the gradients of weight and bias of x @ weight + bias; of_x = its gradient + beta of_x."""
    add_rows(of_out, of_bias)
    multiply(x, True, of_out, False, ONE, of_weight)
    multiply(of_out, False, weight, True, beta, of_x)


@njit(forceinline=True, fastmath=SUMS, **INNER)
def normalise(rows, weight, bias, normed, scale):
    """rows = relu(layer norm of the rows); `normed` and `scale` are kept for `normalise_backward`."""
    n = np.float32(rows.shape[1])
    for i in range(rows.shape[0]):
        total, square = ZERO, ZERO
        for k in range(rows.shape[1]):
            total += rows[i, k]
        mean = total / n
        for k in range(rows.shape[1]):
            square += (rows[i, k] - mean) * (rows[i, k] - mean)
        factor = ONE / np.float32(math.sqrt(square / n + EPS))
        scale[i] = factor
        for k in range(rows.shape[1]):
            value = (rows[i, k] - mean) * factor
            normed[i, k] = value
            rows[i, k] = max(value * weight[k] + bias[k], ZERO)


@njit(forceinline=True, fastmath=SUMS, **INNER)
def normalise_backward(gradient, weight, normed, scale, of_weight, of_bias):
    """Turns the gradient of a layer norm's output into that of its input."""
    n = np.float32(normed.shape[1])
    for i in range(normed.shape[0]):
        total, product = ZERO, ZERO
        for k in range(normed.shape[1]):
            of_bias[k] += gradient[i, k]
            of_weight[k] += gradient[i, k] * normed[i, k]
        for k in range(normed.shape[1]):
            gradient[i, k] *= weight[k]
            total += gradient[i, k]
            product += gradient[i, k] * normed[i, k]
        total, product = total / n, product / n
        for k in range(normed.shape[1]):
            gradient[i, k] = scale[i] * (gradient[i, k] - total - normed[i, k] * product)


@njit(**INNER)
def relu(rows):
    """rows = the positive part."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            rows[i, k] = max(rows[i, k], ZERO)


@njit(**INNER)
def relu_backward(gradient, rows):
    """Turns the gradient of relu, whose values are `rows`, into that of its argument."""
    for i in range(rows.shape[0]):
        for k in range(rows.shape[1]):
            gradient[i, k] = gradient[i, k] if rows[i, k] > ZERO else ZERO


@njit(**INNER)
def kl_of(mean, log_variance, out):
    """KL(N(mean, exp(log_variance)) || N(0, 1)) of each row, summed over dimensions, in nats."""
    for i in range(out.size):
        total = 0.0
        for k in range(mean.shape[1]):
            m, v = np.float64(mean[i, k]), np.float64(log_variance[i, k])
            total += 0.5 * (m * m + math.exp(v) - 1.0 - v)
        out[i] = total


@njit(forceinline=True, fastmath={"contract", "arcp", "nsz", "nnan"}, **INNER)
def adam(start, n, job, rate, root, decay, centre):
    """One step of Adam (Kingma & Ba 2015, algorithm 1) for `n` parameters from `start` on.

    `rate` and `root` include its bias corrections; `decay` is the precision of a normal prior around `centre`.
    """
    values, gradients = vector(job.values, start, n), vector(job.gradients, start, n)
    means, squares = vector(job.means, start, n), vector(job.squares, start, n)
    for k in range(n):
        gradient = gradients[k] + decay * (values[k] - centre)
        mean = BETA1 * means[k] + (ONE - BETA1) * gradient
        square = BETA2 * squares[k] + (ONE - BETA2) * gradient * gradient
        means[k], squares[k] = mean, square
        values[k] -= rate * mean / (np.float32(math.sqrt(square)) * root + TINY)
