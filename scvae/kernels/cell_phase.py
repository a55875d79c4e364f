"""Phase 1 of a training step (`scvae.kernels.steps`): a block of cells, forwards and backwards."""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from .cpu import expected_log1p_row, log1p_row, log_prob_block
from .cpu_sparse import add_weighted, fill_row
from .layers import (
    add_rows,
    add_to_rows,
    clear,
    copy_columns,
    kl_of,
    linear_backward,
    normalise,
    normalise_backward,
    relu,
    relu_backward,
)
from .native import INNER, matrix, multiply, vector
from .records import (
    ALIGNED,
    BIAS,
    CONDITIONS,
    COVARIATES,
    DENSE,
    EXPECTED,
    FEATURES,
    LIBRARY,
    LOGITS,
    NOISE,
    OF_EXPECTED,
    OF_FIRST,
    SCALE,
    SMALL,
    THETA,
    VALUES,
    PairedShape,
)

ZERO, ONE, HALF = np.float32(0.0), np.float32(1.0), np.float32(0.5)
LEAST, MOST = np.float32(-12.0), np.float32(4.0)  # of the log variance: `scvae.model.encoder.LOG_VARIANCE_RANGE`

# sections of the room of a thread for the layers of a block of cells; the first four are for all layers of the encoder,
# and the same of the decoder begins at DECODED
ACTIVE, NORMED, INVERSE_SD, INPUT, DECODED = range(5)
MEAN, LOG_VARIANCE, RAW, OF_LATENT, OF_VARIANCE, OF_FEATURES, OF_WIDTH, OF_OTHER, WEIGHT, END = range(8, 18)


@njit(**INNER)
def sections_of_room(n, shape, n_encoder, n_decoder):
    """Where the sections of the room for `n` cells begin; the last number is `n`."""
    width, latent, conditions = shape.width, shape.n_latent, shape.n_conditions
    at = np.zeros(END + 2, np.int64)
    for first, layers in ((ACTIVE, n_encoder), (DECODED, n_decoder)):
        at[first + ACTIVE + 1], at[first + NORMED + 1] = layers * n * width, layers * n * width
        at[first + INVERSE_SD + 1] = layers * n
    at[DECODED + INPUT + 1] = max(n_decoder, 1) * n * (max(width, latent) + conditions)
    for section in (MEAN, LOG_VARIANCE, RAW, OF_LATENT, OF_VARIANCE):
        at[section + 1] = n * latent
    at[OF_FEATURES + 1], at[OF_WIDTH + 1], at[WEIGHT + 1] = n * shape.n_features, n * width, n
    at[OF_OTHER + 1] = n * (max(width, latent) + conditions)
    for section in range(1, END + 1):
        at[section] = at[section - 1] + (at[section] + ALIGNED - 1) // ALIGNED * ALIGNED
    at[END + 1] = n
    return at


@njit(forceinline=True, **INNER)
def _of_layer(room, at, section, layer, n, width):
    """The rows of a layer."""
    return matrix(room, at[section] + layer * at[END + 1] * width, n, width)


@njit(forceinline=True, **INNER)
def _activate(rows, layers, first, layer, room, at, has_norm, values):
    """rows = relu(norm(rows + bias)) for a layer of the encoder (first = ACTIVE) or the decoder (DECODED)."""
    n, width = rows.shape
    add_to_rows(rows, vector(values, layers[layer, 1], width))
    if has_norm:
        normalise(
            rows, vector(values, layers[layer, 2], width), vector(values, layers[layer, 3], width),
            _of_layer(room, at, first + NORMED, layer, n, width),
            vector(room, at[first + INVERSE_SD] + layer * at[END + 1], n),
        )  # fmt: skip
    else:
        relu(rows)


@njit(forceinline=True, **INNER)
def _activate_backward(gradient, layers, first, layer, room, at, has_norm, values, slab):
    """Turns the gradient of the rows of a layer into that of the product before `_activate`; adds those of weights."""
    n, width = gradient.shape
    relu_backward(gradient, _of_layer(room, at, first + ACTIVE, layer, n, width))
    if has_norm:
        normalise_backward(
            gradient, vector(values, layers[layer, 2], width), _of_layer(room, at, first + NORMED, layer, n, width),
            vector(room, at[first + INVERSE_SD] + layer * at[END + 1], n), vector(slab, layers[layer, 2], width),
            vector(slab, layers[layer, 3], width),
        )  # fmt: skip


