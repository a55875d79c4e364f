"""Genes that nobody measured: no part of the likelihood, and for the encoder what the decoder expects of them."""

import numpy as np
import pytest
import torch
from scipy import stats

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.inference.posterior import posterior_moments
from scvae.likelihoods.counts import NegativeBinomialTable, PoissonTable, ZeroInflatedTable, expected_log1p

KEPT = np.arange(6, 40)  # of 40 genes


def fitted(likelihood, **options):
    adata = scvae.datasets.simulate(n_cells=80, n_genes=40, likelihood=likelihood, truth=False, rng=0)
    model = scvae.fit(
        adata,
        likelihood=likelihood,
        n_latent=3,
        network=NetworkConfig(width=16),
        training=TrainingConfig(epochs=20, batch_size=40),
        rng=0,
        verbose=False,
        **options,
    )
    return adata, model


def query_of(adata, model):
    """Some cells without the first genes."""
    with pytest.warns(UserWarning, match="34 of the 40 modelled genes"):
        return read_query(adata[:10, KEPT[::-1]].copy(), model.schema).batch(np.arange(10))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli"])
def test_the_likelihood_is_that_of_the_measured_genes(likelihood):
    adata, model = fitted(likelihood)
    batch = query_of(adata, model)
    z = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        said = model.network.log_likelihood(z, batch, torch.ones(10)).per_row
        head = model.network.likelihood
        features = model.network.features(z, batch)
        base = head.base if likelihood == "zinb" else head
        logits = base.output(features)[:, KEPT].double()
    x = adata.X[:10].toarray()[:, KEPT]
    if likelihood == "bernoulli":
        depth = np.log(np.maximum(x.sum(1), 1)) - float(head.mean_log_depth)
        logits = logits.numpy() + depth[:, None] * head.depth_slope.detach().numpy()[KEPT]
        expected = stats.bernoulli.logpmf(x, 1 / (1 + np.exp(-logits)))
    else:
        mean = x.sum(1, keepdims=True) * torch.softmax(logits, 1).numpy()
        if likelihood == "poisson":
            expected = stats.poisson.logpmf(x, mean)
        else:
            theta = base.log_inverse_dispersion.detach().exp().numpy()[:, KEPT]
            expected = stats.nbinom.logpmf(x, theta, theta / (theta + mean))
        if likelihood == "zinb":
            lost = torch.sigmoid(head.zero_logit(features)).detach().numpy()[:, KEPT]
            expected = np.log(lost * (x == 0) + (1 - lost) * np.exp(expected))
    np.testing.assert_allclose(said, expected.sum(1), rtol=2e-5)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "bernoulli"])
def test_parameters_of_missing_genes_get_no_gradient_from_the_likelihood(likelihood):
    adata, model = fitted(likelihood)
    batch = query_of(adata, model)
    output = (model.network.likelihood.base if likelihood == "zinb" else model.network.likelihood).output
    model.network.zero_grad()  # of the last step of the fit
    model.network.log_likelihood(torch.zeros(10, 3), batch, torch.ones(10)).total.backward()
    assert (output.weight.grad[:6].abs() < 1e-30).all()  # the kernels' exponential does not end in 0
    assert (output.weight.grad[6:] != 0).any(1).all()


def test_expected_input_is_close_to_the_expectation_of_log1p_counts():
    mean, theta, scale = np.array([0.02, 0.3, 1.5, 20.0]), np.array([0.5, 2.0, 5.0, 10.0]), 1.7
    log_mean, log_theta = torch.tensor(mean).log().float()[None], torch.tensor(theta).log().float()[None]
    counts = np.arange(2000)[:, None]
    laws = {
        "poisson": (PoissonTable(log_mean), stats.poisson.pmf(counts, mean)),
        "nb": (NegativeBinomialTable(log_mean, log_theta), stats.nbinom.pmf(counts, theta, theta / (theta + mean))),
    }
    laws["zinb"] = (
        ZeroInflatedTable(laws["nb"][0], torch.full((1, 4), -1.0)),
        laws["nb"][1] / (1 + np.exp(-1.0)) + (counts == 0) / (1 + np.exp(1.0)),
    )
    for table, probability in laws.values():
        expected = (probability * np.log1p(scale * counts)).sum(0)
        said = expected_log1p(table, torch.tensor([scale]), torch.arange(4))[0].numpy()
        np.testing.assert_allclose(table.zero_probability[0], probability[0], rtol=1e-5)
        np.testing.assert_allclose(said, expected, rtol=0.1)
        # the log1p of the mean would be too high
        of_mean = np.log1p(scale * probability.T @ counts[:, 0])
        assert (np.abs(said - expected) < np.abs(of_mean - expected) + 1e-5).all()
        assert np.abs(said - expected)[:2].sum() < 0.5 * np.abs(of_mean - expected)[:2].sum()


