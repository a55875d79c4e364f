"""`tl.latent_genes`: the loadings of a linear decoder, differences for any other, and planted programs."""

import copy
from functools import cache

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.diagnostics.directions import directions, natural
from scvae.inference.cells import read_cells
from scvae.inference.posterior import batches_of, posterior_moments

HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]


def fitted(likelihood, decoder):
    adata, model = _fitted(likelihood, decoder)
    return adata.copy(), model


@cache
def _fitted(likelihood, decoder):
    adata = scvae.datasets.simulate(
        n_cells=60, n_genes=12, likelihood=likelihood, truth=False, mean_library=50.0, rng=0
    )
    training = TrainingConfig(epochs=10, batch_size=32)
    model = scvae.fit(
        adata, likelihood=likelihood, network=NetworkConfig(width=8, decoder=decoder), training=training, n_latent=3,
        rng=0, verbose=False,
    )  # fmt: skip
    return adata, model


@pytest.mark.parametrize("likelihood", HEADS)
def test_of_a_linear_decoder_the_effects_are_the_loadings_times_the_spread_of_the_cells(likelihood):
    adata, model = fitted(likelihood, "linear")
    scvae.tl.latent_genes(adata, model)
    z, loadings = adata.obsm["X_scvae"].astype(float), adata.varm["scvae_loadings"]
    np.testing.assert_allclose(adata.varm["scvae_effects"], loadings * z.std(0), atol=2e-5)
    span = np.quantile(z, 0.95, axis=0) - np.quantile(z, 0.05, axis=0)
    np.testing.assert_allclose(adata.varm["scvae_traversal"], loadings * span, atol=5e-5)


@pytest.mark.parametrize("likelihood", HEADS)
def test_slopes_agree_with_differences(likelihood):
    adata, model = fitted(likelihood, "mlp")
    cells = read_cells(adata, model, None)
    network = copy.deepcopy(model.network).double()
    slope = directions(model, cells, quantiles=(0.05, 0.95)).slope
    z = torch.from_numpy(posterior_moments(model, cells)[0]).double()
    _, batch = next(batches_of(model, cells, 60))
    with torch.no_grad():
        for k in range(3):
            move = 1e-5 * torch.from_numpy(model.metric.inverse)[k].expand_as(z)
            difference = (natural(network, z + move, batch) - natural(network, z - move, batch)).mean(0) / 2e-5
            np.testing.assert_allclose(slope[:, k], difference.numpy(), rtol=1e-3, atol=1e-5)


def test_the_genes_of_planted_programs_come_first():
    rng = np.random.default_rng(0)
    n_cells, n_genes, size = 600, 120, 10
    programs = rng.normal(size=(n_cells, 3))
    rate = rng.normal(0, 0.5, n_genes) * np.ones((n_cells, 1))
    for k in range(3):
        rate[:, k * size : (k + 1) * size] += programs[:, [k]]
    mean = np.exp(rate) / np.exp(rate).sum(1, keepdims=True) * 2_000.0
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)))
    adata.var_names = [f"gene_{g}" for g in range(n_genes)]
    model = scvae.fit(adata, n_latent=3, rng=0, verbose=False)
    scvae.tl.latent_genes(adata, model)
    z, effects = adata.obsm["X_scvae"], adata.varm["scvae_effects"]
    for k in range(3):  # a program may lie across dimensions: follow the direction of z that tells it
        direction = np.linalg.lstsq(z / z.std(0), programs[:, k], rcond=None)[0]
        first = np.argsort(-(effects @ direction))[:size]
        assert set(first) == set(range(k * size, (k + 1) * size))


def test_the_table_lists_the_strongest_genes_of_each_dimension_with_their_sign():
    adata, model = fitted("nb", "mlp")
    table = scvae.tl.latent_genes(adata, model, n_genes=4)
    effects = adata.varm["scvae_effects"]
    for k in range(3):
        up, down = (table[(table["dimension"] == k) & (table["direction"] == d)] for d in ("up", "down"))
        assert list(up["gene"]) == list(adata.var_names[np.argsort(-effects[:, k])[: len(up)]])
        assert list(down["gene"]) == list(adata.var_names[np.argsort(effects[:, k])[: len(down)]])
        assert (up["effect"] > 0).all()
        assert (down["effect"] < 0).all()
        assert list(up["rank"]) == list(range(1, len(up) + 1))


def test_genes_that_are_not_modelled_have_no_effect():
    adata, model = fitted("nb", "mlp")
    more = adata[:, ::-1].copy()
    more.var_names = ["stranger", *more.var_names[1:]]
    with pytest.warns(UserWarning, match="the 1 others are filled in by the model"):
        scvae.tl.latent_genes(more, model)
    assert (more.varm["scvae_effects"][0] == 0).all()
    assert (np.abs(more.varm["scvae_effects"][1:]).max(1) > 0).all()


@pytest.mark.parametrize(("options", "message"), [({"n_genes": 0}, "n_genes"), ({"beta": 2.0}, "trained at β = 1")])
def test_wrong_input_is_refused_and_nothing_is_written(digest, options, message):
    adata, model = fitted("nb", "mlp")
    before = digest(adata)
    with pytest.raises(ValueError, match=message):
        scvae.tl.latent_genes(adata, model, **options)
    assert digest(adata) == before
