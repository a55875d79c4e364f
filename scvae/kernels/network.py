"""Encoder and decoder for the cells of a block, forwards and backwards, by the kernels of `layers`.

`job` is a record as in `scvae.kernels.records`. `room` is the address of the memory of a thread, `at` its sections.
"""

import numpy as np
from numba import njit

from .compiling import INNER, VIEWING
from .layers import (
    ONE,
    ZERO,
    add_rows,
    add_to_rows,
    copy_columns,
    linear_backward,
    normalise,
    normalise_backward,
    relu,
    relu_backward,
)
from .native import int64s, matrix, multiply, vector
from .records import (
    ACTIVE,
    DECODED,
    END,
    INPUT,
    INVERSE_SD,
    LOG_VARIANCE,
    MEAN,
    NORMED,
    OF_FEATURES,
    OF_LATENT,
    OF_OTHER,
    OF_VARIANCE,
    OF_WIDTH,
    RAW,
)

LEAST, MOST = np.float32(-12.0), np.float32(4.0)  # of the log variance: `scvae.model.encoder.LOG_VARIANCE_RANGE`


@njit(forceinline=True, **VIEWING)
def of_layer(room, at, section, layer, n, width):
    """The rows of a layer."""
    return matrix(room, at[section] + layer * at[END + 1] * width, n, width)


@njit(forceinline=True, **INNER)
def _activate(rows, places, first, layer, room, at, job):
    """rows = relu(norm(rows + bias)) for a layer of the encoder (first = ACTIVE) or the decoder (DECODED)."""
    n, width = rows.shape
    add_to_rows(rows, vector(job.values, places[1], width))
    if job.has_norm:
        normalise(
            rows, vector(job.values, places[2], width), vector(job.values, places[3], width),
            of_layer(room, at, first + NORMED, layer, n, width),
            vector(room, at[first + INVERSE_SD] + layer * at[END + 1], n),
        )  # fmt: skip
    else:
        relu(rows)


@njit(forceinline=True, **INNER)
def _activate_backward(gradient, places, first, layer, room, at, job, slab):
    """Turns the gradient of the rows of a layer into that of the product before `_activate`; adds those of weights."""
    n, width = gradient.shape
    relu_backward(gradient, of_layer(room, at, first + ACTIVE, layer, n, width))
    if job.has_norm:
        normalise_backward(
            gradient, vector(job.values, places[2], width), of_layer(room, at, first + NORMED, layer, n, width),
            vector(room, at[first + INVERSE_SD] + layer * at[END + 1], n), vector(slab, places[2], width),
            vector(slab, places[3], width),
        )  # fmt: skip


