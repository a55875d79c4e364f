"""The consistency term for the pairs of a block of cells: `scvae.training.consistency`."""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from .compiling import INNER, PART
from .expected import expected_log1p_row
from .layers import HALF, ONE, ZERO
from .native import int64s, item_of, matrix, multiply, vector
from .network import decode, encode, encode_backward, inputs_of, of_layer
from .records import (
    ACTIVE,
    LOG_VARIANCE,
    MEAN,
    OF_FEATURES,
    OF_LATENT,
    OF_VARIANCE,
    PAIR_CONDITIONS,
    PAIR_COVARIATES,
    PAIR_LOGITS,
    Pairs,
)


@njit(forceinline=True, **INNER)
def n_chosen(n, every):
    """How many of the first `n` cells of a step the consistency term uses."""
    return 2 * ((n + every - 2) // every) if n > 1 else 0


@njit(forceinline=True, **INNER)
def _cells_of_pair(start, before, q, n_pairs, every):
    """The cell of row `q`, and the one whose conditions the row has: itself in the first half, then its partner."""
    k = before + q % n_pairs
    cell, partner = start + k // 2 * every + k % 2, start + k // 2 * every + 1 - k % 2
    return cell, cell if q < n_pairs else partner


@njit(forceinline=True, **INNER)
def _copy(rows, i, n, target, q):
    """The first `n` columns of row `i` to row `q` of the target."""
    source, copy = vector(rows, i * rows.shape[1], n), vector(target, q * target.shape[1], n)
    for k in range(n):
        copy[k] = source[k]


@njit(forceinline=True, **INNER)
def _fill(start, first, before, n_pairs, n, room, at, pairs, pairs_at, job):
    """For each row, the encoder's covariates and the features of the decoded cell."""
    every, latent, both = 2 * job.one_pair_in, job.n_latent, 2 * n_pairs
    n_covariates, n_conditions = job.n_covariates, job.n_conditions
    covariates = matrix(pairs, pairs_at[PAIR_COVARIATES], both, n_covariates)
    conditions = matrix(pairs, pairs_at[PAIR_CONDITIONS], both, n_conditions)
    features = matrix(pairs, pairs_at[OF_FEATURES], both, job.n_features)
    z, drawn = inputs_of(0, n, room, at, job), inputs_of(0, both, pairs, pairs_at, job)
    for q in range(both):
        cell, source = _cells_of_pair(start, before, q, n_pairs, every)
        _copy(z, cell - start - first, latent, drawn, q)
        _copy(matrix(job.conditions, source * n_conditions, 1, n_conditions), 0, n_conditions, conditions, q)
        _copy(matrix(job.covariates, source * n_covariates, 1, n_covariates), 0, n_covariates, covariates, q)
        _copy(matrix(job.covariates, cell * n_covariates, 1, n_covariates), 0, job.n_own, covariates, q)
    decode(both, pairs, pairs_at, conditions, job, features)


@njit(forceinline=True, **INNER)
def _expect(start, before, n_pairs, pairs, pairs_at, job, head):
    """The expected log counts of the decoded cell of each row, from its features."""
    every, n_genes, n_logits, both = 2 * job.one_pair_in, job.n_genes, job.n_logits, 2 * n_pairs
    features = matrix(pairs, pairs_at[OF_FEATURES], both, job.n_features)
    logits = matrix(pairs, pairs_at[PAIR_LOGITS], both, n_logits)
    multiply(features, False, matrix(job.values, job.output_place, n_logits, job.n_features), True, ZERO, logits)
    bias = vector(job.values, job.bias_place, n_logits)
    for q in range(both):
        cell, source = _cells_of_pair(start, before, q, n_pairs, every)
        expected_log1p_row(
            head, vector(logits, q * n_logits, n_logits), bias, int64s(job.group, source, 1)[0],
            vector(job.library, cell, 1)[0], vector(job.scale, cell, 1)[0],
            vector(job.expected, (2 * before + q) * n_genes, n_genes),
        )  # fmt: skip


@njit(forceinline=True, **INNER)
def _consistency(start, first, n, n_all, weight, room, at, pairs, pairs_at, jobs, heads, slab, kind):
    """The term of `scvae.training.consistency.inconsistency` for the pairs of a block, in gradients of the encoder."""
    job = jobs[0]
    every, latent, width, n_covariates = 2 * job.one_pair_in, job.n_latent, job.width, job.n_covariates
    before = n_chosen(first, every)  # the rows of a block follow those of the blocks before it
    n_pairs = n_chosen(first + n, every) - before
    if n_pairs == 0:
        return
    both = 2 * n_pairs
    _fill(start, first, before, n_pairs, n, room, at, pairs, pairs_at, job)
    covariates = matrix(pairs, pairs_at[PAIR_COVARIATES], both, n_covariates)
    hidden = of_layer(pairs, pairs_at, ACTIVE, 0, both, width)
    multiply(covariates, False, matrix(job.values, job.covariates_place, n_covariates, width), False, ZERO, hidden)
    for v in range(len(heads)):
        _expect(start, before, n_pairs, pairs, pairs_at, jobs[v], item_of(heads, v))
        n_genes = jobs[v].n_genes
        expected = matrix(jobs[v].expected, 2 * before * n_genes, both, n_genes)
        multiply(expected, False, matrix(job.values, jobs[v].genes_place, n_genes, width), False, ONE, hidden)
    encode(both, pairs, pairs_at, job)
    mean, log_variance = (
        matrix(pairs, pairs_at[MEAN], both, latent),
        matrix(pairs, pairs_at[LOG_VARIANCE], both, latent),
    )
    of_mean, of_variance = (
        matrix(pairs, pairs_at[OF_LATENT], both, latent),
        matrix(pairs, pairs_at[OF_VARIANCE], both, latent),
    )
    pull = job.one_pair_in * weight
    for p in range(n_pairs):
        q = n_pairs + p
        for k in range(latent):
            variance = np.float32(math.exp(HALF * (log_variance[p, k] + log_variance[q, k])))
            of_mean[p, k] = pull * (mean[p, k] - mean[q, k]) / variance
            of_mean[q, k] = -of_mean[p, k]
            of_variance[p, k], of_variance[q, k] = ZERO, ZERO
    of_expected = matrix(job.of_expected, 2 * before * width, both, width)
    encode_backward(both, pairs, pairs_at, covariates, job, slab, of_expected)


def add_consistency(start, first, n, n_all, weight, room, at, pairs, pairs_at, jobs, heads, slab, kind):
    """`_consistency` if `kind` is `Pairs`, so that a fit without conditions need not compile it."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(add_consistency, jit_options=PART)
def _add_consistency(start, first, n, n_all, weight, room, at, pairs, pairs_at, jobs, heads, slab, kind):
    return _consistency.py_func if kind.instance_class is Pairs else _nothing


def _nothing(start, first, n, n_all, weight, room, at, pairs, pairs_at, jobs, heads, slab, kind):
    pass
