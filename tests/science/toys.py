"""Data on which a fixed β collapses although the latent has much to say."""

import numpy as np
from anndata import AnnData
from scipy.linalg import hadamard
from scipy.special import logsumexp

NOISE = 0.3


def equidistant_types(n_cells, *, n_types=8, noise=NOISE, rng):
    """Types at the corners of a regular simplex: means of ±1 (columns of a Hadamard matrix) under normal noise.

    The covariance over cells is a multiple of the identity: no direction stands out, so at a collapsed posterior no
    small step of encoder and decoder together gains anything, while the KL term gains from every step back.
    """
    corners = hadamard(n_types)[:, 1:].astype(float)
    types = rng.permutation(np.arange(n_cells) % n_types)
    adata = AnnData((corners[types] + noise * rng.normal(size=(n_cells, n_types - 1))).astype(np.float32))
    adata.obs["type"] = types.astype(str)
    return adata


def log_evidence(adata, *, n_types=8, noise=NOISE):
    """log p(x) of each cell under the law it was drawn from, in nats."""
    corners = hadamard(n_types)[:, 1:].astype(float)
    square = ((adata.X[:, None] - corners) ** 2).sum(2)
    constant = np.log(n_types) + (n_types - 1) * np.log(noise * np.sqrt(2 * np.pi))
    return logsumexp(-square / (2 * noise**2), axis=1) - constant
