"""`tl.embed`: the same cells give the same numbers, whatever the genes around them."""

import warnings

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.common.checks import MissingKeyError


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 60, "n_genes": 30, "n_batches": 2, "truth": False, "rng": 0} | options)


def fit(adata, **options):
    defaults = {"rng": 0, "n_latent": 3, "verbose": False}
    defaults |= {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=3, batch_size=32)}
    return scvae.fit(adata, **defaults | options)


def query(adata):
    """The same cells without any result."""
    return ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var.copy())


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_the_order_of_the_genes_makes_no_difference(likelihood):
    adata = simulated(likelihood=likelihood)
    model = fit(adata, likelihood=likelihood)
    shuffled = query(adata)[:, np.random.default_rng(1).permutation(30)].copy()
    assert scvae.tl.embed(shuffled, model) is None
    assert shuffled.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()
    assert shuffled.obsm["X_scvae_var"].tobytes() == adata.obsm["X_scvae_var"].tobytes()


def test_genes_that_the_model_does_not_know_make_no_difference():
    adata = simulated()
    model = fit(adata)
    extra = ad.AnnData(sparse.csr_matrix(np.full((60, 5), 7.0, dtype=np.float32)), obs=adata.obs)
    extra.var_names = [f"unknown_{i}" for i in range(5)]
    wider = ad.concat([extra, query(adata)], axis=1, merge="first")
    scvae.tl.embed(wider, model)
    assert wider.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()


def test_missing_genes_are_told_and_filled_in():
    adata = simulated()
    model = fit(adata)
    some = query(adata)[:, 2:].copy()
    with pytest.warns(UserWarning, match=r"28 of the 30 modelled genes.*filled in by the model: 'gene_0', 'gene_1'"):
        scvae.tl.embed(some, model)
    zeroed = query(adata)
    zeroed.X.data[zeroed.X.indices < 2] = 0
    scvae.tl.embed(zeroed, model)
    assert not np.allclose(some.obsm["X_scvae"], zeroed.obsm["X_scvae"], atol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda adata: adata[:, :10].copy(), "10 of the 30 modelled genes .* at least half are needed"),
        (lambda adata: ad.AnnData(adata.X), "none of the 30 modelled genes"),
    ],
)
def test_cells_with_too_few_of_the_genes_are_refused(digest, change, message):
    adata = simulated()
    model = fit(adata)
    other = change(query(adata))
    before = digest(other)
    with pytest.raises(ValueError, match=message):
        scvae.tl.embed(other, model)
    assert digest(other) == before


def test_an_unknown_batch_is_refused_with_those_that_are_possible(digest):
    adata = simulated()
    model = fit(adata, batch_key="batch")
    other = query(adata)
    other.obs["batch"] = ["new", *["batch_0"] * 59]
    before = digest(other)
    with pytest.raises(ValueError, match=r"'new' in 1 of 60 cells.*it knows 'batch_0', 'batch_1'"):
        scvae.tl.embed(other, model)
    del other.obs["batch"]
    with pytest.raises(MissingKeyError, match="has no 'batch'"):
        scvae.tl.embed(other, model)
    other.obs["batch"] = "batch_1"
    assert digest(other)["uns"] == before["uns"]
    scvae.tl.embed(other, model)


def test_a_copy_has_the_result_and_adata_stays_as_it_was(digest):
    adata = simulated()
    model = fit(adata)
    other = query(adata)
    before = digest(other)
    copied = scvae.tl.embed(other, model, copy=True)
    assert digest(other) == before
    assert copied.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()


def test_only_the_embedding_and_the_record_of_its_model_are_written(digest):
    adata = simulated()
    model = fit(adata)
    other = query(adata)
    before = digest(other)
    scvae.tl.embed(other, model, key_added="mapped")
    after = digest(other)
    assert set(after) - set(before) == {"obsm[X_mapped]", "obsm[X_mapped_var]"}
    assert {name for name in before if after[name] != before[name]} == {"uns"}
    assert set(other.uns["mapped"]) == set(adata.uns["scvae"])
    assert other.uns["mapped"]["seed"] == model.seed


