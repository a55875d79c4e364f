"""The prior in a training step, N(0, I) or a mixture of normals, for a block of cells."""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from .compiling import INNER, PART
from .layers import HALF, ZERO, kl_of
from .native import matrix, vector
from .network import inputs_of
from .records import LOG_VARIANCE, MEAN, MIXTURE, OF_LATENT, MixturePrior

LEAST, MOST = np.float32(-8.0), np.float32(4.0)  # of a log variance: `scvae.model.latent.mixture.LOG_VARIANCES`


def fill_kl(n, room, at, noise, pull, job, slab, kl, prior):
    """KL of each cell: exact for N(0, I), whose gradient is left to others; of a mixture, see `_of_mixture`."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(fill_kl, jit_options=PART)
def _fill_kl(n, room, at, noise, pull, job, slab, kl, prior):
    return _of_mixture if prior.instance_class is MixturePrior else _of_normal


def _of_normal(n, room, at, noise, pull, job, slab, kl, prior):
    kl_of(matrix(room, at[MEAN], n, job.n_latent), matrix(room, at[LOG_VARIANCE], n, job.n_latent), kl)


def _of_mixture(n, room, at, noise, pull, job, slab, kl, prior):
    """KL at the draw of each cell, log q(z | x) - log p(z), and what -pull log p(z) adds to gradients.

    These are those of z in OF_LATENT and those of the mixture (`scvae.model.latent.mixture`), whose parameters come
    first: log weights, centres and log variances.
    """
    latent, n_components = job.n_latent, job.n_components
    size = n_components * latent
    log_weight, of_weight = vector(job.values, 0, n_components), vector(slab, 0, n_components)
    centre, of_centre = (
        matrix(job.values, n_components, n_components, latent),
        matrix(slab, n_components, n_components, latent),
    )
    spread, of_spread = (
        matrix(job.values, n_components + size, n_components, latent),
        matrix(slab, n_components + size, n_components, latent),
    )
    precision = matrix(room, at[MIXTURE], n_components, latent)
    constant = vector(room, at[MIXTURE] + size, n_components)
    share = vector(room, at[MIXTURE] + size + n_components, n_components)
    for c in range(n_components):
        total = ZERO
        for k in range(latent):
            log_variance = min(max(spread[c, k], LEAST), MOST)
            precision[c, k] = np.float32(math.exp(-log_variance))
            total += log_variance
        constant[c] = log_weight[c] - HALF * total
        share[c] = log_weight[c]
    log_weights = _softmax(share)
    for c in range(n_components):
        of_weight[c] = pull * n * share[c]

    z, of_latent = inputs_of(0, n, room, at, job), matrix(room, at[OF_LATENT], n, latent)
    of_cells = matrix(room, at[LOG_VARIANCE], n, latent)
    for i in range(n):
        for c in range(n_components):
            square = ZERO
            for k in range(latent):
                gap = z[i, k] - centre[c, k]
                square += gap * gap * precision[c, k]
            share[c] = constant[c] - HALF * square
        log_ratio = log_weights - _softmax(share)  # the constants of both normals cancel
        for k in range(latent):
            log_ratio -= 0.5 * (np.float64(of_cells[i, k]) + np.float64(noise[i, k]) * np.float64(noise[i, k]))
        kl[i] = log_ratio
        for c in range(n_components):
            part = pull * share[c]
            of_weight[c] -= part
            for k in range(latent):
                gap = z[i, k] - centre[c, k]
                drawn = part * gap * precision[c, k]
                of_latent[i, k] += drawn
                of_centre[c, k] -= drawn
                of_spread[c, k] += HALF * (part - drawn * gap)
    for c in range(n_components):
        for k in range(latent):
            if spread[c, k] < LEAST or spread[c, k] > MOST:
                of_spread[c, k] = ZERO


@njit(forceinline=True, **INNER)
def _softmax(values):
    """Replaces the values by their softmax; returns the log of the sum of their exponentials."""
    top, total = values[0], ZERO
    for c in range(values.size):
        top = max(top, values[c])
    for c in range(values.size):
        values[c] = np.float32(math.exp(values[c] - top))
        total += values[c]
    for c in range(values.size):
        values[c] /= total
    return np.float64(top) + math.log(np.float64(total))
