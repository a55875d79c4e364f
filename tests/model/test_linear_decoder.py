"""The linear decoder: what its loadings mean, and where they are written."""

import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.linalg import subspace_angles

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query

SMALL = NetworkConfig(width=8)
LINEAR = NetworkConfig(width=8, decoder="linear")
HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]


def fitted(likelihood="nb", **options):
    adata = scvae.datasets.simulate(
        n_cells=60, n_genes=12, n_batches=2, likelihood=likelihood, truth=False, mean_library=50.0, rng=0
    )
    training = TrainingConfig(epochs=3, batch_size=32)
    settings = {"network": LINEAR, "training": training, "n_latent": 3, "rng": 0, "verbose": False} | options
    return adata, scvae.fit(adata, likelihood=likelihood, batch_key="batch", **settings)


def natural_scale(model, adata, z):
    """What a gene's mean is a function of, cells x genes; for counts the log mean relative to the modelled genes.

    `z` is in the coordinates of the embedding.
    """
    z = (z.double() @ torch.from_numpy(np.linalg.inv(model.metric.matrix))).float()
    batch = read_query(adata, model.schema).batch(np.arange(adata.n_obs))
    table = model.network.likelihood.distribution(model.network.features(z, batch), batch)
    if model.likelihood == "gaussian":
        return table.mean.double()
    if model.likelihood == "bernoulli":
        return table.logit.double()
    log_mean = (table.base if model.likelihood == "zinb" else table).log_mean.double()
    return log_mean - log_mean.mean(1, keepdim=True)


@pytest.mark.parametrize("likelihood", HEADS)
def test_a_loading_is_the_effect_of_one_unit_of_z_on_a_gene_whatever_the_cell(likelihood):
    adata, model = fitted(likelihood)
    z = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    for dimension in range(3):
        moved = z + torch.eye(3)[dimension]
        with torch.no_grad():
            effect = natural_scale(model, adata, moved) - natural_scale(model, adata, z)
        expected = np.tile(adata.varm["scvae_loadings"][:, dimension], (60, 1))
        np.testing.assert_allclose(effect.numpy(), expected, atol=2e-5)
    assert np.abs(adata.varm["scvae_loadings"]).max() > 1e-3


def test_genes_that_are_not_modelled_have_loadings_of_zero():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=12, truth=False, rng=0)
    mask = np.arange(12) % 3 != 0
    scvae.fit(adata, mask_var=mask, network=LINEAR, n_latent=2, training=TrainingConfig(epochs=2), rng=0, verbose=False)
    loadings = adata.varm["scvae_loadings"]
    assert loadings.shape == (12, 2)
    assert loadings.dtype == np.float32
    assert (loadings[~mask] == 0).all()
    assert (np.abs(loadings[mask]).max(1) > 0).all()


def test_loadings_follow_key_added_and_survive_a_file(tmp_path):
    adata, model = fitted(key_added="linear")
    adata.write_h5ad(tmp_path / "with.h5ad")
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert loaded.network_config == LINEAR
    loadings = loaded.network.loadings().detach().numpy() @ np.linalg.inv(loaded.metric.matrix).T
    np.testing.assert_allclose(loadings, adata.varm["linear_loadings"], rtol=1e-5, atol=1e-6)
    scvae.tl.embed(adata, loaded, key_added="again")
    np.testing.assert_array_equal(adata.obsm["X_again"], adata.obsm["X_linear"])


def test_a_later_fit_without_loadings_leaves_none_of_an_earlier_one():
    adata, _ = fitted()
    assert "scvae_loadings" in adata.varm
    scvae.fit(adata, network=SMALL, training=TrainingConfig(epochs=1), n_latent=2, rng=0, verbose=False)
    assert "scvae_loadings" not in adata.varm


def test_a_linear_fit_finds_the_programs_that_counts_were_drawn_from():
    rng = np.random.default_rng(0)
    truth = np.zeros((40, 2))
    truth[:10, 0], truth[10:20, 1] = 1.5, 1.5
    log_rate = rng.normal(size=(800, 2)) @ truth.T
    proportions = np.exp(log_rate) / np.exp(log_rate).sum(1, keepdims=True)
    adata = scvae.datasets.simulate(n_cells=800, n_genes=40, truth=False, rng=0)
    adata.X = sparse.csr_matrix(rng.poisson(400 * proportions).astype(np.float32))
    network = NetworkConfig(decoder="linear")
    scvae.fit(adata, network=network, likelihood="poisson", n_latent=2, rng=0, verbose=False)
    found, centred = adata.varm["scvae_loadings"], truth - truth.mean(0)
    assert np.rad2deg(subspace_angles(found, centred)).max() < 5  # z can be rotated, the plane cannot