@pytest.mark.parametrize("likelihood", ["nb", "bernoulli"])
def test_filling_in_keeps_cells_nearer_to_where_all_genes_put_them(likelihood):
    adata = scvae.datasets.simulate(n_cells=500, n_genes=120, likelihood=likelihood, truth=False, rng=1)
    model = scvae.fit(adata, likelihood=likelihood, n_latent=4, rng=0, verbose=False)
    whole = adata.obsm["X_scvae"].copy()
    kept = np.sort(np.random.default_rng(0).permutation(120)[:84])
    some, zeroed = adata[:, kept].copy(), adata.copy()
    with pytest.warns(UserWarning, match="84 of the 120"):
        scvae.tl.embed(some, model)
    zeroed.X = zeroed.X.multiply(np.isin(np.arange(120), kept)).tocsr()
    scvae.tl.embed(zeroed, model)
    error = {name: np.square(a.obsm["X_scvae"] - whole).mean() for name, a in (("filled", some), ("zero", zeroed))}
    assert error["filled"] < 0.8 * error["zero"]


def test_cells_made_to_lack_genes_are_those_read_without_them():
    adata, model = fitted("nb")
    with pytest.warns(UserWarning, match="34 of the 40 modelled genes"):
        without = read_query(adata[:10, KEPT].copy(), model.schema)
    made = read_query(adata[:10].copy(), model.schema).lacking(without.missing, size_factors=False)
    np.testing.assert_array_equal(made.library, without.library)
    np.testing.assert_array_equal(made.missing, without.missing)
    for ours, theirs in zip(posterior_moments(model, made), posterior_moments(model, without), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_measured_genes_are_expected_and_drawn_at_the_depth_they_were_measured_at(likelihood):
    adata, model = fitted(likelihood)
    some = adata[:, KEPT].copy()
    assert adata[:, :6].X.sum() > 0.05 * adata.X.sum()  # what is missing would be felt
    with pytest.warns(UserWarning, match="34 of the 40"):
        scvae.tl.denoise(some, model, library_size="observed")
    expected = some.obsm["scvae_denoised"]
    np.testing.assert_allclose(expected[some.var_names].sum(1), np.asarray(some.X.sum(1)).ravel(), rtol=1e-4)
    assert (expected[adata.var_names[:6]].sum(1) > 0).all()
    if likelihood != "zinb":  # some of whose counts are lost on top
        with pytest.warns(UserWarning, match="34 of the 40"):
            drawn = scvae.tl.sample(some, model, n_samples=20, rng=0)
        assert drawn[:, some.var_names].X.sum() / 20 == pytest.approx(some.X.sum(), rel=0.05)


def test_expected_values_at_a_library_size_asked_for_are_of_all_genes():
    adata, model = fitted("nb")
    some = adata[:, KEPT].copy()
    with pytest.warns(UserWarning, match="34 of the 40"):
        scvae.tl.denoise(some, model, library_size=100.0)
    np.testing.assert_allclose(some.obsm["scvae_denoised"].sum(1), 100.0, rtol=1e-4)


def test_cells_that_lack_the_very_same_genes_are_not_copied():
    adata, model = fitted("nb")
    whole = read_query(adata.copy(), model.schema)
    assert whole.lacking(np.empty(0, np.int64), size_factors=False) is whole
