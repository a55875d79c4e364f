"""Categories recover planted types, whatever the estimator, and none is left empty."""

import pytest
from sklearn.metrics import adjusted_rand_score

import scvae
from scvae import NetworkConfig


def planted(seed):
    return scvae.datasets.simulate(
        n_cells=800, n_genes=200, n_latent=10, n_types=8, type_share=0.95, mean_library=2000.0, truth=False, rng=seed
    )


@pytest.mark.slow
@pytest.mark.parametrize("relaxation", ["none", "gumbel", "straight_through"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_eight_types_are_eight_categories(seed, relaxation):
    adata = planted(seed)
    network = NetworkConfig(latent="categorical", n_categories=8, relaxation=relaxation)
    model = scvae.fit(adata, network=network, rng=seed, verbose=False)
    assert adjusted_rand_score(adata.obs["cell_type"], adata.obs["scvae_category"]) >= 0.95
    assert model.network.prior.perplexity > 7.0
    assert adata.obsm["X_scvae_categories"].max(1).mean() > 0.9


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codes_are_pure_and_most_are_in_use(seed):
    adata = planted(seed)
    model = scvae.fit(adata, network=NetworkConfig(latent="quantized", n_codes=32), rng=seed, verbose=False)
    few = scvae.tl.metacells(adata, model, labels_keys="cell_type")
    assert few.obs["n_cells"] @ few.obs["cell_type_purity"] / adata.n_obs > 0.95
    assert model.network.prior.perplexity > 16
