"""Small simulated cells and a model that is hardly trained: what is tested with it holds for any weights."""

import functools

import scvae
from scvae import NetworkConfig, TrainingConfig


def fit(adata, **options):
    options = {"training": TrainingConfig(epochs=3, batch_size=16), "network": NetworkConfig(width=8)} | options
    return scvae.fit(adata, n_latent=2, rng=0, verbose=False, **options)


@functools.cache
def fitted(likelihood="nb", **options):
    simulated = scvae.datasets.simulate(
        n_cells=50, n_genes=12, n_batches=2, likelihood=likelihood, mean_library=80.0, truth=False, rng=0
    )
    return simulated, fit(simulated, likelihood=likelihood, **({"batch_key": "batch"} | options))


def case(likelihood="nb", **options):
    """Cells to write to, and their model."""
    adata, model = fitted(likelihood, **options)
    return adata.copy(), model
