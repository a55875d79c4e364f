"""`tl.sample`: posterior predictive draws follow the law of the model."""

import functools

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse, stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from tests.diagnostics.models import NOISE, linear_normal

LOADINGS = np.array([[1.5, 0.0], [0.5, 0.0], [0.0, 0.9], [0.0, -0.4]])  # orthogonal: posteriors are diagonal


def fit(adata, **options):
    options = {"training": TrainingConfig(epochs=3, batch_size=16), "network": NetworkConfig(width=8)} | options
    return scvae.fit(adata, n_latent=2, rng=0, verbose=False, **options)


@functools.cache
def fitted(likelihood="nb"):
    adata = scvae.datasets.simulate(
        n_cells=40, n_genes=12, n_batches=2, likelihood=likelihood, mean_library=80.0, truth=False, rng=0
    )
    return adata, fit(adata, likelihood=likelihood, batch_key="batch")


@functools.cache
def fixed(likelihood):
    """A model whose posteriors have nearly no width, so that draws of a cell follow one known law; and its tables."""
    adata = scvae.datasets.simulate(n_cells=20, n_genes=8, likelihood=likelihood, mean_library=80.0, truth=False, rng=0)
    model = fit(adata, likelihood=likelihood)
    with torch.no_grad():
        model.network.encoder.log_variance.weight.zero_()
        model.network.encoder.log_variance.bias.fill_(-30.0)
        batch = scvae.data.intake.read_query(adata, model.schema).batch(np.arange(20))
        z = model.network.encode(batch).mean
        return adata, model, model.network.likelihood.distribution(model.network.features(z, batch), batch)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_draws_have_the_moments_and_the_zeros_of_their_law(likelihood):
    adata, model, table = fixed(likelihood)
    n = 1000
    x = scvae.tl.sample(adata, model, n_samples=n).X.toarray().reshape(n, 20, 8).astype(np.float64)
    base = table.base if likelihood == "zinb" else table
    if likelihood == "bernoulli":
        law, lost = stats.bernoulli(1 / (1 + np.exp(-table.logit.double().numpy()))), 0.0
    elif likelihood == "poisson":
        law, lost = stats.poisson(base.mean.double().numpy()), 0.0
    else:
        theta, mean = base.log_inverse_dispersion.double().exp().numpy(), base.mean.double().numpy()
        law = stats.nbinom(theta, theta / (theta + mean))
        lost = 1 / (1 + np.exp(-table.zero_logit.double().numpy())) if likelihood == "zinb" else 0.0
    mean = (1 - lost) * law.mean()
    variance = (1 - lost) * (law.var() + law.mean() ** 2) - mean**2
    assert np.abs((x.mean(0) - mean) / np.sqrt(variance / n)).max() < 4.5
    np.testing.assert_allclose(x.var(0).sum(), variance.sum(), rtol=0.05)
    zero = lost + (1 - lost) * law.pmf(0)
    assert np.abs((x == 0).mean(0) - zero).max() < 4.5 * np.sqrt(0.25 / n)


def test_the_posterior_is_drawn_too():
    """x' = W z + noise with z ~ N(mean, V): the variance of the draws is W V W' + noise^2."""
    model, _, x = linear_normal(LOADINGS, n_cells=10)
    drawn = scvae.tl.sample(ad.AnnData(x), model, n_samples=2000)
    square = (LOADINGS**2).sum(0)
    mean = x @ (LOADINGS / (square + NOISE**2)) @ LOADINGS.T
    covariance = (LOADINGS * (NOISE**2 / (square + NOISE**2))) @ LOADINGS.T + NOISE**2 * np.eye(4)
    values = drawn.X.reshape(2000, 10, 4)
    np.testing.assert_allclose(values.mean(0), mean, atol=5 * np.sqrt(covariance.max() / 2000))
    for cell in range(10):
        np.testing.assert_allclose(np.cov(values[:, cell], rowvar=False), covariance, atol=0.06)
    noise = drawn.X - drawn.obsm["X_scvae"] @ LOADINGS.T
    np.testing.assert_allclose(noise.std(0), NOISE, rtol=0.03)  # obsm has the z that the values were drawn with