@njit(forceinline=True, **INNER)
def _encode(n, room, at, shape, places, values):
    """Posterior of `n` cells, given the products of the first layer in its rows."""
    width, latent, n_layers = shape.width, shape.n_latent, places.encoder.shape[0]
    for layer in range(n_layers):
        rows = _of_layer(room, at, ACTIVE, layer, n, width)
        if layer > 0:
            weight = matrix(values, places.encoder[layer, 0], width, width)
            multiply(_of_layer(room, at, ACTIVE, layer - 1, n, width), False, weight, False, ZERO, rows)
        _activate(rows, places.encoder, ACTIVE, layer, room, at, shape.has_norm, values)
    last = _of_layer(room, at, ACTIVE, n_layers - 1, n, width)
    mean, raw = matrix(room, at[MEAN], n, latent), matrix(room, at[RAW], n, latent)
    multiply(last, False, matrix(values, places.mean, width, latent), False, ZERO, mean)
    multiply(last, False, matrix(values, places.log_variance, width, latent), False, ZERO, raw)
    add_to_rows(mean, vector(values, places.mean_bias, latent))
    add_to_rows(raw, vector(values, places.log_variance_bias, latent))
    log_variance = matrix(room, at[LOG_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            log_variance[i, k] = min(max(raw[i, k], LEAST), MOST)


@njit(forceinline=True, **INNER)
def _encode_backward(n, room, at, covariates, shape, places, values, slab, of_first):
    """Adds gradients of the encoder's small parameters to the slab; fills the gradient of the first layer's product.

    The gradients of mean and log variance are in OF_LATENT and OF_VARIANCE.
    """
    width, latent, n_layers = shape.width, shape.n_latent, places.encoder.shape[0]
    raw, of_variance = matrix(room, at[RAW], n, latent), matrix(room, at[OF_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            if raw[i, k] <= LEAST or raw[i, k] >= MOST:
                of_variance[i, k] = ZERO
    last = _of_layer(room, at, ACTIVE, n_layers - 1, n, width)
    linear_backward(
        last, matrix(values, places.mean, width, latent), matrix(room, at[OF_LATENT], n, latent),
        matrix(slab, places.mean, width, latent), vector(slab, places.mean_bias, latent), of_first, ZERO,
    )  # fmt: skip
    linear_backward(
        last, matrix(values, places.log_variance, width, latent), of_variance,
        matrix(slab, places.log_variance, width, latent), vector(slab, places.log_variance_bias, latent), of_first, ONE,
    )  # fmt: skip
    for back in range(n_layers):
        layer = n_layers - 1 - back
        _activate_backward(of_first, places.encoder, ACTIVE, layer, room, at, shape.has_norm, values, slab)
        if layer > 0:
            weight, before = places.encoder[layer, 0], matrix(room, at[OF_OTHER], n, width)
            linear_backward(
                _of_layer(room, at, ACTIVE, layer - 1, n, width), matrix(values, weight, width, width), of_first,
                matrix(slab, weight, width, width), vector(slab, places.encoder[layer, 1], width), before, ZERO,
            )  # fmt: skip
            copy_columns(before, 0, width, of_first, 0, ONE)
    add_rows(of_first, vector(slab, places.encoder[0, 1], width))
    weight = matrix(slab, places.covariates, shape.n_covariates, width)
    multiply(covariates, True, of_first, False, ONE, weight)


@njit(forceinline=True, **INNER)
def _inputs(layer, n, room, at, shape):
    """Input of a layer of the decoder: the draws or the layer before, and the conditions beside them."""
    most = max(shape.width, shape.n_latent) + shape.n_conditions
    n_columns = (shape.n_latent if layer == 0 else shape.width) + shape.n_conditions
    return matrix(room, at[DECODED + INPUT] + layer * at[END + 1] * most, n, n_columns)


@njit(forceinline=True, **INNER)
def _decode(n, room, at, conditions, shape, places, values, feature_scale, features):
    """Features of `n` cells, whose draws are in the first columns of the first layer's input."""
    n_conditions, n_layers = shape.n_conditions, places.decoder.shape[0]
    inputs, n_last = _inputs(0, n, room, at, shape), shape.n_latent
    for layer in range(n_layers):
        copy_columns(conditions, 0, n_conditions, inputs, n_last, ONE)
        rows = _of_layer(room, at, DECODED, layer, n, shape.width)
        weight = matrix(values, places.decoder[layer, 0], inputs.shape[1], shape.width)
        multiply(inputs, False, weight, False, ZERO, rows)
        _activate(rows, places.decoder, DECODED, layer, room, at, shape.has_norm, values)
        n_last = shape.width
        inputs = features if layer == n_layers - 1 else _inputs(layer + 1, n, room, at, shape)
        copy_columns(rows, 0, n_last, inputs, 0, ONE)
    if n_layers == 0:
        copy_columns(inputs, 0, n_last, features, 0, ONE)
    copy_columns(conditions, 0, n_conditions, features, n_last, feature_scale)


@njit(forceinline=True, **INNER)
def _decode_backward(n, room, at, shape, places, values, slab):
    """Fills OF_LATENT with the gradient of the draws, given that of the features in OF_FEATURES."""
    width, n_layers = shape.width, places.decoder.shape[0]
    before, gradient = matrix(room, at[OF_FEATURES], n, shape.n_features), matrix(room, at[OF_WIDTH], n, width)
    for back in range(n_layers):
        layer = n_layers - 1 - back
        weight, inputs = places.decoder[layer, 0], _inputs(layer, n, room, at, shape)
        copy_columns(before, 0, width, gradient, 0, ONE)
        _activate_backward(gradient, places.decoder, DECODED, layer, room, at, shape.has_norm, values, slab)
        before = matrix(room, at[OF_OTHER], n, inputs.shape[1])
        linear_backward(
            inputs, matrix(values, weight, inputs.shape[1], width), gradient,
            matrix(slab, weight, inputs.shape[1], width), vector(slab, places.decoder[layer, 1], width), before, ZERO,
        )  # fmt: skip
    copy_columns(before, 0, shape.n_latent, matrix(room, at[OF_LATENT], n, shape.n_latent), 0, ONE)


@njit(forceinline=True, **INNER)
def _of_cells(cells, section, first, n, width):
    """Rows of a section of `Cells`."""
    return matrix(cells.numbers, cells.at[section] + first * width, n, width)


@njit(forceinline=True, **INNER)
def rows_of_buffer(buffers, section, first, n, width):
    """Rows of a section of `Buffers`."""
    return matrix(buffers.numbers, buffers.at[section] + first * width, n, width)


@njit(forceinline=True, **INNER)
def _first_layer(start, first, n, hidden, shape, places, values, cells, buffers):
    """Adds to `hidden` the product of the log1p counts of some cells with the weights of the genes."""
    weights = matrix(values, places.genes, shape.n_genes, shape.width)
    for i in range(n):
        cell = start + first + i
        a, stored = cells.indptr[cell], cells.indptr[cell + 1] - cells.indptr[cell]
        log_counts = vector(buffers.numbers, buffers.at[VALUES] + a, stored)
        log1p_row(vector(cells.counts, a, stored), cells.numbers[cells.at[SCALE] + cell], log_counts)
        genes = vector(cells.indices, a, stored)
        if buffers.dense:
            place = buffers.at[DENSE] + (first + i) * shape.n_genes
            fill_row(genes, log_counts, vector(buffers.numbers, place, shape.n_genes))
        else:
            add_weighted(vector(hidden, i * shape.width, shape.width), log_counts, genes, weights)
    if buffers.dense:
        rows = matrix(hidden, 0, n, shape.width)
        multiply(rows_of_buffer(buffers, DENSE, first, n, shape.n_genes), False, weights, False, ONE, rows)


@njit(forceinline=True, **INNER)
def _draw(n, room, at, noise, shape):
    """z of each cell into the input of the decoder."""
    latent = shape.n_latent
    mean, log_variance = matrix(room, at[MEAN], n, latent), matrix(room, at[LOG_VARIANCE], n, latent)
    z = _inputs(0, n, room, at, shape)
    for i in range(n):
        for k in range(latent):
            z[i, k] = mean[i, k] + np.float32(math.exp(HALF * log_variance[i, k])) * noise[i, k]


@njit(forceinline=True, **INNER)
def _draw_backward(n, room, at, noise, pull, shape):
    """Gradients of mean and log variance from those of the draws, and from the KL, of weight `pull`."""
    latent = shape.n_latent
    mean, log_variance = matrix(room, at[MEAN], n, latent), matrix(room, at[LOG_VARIANCE], n, latent)
    of_latent, of_variance = matrix(room, at[OF_LATENT], n, latent), matrix(room, at[OF_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            spread = np.float32(math.exp(HALF * log_variance[i, k]))
            of_variance[i, k] = HALF * (of_latent[i, k] * spread * noise[i, k] + pull * (spread * spread - ONE))
            of_latent[i, k] += pull * mean[i, k]


@njit(forceinline=True, **INNER)
def _head_of_cells(start, first, n, n_all, piece, room, at, shape, places, head, values, cells, buffers):
    """log p of some cells from their features; logits become their gradient, and OF_FEATURES that of the features."""
    n_logits, n_theta = buffers.n_logits, head.theta.size
    output = matrix(values, places.output, n_logits, shape.n_features)
    logits, weight = rows_of_buffer(buffers, LOGITS, first, n, n_logits), vector(room, at[WEIGHT], n)
    for i in range(n):
        weight[i] = np.float32(-1.0 / n_all)
    multiply(rows_of_buffer(buffers, FEATURES, first, n, shape.n_features), False, output, True, ZERO, logits)
    of_bias = vector(buffers.numbers, buffers.at[BIAS] + piece * n_logits, n_logits)
    clear(of_bias)
    of_theta = vector(buffers.numbers, buffers.at[THETA] + piece * n_theta, n_theta)
    clear(of_theta)
    log_prob_block(
        head, logits, vector(values, places.bias, n_logits), vector(cells.indptr, start + first, n + 1), cells.indices,
        cells.counts, vector(cells.numbers, cells.at[LIBRARY] + start + first, n),
        vector(cells.group, start + first, n), weight, 0, n, True, vector(buffers.sums, first, n), of_bias,
        matrix(of_theta, 0, head.theta.shape[0], head.theta.shape[1]),
    )  # fmt: skip
    multiply(logits, False, output, False, ZERO, matrix(room, at[OF_FEATURES], n, shape.n_features))


@njit(inline="always")
def cells_of_step(piece, step, beta, consistency, feature_scale, room, at, pairs, pairs_at, shape, places, head,
                   values, cells, buffers):  # fmt: skip
    """Phase 1 for a block of cells: log p and KL, and all gradients but those of weights that belong to genes."""
    start, n_all = cells.starts[step], cells.starts[step + 1] - cells.starts[step]
    first, width, latent = piece * shape.block, shape.width, shape.n_latent
    n = min(first + shape.block, n_all) - first
    slab = vector(buffers.numbers, buffers.at[SMALL] + piece * places.n_small, places.n_small)
    clear(slab)
    covariates = _of_cells(cells, COVARIATES, start + first, n, shape.n_covariates)
    conditions = _of_cells(cells, CONDITIONS, start + first, n, shape.n_conditions)
    noise, pull = _of_cells(cells, NOISE, start + first, n, latent), beta / np.float32(n_all)

    of_covariates = matrix(values, places.covariates, shape.n_covariates, width)
    multiply(covariates, False, of_covariates, False, ZERO, _of_layer(room, at, ACTIVE, 0, n, width))
    _first_layer(start, first, n, vector(room, at[ACTIVE], n * width), shape, places, values, cells, buffers)
    _encode(n, room, at, shape, places, values)
    kl = vector(buffers.sums, buffers.most + first, n)
    kl_of(matrix(room, at[MEAN], n, latent), matrix(room, at[LOG_VARIANCE], n, latent), kl)
    _draw(n, room, at, noise, shape)
    features = rows_of_buffer(buffers, FEATURES, first, n, shape.n_features)
    _decode(n, room, at, conditions, shape, places, values, feature_scale, features)
    _head_of_cells(start, first, n, n_all, piece, room, at, shape, places, head, values, cells, buffers)
    _decode_backward(n, room, at, shape, places, values, slab)
    _draw_backward(n, room, at, noise, pull, shape)
    of_first = rows_of_buffer(buffers, OF_FIRST, first, n, width)
    _encode_backward(n, room, at, covariates, shape, places, values, slab, of_first)
    add_consistency(
        start, first, n, n_all, pull * consistency, feature_scale, room, at, pairs, pairs_at, shape, places, head,
        values, cells, slab, buffers,
    )  # fmt: skip


@njit(forceinline=True, **INNER)
def n_chosen(n, every):
    """How many of the first `n` cells of a step the consistency term uses."""
    return 2 * ((n + every - 2) // every) if n > 1 else 0


@njit(forceinline=True, **INNER)
def _is_chosen(i, n_all, every):
    """Whether the consistency term uses cell `i` of a step: the first or second of a pair."""
    return i % every == 1 or (i % every == 0 and i < n_all - 1)


@njit(forceinline=True, **INNER)
def _consistency(start, first, n, n_all, weight, feature_scale, room, at, pairs, pairs_at, shape, places, head, values,
                 cells, slab, buffers):  # fmt: skip
    """The term of `scvae.training.consistency.inconsistency` for the pairs of a block, in gradients of the encoder."""
    every, latent, n_genes, width = 2 * shape.one_pair_in, shape.n_latent, shape.n_genes, shape.width
    n_covariates, n_conditions, n_logits = shape.n_covariates, shape.n_conditions, buffers.n_logits
    chosen = np.empty(n, np.int64)
    n_pairs = 0
    for i in range(n):
        if _is_chosen(first + i, n_all, every):
            chosen[n_pairs] = i
            n_pairs += 1
    if n_pairs == 0:
        return
    both, source = 2 * n_pairs, np.empty(2 * n_pairs, np.int64)
    covariates = np.empty((both, n_covariates), np.float32)
    conditions = np.empty((both, n_conditions), np.float32)
    features = np.empty((both, shape.n_features), np.float32)
    logits = np.empty((both, n_logits), np.float32)
    z, drawn = _inputs(0, n, room, at, shape), _inputs(0, both, pairs, pairs_at, shape)
    for q in range(both):
        cell = start + first + chosen[q % n_pairs]
        other = cell + (1 if (cell - start) % every == 0 else -1)
        source[q] = cell if q < n_pairs else other
        for k in range(latent):
            drawn[q, k] = z[chosen[q % n_pairs], k]
        for k in range(n_conditions):
            conditions[q, k] = cells.numbers[cells.at[CONDITIONS] + source[q] * n_conditions + k]
        for k in range(n_covariates):
            origin = source[q] if k > 0 else cell  # the first is the cell's own depth
            covariates[q, k] = cells.numbers[cells.at[COVARIATES] + origin * n_covariates + k]
    _decode(both, pairs, pairs_at, conditions, shape, places, values, feature_scale, features)
    multiply(features, False, matrix(values, places.output, n_logits, shape.n_features), True, ZERO, logits)
    top = 2 * n_chosen(first, every)  # the rows of a block follow those of the blocks before it
    bias = vector(values, places.bias, n_logits)
    for q in range(both):
        cell = start + first + chosen[q % n_pairs]
        expected_log1p_row(
            head, logits[q], bias, cells.group[source[q]], cells.numbers[cells.at[LIBRARY] + cell],
            cells.numbers[cells.at[SCALE] + cell],
            vector(buffers.numbers, buffers.at[EXPECTED] + (top + q) * n_genes, n_genes),
        )  # fmt: skip
    hidden = _of_layer(pairs, pairs_at, ACTIVE, 0, both, width)
    multiply(covariates, False, matrix(values, places.covariates, n_covariates, width), False, ZERO, hidden)
    expected = rows_of_buffer(buffers, EXPECTED, top, both, n_genes)
    multiply(expected, False, matrix(values, places.genes, n_genes, width), False, ONE, hidden)
    _encode(both, pairs, pairs_at, shape, places, values)
    mean, log_variance = (
        matrix(pairs, pairs_at[MEAN], both, latent),
        matrix(pairs, pairs_at[LOG_VARIANCE], both, latent),
    )
    of_mean, of_variance = (
        matrix(pairs, pairs_at[OF_LATENT], both, latent),
        matrix(pairs, pairs_at[OF_VARIANCE], both, latent),
    )
    pull = shape.one_pair_in * weight
    for p in range(n_pairs):
        q = n_pairs + p
        for k in range(latent):
            variance = np.float32(math.exp(HALF * (log_variance[p, k] + log_variance[q, k])))
            of_mean[p, k] = pull * (mean[p, k] - mean[q, k]) / variance
            of_mean[q, k] = -of_mean[p, k]
            of_variance[p, k], of_variance[q, k] = ZERO, ZERO
    of_expected = rows_of_buffer(buffers, OF_EXPECTED, top, both, width)
    _encode_backward(both, pairs, pairs_at, covariates, shape, places, values, slab, of_expected)


def add_consistency(start, first, n, n_all, weight, feature_scale, room, at, pairs, pairs_at, shape, places, head,
                    values, cells, slab, buffers):  # fmt: skip
    """`_consistency` if the type of `shape` asks for it, so that a fit without conditions need not compile it."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(add_consistency, jit_options={"forceinline": True, "error_model": "numpy"})
def _add_consistency(start, first, n, n_all, weight, feature_scale, room, at, pairs, pairs_at, shape, places, head,
                     values, cells, slab, buffers):  # fmt: skip
    return _consistency.py_func if shape.instance_class is PairedShape else _no_consistency


def _no_consistency(start, first, n, n_all, weight, feature_scale, room, at, pairs, pairs_at, shape, places, head,
                    values, cells, slab, buffers):  # fmt: skip
    pass
