"""The components of a trained mixture are soft clusters: planted types come out of them."""

import numpy as np
import pytest
from sklearn.metrics import homogeneity_score

import scvae


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_components_recover_planted_types(seed):
    """With more components than types, a component holds cells of one type, and most cells belong to one component."""
    adata = scvae.datasets.simulate(
        n_cells=1000, n_genes=150, n_latent=6, n_types=5, type_share=0.95, mean_library=2000, truth=False, rng=seed
    )
    network = scvae.NetworkConfig(prior="mixture", prior_components=10)
    scvae.fit(adata, n_latent=6, network=network, rng=seed, verbose=False)
    shares = adata.obsm["X_scvae_components"]
    assert homogeneity_score(adata.obs["cell_type"], shares.argmax(1)) > 0.95
    assert shares.max(1).mean() > 0.85
    n_cells = np.eye(5)[adata.obs["cell_type"].cat.codes].T @ shares  # types x components
    assert set(n_cells.argmax(0)[shares.sum(0) > 20]) == set(range(5))