@njit(forceinline=True, **INNER)
def encode(n, room, at, job):
    """Posterior of `n` cells, given the products of the first layer in its rows."""
    width, latent, n_layers = job.width, job.n_latent, job.n_encoder
    for layer in range(n_layers):
        places, rows = int64s(job.encoder, 4 * layer, 4), of_layer(room, at, ACTIVE, layer, n, width)
        if layer > 0:
            weight = matrix(job.values, places[0], width, width)
            multiply(of_layer(room, at, ACTIVE, layer - 1, n, width), False, weight, False, ZERO, rows)
        _activate(rows, places, ACTIVE, layer, room, at, job)
    last = of_layer(room, at, ACTIVE, n_layers - 1, n, width)
    mean, raw = matrix(room, at[MEAN], n, latent), matrix(room, at[RAW], n, latent)
    multiply(last, False, matrix(job.values, job.mean_place, width, latent), False, ZERO, mean)
    multiply(last, False, matrix(job.values, job.log_variance_place, width, latent), False, ZERO, raw)
    add_to_rows(mean, vector(job.values, job.mean_bias_place, latent))
    add_to_rows(raw, vector(job.values, job.log_variance_bias_place, latent))
    log_variance = matrix(room, at[LOG_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            log_variance[i, k] = min(max(raw[i, k], LEAST), MOST)


@njit(forceinline=True, **INNER)
def encode_backward(n, room, at, covariates, job, slab, of_first):
    """Adds gradients of the encoder's small parameters to the slab; fills the gradient of the first layer's product.

    The gradients of mean and log variance are in OF_LATENT and OF_VARIANCE.
    """
    width, latent, n_layers = job.width, job.n_latent, job.n_encoder
    raw, of_variance = matrix(room, at[RAW], n, latent), matrix(room, at[OF_VARIANCE], n, latent)
    for i in range(n):
        for k in range(latent):
            if raw[i, k] <= LEAST or raw[i, k] >= MOST:
                of_variance[i, k] = ZERO
    last = of_layer(room, at, ACTIVE, n_layers - 1, n, width)
    linear_backward(
        last, matrix(job.values, job.mean_place, width, latent), matrix(room, at[OF_LATENT], n, latent),
        matrix(slab, job.mean_place, width, latent), vector(slab, job.mean_bias_place, latent), of_first, ZERO,
    )  # fmt: skip
    linear_backward(
        last, matrix(job.values, job.log_variance_place, width, latent), of_variance,
        matrix(slab, job.log_variance_place, width, latent), vector(slab, job.log_variance_bias_place, latent),
        of_first, ONE,
    )  # fmt: skip
    for back in range(n_layers):
        layer = n_layers - 1 - back
        places = int64s(job.encoder, 4 * layer, 4)
        _activate_backward(of_first, places, ACTIVE, layer, room, at, job, slab)
        if layer > 0:
            weight, before = places[0], matrix(room, at[OF_OTHER], n, width)
            linear_backward(
                of_layer(room, at, ACTIVE, layer - 1, n, width), matrix(job.values, weight, width, width), of_first,
                matrix(slab, weight, width, width), vector(slab, places[1], width), before, ZERO,
            )  # fmt: skip
            copy_columns(before, 0, width, of_first, 0, ONE)
    add_rows(of_first, vector(slab, int64s(job.encoder, 1, 1)[0], width))
    weight = matrix(slab, job.covariates_place, job.n_covariates, width)
    multiply(covariates, True, of_first, False, ONE, weight)


@njit(forceinline=True, **VIEWING)
def inputs_of(layer, n, room, at, job):
    """Input of a layer of the decoder: the draws or the layer before, and the conditions beside them."""
    most = max(job.width, job.n_latent) + job.n_conditions
    n_columns = (job.n_latent if layer == 0 else job.width) + job.n_conditions
    return matrix(room, at[DECODED + INPUT] + layer * at[END + 1] * most, n, n_columns)


@njit(forceinline=True, **INNER)
def decode(n, room, at, conditions, job, features):
    """Features of `n` cells, whose draws are in the first columns of the first layer's input."""
    n_conditions, n_layers = job.n_conditions, job.n_decoder
    inputs, n_last = inputs_of(0, n, room, at, job), job.n_latent
    for layer in range(n_layers):
        copy_columns(conditions, 0, n_conditions, inputs, n_last, ONE)
        places, rows = int64s(job.decoder, 4 * layer, 4), of_layer(room, at, DECODED, layer, n, job.width)
        weight = matrix(job.values, places[0], inputs.shape[1], job.width)
        multiply(inputs, False, weight, False, ZERO, rows)
        _activate(rows, places, DECODED, layer, room, at, job)
        n_last = job.width
        inputs = features if layer == n_layers - 1 else inputs_of(layer + 1, n, room, at, job)
        copy_columns(rows, 0, n_last, inputs, 0, ONE)
    if n_layers == 0:
        copy_columns(inputs, 0, n_last, features, 0, ONE)
    copy_columns(conditions, 0, n_conditions, features, n_last, job.feature_scale)


@njit(forceinline=True, **INNER)
def decode_backward(n, room, at, job, slab):
    """Fills OF_LATENT with the gradient of the draws, given that of the features in OF_FEATURES."""
    width, n_layers = job.width, job.n_decoder
    before, gradient = matrix(room, at[OF_FEATURES], n, job.n_features), matrix(room, at[OF_WIDTH], n, width)
    for back in range(n_layers):
        layer = n_layers - 1 - back
        places, inputs = int64s(job.decoder, 4 * layer, 4), inputs_of(layer, n, room, at, job)
        copy_columns(before, 0, width, gradient, 0, ONE)
        _activate_backward(gradient, places, DECODED, layer, room, at, job, slab)
        before = matrix(room, at[OF_OTHER], n, inputs.shape[1])
        linear_backward(
            inputs, matrix(job.values, places[0], inputs.shape[1], width), gradient,
            matrix(slab, places[0], inputs.shape[1], width), vector(slab, places[1], width), before, ZERO,
        )  # fmt: skip
    copy_columns(before, 0, job.n_latent, matrix(room, at[OF_LATENT], n, job.n_latent), 0, ONE)