def test_a_view_becomes_actual_and_its_parent_stays_as_it_was(digest):
    adata = simulated()
    model = fit(adata)
    parent = query(adata)
    before = digest(parent)
    view = parent[5:25]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scvae.tl.embed(view, model)
    assert not view.is_view
    assert digest(parent) == before
    np.testing.assert_allclose(view.obsm["X_scvae"], adata.obsm["X_scvae"][5:25], rtol=1e-5, atol=1e-6)


def test_the_layer_of_the_fit_is_the_default_and_x_can_be_asked_for():
    adata = simulated()
    adata.layers["counts"] = adata.X.copy()
    adata.X = sparse.csr_matrix(adata.X.shape, dtype=np.float32)
    model = fit(adata, layer="counts")
    other = ad.AnnData(adata.layers["counts"].copy(), obs=adata.obs.copy(), var=adata.var.copy())
    with pytest.raises(MissingKeyError, match="counts"):
        scvae.tl.embed(other, model)
    scvae.tl.embed(other, model, layer="X")
    np.testing.assert_array_equal(other.obsm["X_scvae"], adata.obsm["X_scvae"])
    other.layers["elsewhere"], other.X = other.X, None
    scvae.tl.embed(other, model, layer="elsewhere", key_added="again")
    np.testing.assert_array_equal(other.obsm["X_again"], adata.obsm["X_scvae"])


def test_covariates_are_standardised_as_at_the_fit():
    adata = simulated()
    adata.obs["age"] = np.linspace(20, 60, 60)
    model = fit(adata, covariate_keys=["age"], network=NetworkConfig(width=16, encode_conditions=True))
    last = query(adata)[30:].copy()
    scvae.tl.embed(last, model)
    np.testing.assert_allclose(last.obsm["X_scvae"], adata.obsm["X_scvae"][30:], rtol=1e-5, atol=1e-6)


def test_more_cells_than_one_chunk_come_back_in_order(monkeypatch):
    adata = simulated()
    model = fit(adata)
    monkeypatch.setattr("scvae.inference.posterior.EMBEDDING_CHUNK", 7)
    other = query(adata)
    scvae.tl.embed(other, model)
    np.testing.assert_allclose(other.obsm["X_scvae"], adata.obsm["X_scvae"], rtol=1e-5, atol=1e-6)


def test_normalised_values_are_refused_as_at_the_fit():
    adata = simulated()
    model = fit(adata)
    other = query(adata)
    other.X = sparse.csr_matrix(np.log1p(other.X.toarray() / other.X.sum(1).A1[:, None] * 1e4))
    with pytest.raises(ValueError, match="log-normalised"):
        scvae.tl.embed(other, model)


def test_draws_have_the_moments_of_the_posterior():
    adata = simulated(n_cells=20)
    model = fit(adata)
    scvae.tl.embed(adata, model, n_samples=4000, rng=1)
    draws, mean, sd = adata.obsm["X_scvae_samples"], adata.obsm["X_scvae"], np.sqrt(adata.obsm["X_scvae_var"])
    assert draws.shape == (20, 4000, 3)
    assert draws.dtype == np.float32
    np.testing.assert_allclose((draws.mean(1) - mean) / sd, 0, atol=5 / np.sqrt(4000))
    np.testing.assert_allclose(draws.std(1) / sd, 1, atol=5 / np.sqrt(2 * 4000))


def test_an_embedding_without_draws_takes_earlier_ones_away():
    adata = simulated()
    model = fit(adata)
    scvae.tl.embed(adata, model, n_samples=2)
    scvae.tl.embed(adata, model)
    assert "X_scvae_samples" not in adata.obsm


def test_the_number_of_draws_is_checked():
    adata = simulated()
    model = fit(adata)
    with pytest.raises(ValueError, match="n_samples is -1; pass an integer of at least 1"):
        scvae.tl.embed(adata, model, n_samples=-1)
