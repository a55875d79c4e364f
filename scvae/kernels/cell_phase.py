"""Phase 1 of a training step (`scvae.kernels.steps`): a block of cells, forwards and backwards."""

import math

import numpy as np
from numba import njit

from .compiling import INNER
from .cpu import log_prob_block
from .cpu_sparse import add_weighted, fill_row
from .expected import input_row
from .label_term import add_labels
from .layers import HALF, ONE, ZERO, clear
from .native import float64s, int32s, int64s, item_of, matrix, multiply, vector
from .network import decode, decode_backward, encode, encode_backward, inputs_of, of_layer
from .pairs import add_consistency
from .prior import fill_kl
from .records import (
    ACTIVE,
    LOG_VARIANCE,
    MEAN,
    OF_FEATURES,
    OF_LATENT,
    OF_VARIANCE,
    ROWS_IN_HEAD,
    ROWS_OF_HEAD,
    WEIGHT,
)


@njit(forceinline=True, **INNER)
def _first_layer(start, first, n, hidden, job, head):
    """Adds to `hidden` the product of the encoder's input of some cells with the weights of the genes."""
    weights = matrix(job.values, job.genes_place, job.n_genes, job.width)
    dense, starts, scale = job.dense, int64s(job.indptr, start + first, n + 1), vector(job.scale, start + first, n)
    for i in range(n):
        a, stored = starts[i], starts[i + 1] - starts[i]
        log_counts, genes = vector(job.log_counts, a, stored), int32s(job.indices, a, stored)
        input_row(head, vector(job.counts, a, stored), scale[i], log_counts)
        if dense:
            fill_row(genes, log_counts, vector(job.dense_rows, (first + i) * job.n_genes, job.n_genes))
        else:
            add_weighted(vector(hidden, i * job.width, job.width), log_counts, genes, weights)
    if dense:
        rows = matrix(hidden, 0, n, job.width)
        multiply(matrix(job.dense_rows, first * job.n_genes, n, job.n_genes), False, weights, False, ONE, rows)


@njit(forceinline=True, **INNER)
def _draw(n, room, at, noise, job):
    """z of each cell into the input of the decoder."""
    latent = job.n_latent
    mean, log_variance = matrix(room, at[MEAN], n, latent), matrix(room, at[LOG_VARIANCE], n, latent)
    z = inputs_of(0, n, room, at, job)
    for i in range(n):
        for k in range(latent):
            z[i, k] = mean[i, k] + np.float32(math.exp(HALF * log_variance[i, k])) * noise[i, k]


@njit(forceinline=True, **INNER)
def _draw_backward(n, room, at, noise, pull, job):
    """Gradients of mean and log variance from those of the draws, and from the KL, of weight `pull`.

    With a mixture as prior, what log p(z) has to do with them is in the gradients of the draws.
    """
    latent, own = job.n_latent, ONE if job.n_components == 0 else ZERO
    mean, log_variance = matrix(room, at[MEAN], n, latent), matrix(room, at[LOG_VARIANCE], n, latent)
    of_latent, of_variance = matrix(room, at[OF_LATENT], n, latent), matrix(room, at[OF_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            spread = np.float32(math.exp(HALF * log_variance[i, k]))
            of_variance[i, k] = HALF * (of_latent[i, k] * spread * noise[i, k] + pull * (own * spread * spread - ONE))
            of_latent[i, k] += own * pull * mean[i, k]


@njit(forceinline=True, **INNER)
def _head_of_cells(start, first, n, n_all, piece, added, room, at, job, head):
    """log p of a measurement of some cells from their features, 0 without it; logits become their gradient.

    OF_FEATURES becomes the gradient of the features, plus `added` times what it was.
    """
    n_logits, n_theta = job.n_logits, job.n_theta
    output = matrix(job.values, job.output_place, n_logits, job.n_features)
    logits, weight = matrix(job.logits, first * n_logits, n, n_logits), vector(room, at[WEIGHT], n)
    present, log_probability = vector(job.present, start + first, n), float64s(job.log_probability, first, n)
    for i in range(n):
        weight[i] = present[i] * np.float32(-job.term_weight / n_all)
    multiply(matrix(job.features, first * job.n_features, n, job.n_features), False, output, True, ZERO, logits)
    of_bias = vector(job.of_bias, piece * n_logits, n_logits)
    clear(of_bias)
    of_theta = vector(job.of_theta, piece * n_theta * job.n_genes, n_theta * job.n_genes)
    clear(of_theta)
    starts, n_stored = int64s(job.indptr, start + first, n + 1), int64s(job.indptr, start + first + n, 1)[0]
    log_prob_block(
        head, logits, vector(job.values, job.bias_place, n_logits), starts, int32s(job.indices, 0, n_stored),
        vector(job.counts, 0, n_stored), vector(job.library, start + first, n), int64s(job.group, start + first, n),
        weight, 0, n, True, log_probability, of_bias,
        matrix(of_theta, 0, n_theta, job.n_genes),
        vector(room, at[ROWS_OF_HEAD], ROWS_IN_HEAD * job.n_genes),
    )  # fmt: skip
    multiply(logits, False, output, False, added, matrix(room, at[OF_FEATURES], n, job.n_features))
    for i in range(n):
        log_probability[i] *= present[i]


@njit(forceinline=True, **INNER)
def cells_of_step(piece, step, room, at, pairs, pairs_at, jobs, heads, kind):
    """Phase 1 for a block of cells: log p and KL, and all gradients but those of weights that belong to genes."""
    job = jobs[0]
    starts, dials = int64s(job.starts, step, 2), vector(job.dials, 3 * step, 3)
    start, n_all = starts[0], starts[1] - starts[0]
    first, width, latent = piece * job.block, job.width, job.n_latent
    n = min(first + job.block, n_all) - first
    slab = vector(job.of_small, piece * job.n_small, job.n_small)
    clear(slab)
    covariates = matrix(job.covariates, (start + first) * job.n_covariates, n, job.n_covariates)
    conditions = matrix(job.conditions, (start + first) * job.n_conditions, n, job.n_conditions)
    noise, pull = matrix(job.noise, (start + first) * latent, n, latent), dials[0] / np.float32(n_all)

    of_covariates = matrix(job.values, job.covariates_place, job.n_covariates, width)
    multiply(covariates, False, of_covariates, False, ZERO, of_layer(room, at, ACTIVE, 0, n, width))
    for v in range(len(heads)):
        _first_layer(start, first, n, vector(room, at[ACTIVE], n * width), jobs[v], item_of(heads, v))
    encode(n, room, at, job)
    _draw(n, room, at, noise, job)
    features = matrix(job.features, first * job.n_features, n, job.n_features)
    decode(n, room, at, conditions, job, features)
    for v in range(len(heads)):
        _head_of_cells(start, first, n, n_all, piece, ONE if v > 0 else ZERO, room, at, jobs[v], item_of(heads, v))
    decode_backward(n, room, at, job, slab)
    add_labels(start + first, n, n_all, room, at, job, slab)
    fill_kl(n, room, at, noise, pull, job, slab, float64s(job.kl, first, n), kind.prior)
    _draw_backward(n, room, at, noise, pull, job)
    of_first = matrix(job.of_first, first * width, n, width)
    encode_backward(n, room, at, covariates, job, slab, of_first)
    weight = pull * dials[2]
    add_consistency(start, first, n, n_all, weight, room, at, pairs, pairs_at, jobs, heads, slab, kind.pairs)