def test_every_cell_keeps_its_name_its_columns_and_its_library(digest):
    adata, model = fitted()
    before = digest(adata)
    drawn = scvae.tl.sample(adata, model, n_samples=100)
    assert digest(adata) == before
    assert list(drawn.obs_names[:2]) == ["cell_0_0", "cell_1_0"]
    assert drawn.obs_names[-1] == "cell_39_99"
    assert list(drawn.var_names) == list(model.genes)
    assert drawn.X.dtype == np.float32
    assert sparse.issparse(drawn.X)
    assert (drawn.obs["scvae_cell"].to_numpy() == np.tile(adata.obs_names, 100)).all()
    assert (drawn.obs["scvae_draw"].to_numpy() == np.repeat(np.arange(100), 40)).all()
    assert (drawn.obs["batch"].to_numpy() == np.tile(adata.obs["batch"], 100)).all()
    library = np.asarray(drawn.X.sum(1)).reshape(100, 40)
    off = (library.mean(0) - np.asarray(adata.X.sum(1)).ravel()) / (library.std(0) / np.sqrt(100))
    assert abs(off.mean()) < 4.5 / np.sqrt(40)
    assert off.std() < 1.6  # 1 but for the skew of single cells
    once = scvae.tl.sample(adata, model)
    assert once.obs_names.equals(adata.obs_names)
    assert once.uns["scvae"]["drawn"] == {"source": "posterior", "n_samples": 1, "beta": 1.0, "seed": 0}


def test_the_model_reads_what_it_has_drawn_and_a_file_keeps_it(tmp_path):
    adata = fitted()[0].copy()
    adata.layers["counts"], adata.X = adata.X, None
    model = fit(adata, layer="counts", batch_key="batch")
    drawn = scvae.tl.sample(adata, model)
    assert (drawn.layers["counts"] != drawn.X).nnz == 0
    drawn.X.data[:] = 0.5  # X is scaled in place by scanpy: the counts must not change with it
    scvae.tl.embed(drawn, model)
    drawn.write_h5ad(tmp_path / "drawn.h5ad")


def test_the_seed_decides_and_the_size_of_the_chunks_does_not_change_the_latent(monkeypatch):
    adata, model = fitted()
    first, again, other = (scvae.tl.sample(adata, model, rng=seed) for seed in (1, 1, 2))
    assert (first.X != again.X).nnz == 0
    assert (first.X != other.X).nnz > 0
    monkeypatch.setattr(scvae.inference.decoding, "TABLE", 8 * 16 * 12)
    cut = scvae.tl.sample(adata, model, rng=1)
    np.testing.assert_allclose(cut.obsm["X_scvae"], first.obsm["X_scvae"], atol=1e-5)


def test_the_beta_of_a_path_is_honoured():
    adata = fitted()[0].copy()
    model = fit(adata, beta=(0.1, 10.0))
    drawn = {beta: scvae.tl.sample(adata, model, beta=beta).obsm["X_scvae"] for beta in (None, 1.0, 0.1)}
    assert np.array_equal(drawn[None], drawn[1.0])
    assert np.abs(drawn[1.0] - drawn[0.1]).max() > 1e-6


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"n_samples": 0}, ValueError, "n_samples is 0"),
        ({"n_samples": 1.5}, TypeError, "n_samples is 1.5"),
        ({"beta": 2.0}, ValueError, "trained at β = 1 alone"),
        ({"layer": "nothing"}, ValueError, "nothing"),
        ({"rng": -1}, ValueError, "rng must be"),
    ],
)
def test_an_argument_out_of_range_is_refused(options, error, message):
    with pytest.raises(error, match=message):
        scvae.tl.sample(*fitted(), **options)


def test_an_unknown_batch_is_refused():
    adata, model = fitted()
    other = adata.copy()
    other.obs["batch"] = "new"
    with pytest.raises(ValueError, match="it knows 'batch_0', 'batch_1'"):
        scvae.tl.sample(other, model)
