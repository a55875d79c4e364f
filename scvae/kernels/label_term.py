"""The label term of a training step (`scvae.model.classifier`) for a block of cells, as a part of phase 1."""

import math

import numpy as np
from numba import njit

from .compiling import INNER
from .layers import ZERO
from .native import int64s, matrix, vector
from .network import inputs_of
from .records import OF_LABELS, OF_LATENT


@njit(**INNER)
def add_labels(start, n, n_all, room, at, job, slab):
    """Adds the gradients of -term_weight log p(label | z) / n_all to those of z in OF_LATENT, W and b.

    By the logits they are term_weight (softmax(z W + b) - s) / n_all, where s is the softmax over the names that the
    label stands for.
    """
    latent, n_labels = job.n_latent, job.n_labels
    if n_labels == 0:
        return
    z, of_latent = inputs_of(0, n, room, at, job), matrix(room, at[OF_LATENT], n, latent)
    weight, bias = matrix(job.values, job.labels_place, latent, n_labels), job.labels_bias_place
    of_weight, of_bias = matrix(slab, job.labels_place, latent, n_labels), vector(slab, bias, n_labels)
    labels, pull = int64s(job.labels, start, n), job.label_weight / np.float32(n_all)
    p, share = vector(room, at[OF_LABELS], n_labels), vector(room, at[OF_LABELS] + n_labels, n_labels)
    biases = vector(job.values, bias, n_labels)
    for i in range(n):
        if labels[i] < 0:
            continue
        for c in range(n_labels):
            p[c] = biases[c]
        for k in range(latent):
            for c in range(n_labels):
                p[c] += z[i, k] * weight[k, c]
        member = vector(job.members, labels[i] * n_labels, n_labels)
        most, among = p[0], np.float32(-np.inf)
        for c in range(n_labels):
            most = max(most, p[c])
            if member[c] > ZERO:
                among = max(among, p[c])
        total, inside = ZERO, ZERO
        for c in range(n_labels):
            share[c] = np.float32(math.exp(p[c] - among)) if member[c] > ZERO else ZERO
            inside += share[c]
            p[c] = np.float32(math.exp(p[c] - most))
            total += p[c]
        for c in range(n_labels):
            p[c] *= pull / total
        for c in range(n_labels):
            p[c] -= pull * share[c] / inside
        for c in range(n_labels):
            of_bias[c] += p[c]
        for k in range(latent):
            sum_k = ZERO
            for c in range(n_labels):
                sum_k += weight[k, c] * p[c]
                of_weight[k, c] += z[i, k] * p[c]
            of_latent[i, k] += sum_k
