"""Models whose decoder and encoder are set by hand, so that what is measured of them is known."""

import numpy as np
import torch
from anndata import AnnData

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells

NOISE = 0.5


def linear_normal(loadings, *, n_cells=200, noise=NOISE, seed=0):
    """x = z W' + noise e with z ~ N(0, I), and a model with exactly this decoder; the best encoder for it.

    A linear decoder with a Gaussian head: the posterior is normal, with a covariance that is the same for every cell.
    """
    rng = np.random.default_rng(seed)
    loadings = np.asarray(loadings, dtype=np.float32)
    n_genes, n_latent = loadings.shape
    z = rng.standard_normal((n_cells, n_latent))
    x = (z @ loadings.T + noise * rng.standard_normal((n_cells, n_genes))).astype(np.float32)
    adata = AnnData(x)
    model = scvae.fit(
        adata,
        likelihood="gaussian",
        n_latent=n_latent,
        network=NetworkConfig(decoder="linear", minimum_scale=0.0, norm="none", width=2 * n_latent),
        metric="latent",
        training=TrainingConfig(epochs=1),
        rng=0,
        verbose=False,
    )
    set_weights(model, loadings, noise)
    return model, read_cells(adata, model, None), x


def set_weights(model, loadings, noise):
    """Writes the law into the network; the encoder's q is the best of all diagonal ones."""
    head, encoder = model.network.likelihood, model.network.encoder
    n_latent = loadings.shape[1]
    precision = posterior_precision(loadings, noise)
    to_mean = (loadings / noise**2 @ np.linalg.inv(precision)).astype(np.float32)
    with torch.no_grad():
        head.centre.zero_()
        head.spread.fill_(1.0)
        head.log_free_scale.fill_(np.log(noise))
        head.output.weight.copy_(torch.from_numpy(loadings))
        head.output.bias.zero_()
        # relu(a) - relu(-a) = a: two hidden units carry each posterior mean
        encoder.genes.weight.copy_(torch.from_numpy(np.hstack([to_mean, -to_mean])))
        encoder.genes.bias.zero_()
        encoder.mean.weight.copy_(torch.from_numpy(np.vstack([np.eye(n_latent), -np.eye(n_latent)]).astype(np.float32)))
        encoder.mean.bias.zero_()
        encoder.log_variance.weight.zero_()
        encoder.log_variance.bias.copy_(torch.from_numpy(-np.log(np.diag(precision)).astype(np.float32)))


def posterior_precision(loadings, noise=NOISE):
    """Inverse covariance of z given x."""
    return np.eye(loadings.shape[1]) + loadings.T @ loadings / noise**2
