"""Posteriors that each cell refines on its own: against a model in which the best is known, and their provenance."""

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.stats import multivariate_normal

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from tests.diagnostics.models import NOISE, linear_normal

LOADINGS = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0], [0.0, 0.5], [0.7, 0.0]], dtype=np.float32)


@pytest.fixture(scope="module")
def misled():
    """A model whose posterior is normal without correlations, and whose encoder is off by one in each dimension."""
    model, _, x = linear_normal(LOADINGS, n_cells=60)
    with torch.no_grad():
        model.network.encoder.mean.bias.add_(1.0)
        model.network.encoder.log_variance.bias.add_(1.0)
    return model, AnnData(x)


def test_the_embedding_becomes_the_exact_posterior(misled):
    model, adata = misled
    precision = 1.0 + (LOADINGS**2).sum(0) / NOISE**2
    mean = adata.X @ LOADINGS / NOISE**2 / precision
    found = scvae.tl.embed(adata, model, refine=200, copy=True)
    np.testing.assert_allclose(found.obsm["X_scvae"], mean, atol=0.02)
    np.testing.assert_allclose(found.obsm["X_scvae_var"], np.tile(1.0 / precision, (60, 1)), rtol=0.05)
    off = scvae.tl.embed(adata, model, copy=True).obsm["X_scvae"]
    np.testing.assert_allclose(off, mean + 1.0, atol=1e-4)


@pytest.mark.parametrize(("kind", "n_samples"), [("elbo", 2000), ("iw", 20)])
def test_the_bound_becomes_the_evidence(kind, n_samples, misled):
    model, adata = misled
    law = multivariate_normal(np.zeros(5), LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(5))
    evidence = law.logpdf(adata.X).mean()
    bounds = [scvae.tl.log_likelihood(adata, model, kind=kind, refine=n, n_samples=n_samples).mean() for n in (0, 200)]
    assert bounds[1] == pytest.approx(evidence, abs=0.02)
    assert bounds[0] < evidence - 0.2


def test_the_result_of_a_cell_depends_on_it_and_the_model_alone(misled, monkeypatch):
    model, adata = misled
    cells = read_cells(adata, model, None)
    once, again = (posterior_moments(model, cells, refine=20) for _ in range(2))
    assert once[0].tobytes() == again[0].tobytes()
    monkeypatch.setattr("scvae.inference.posterior.REFINED_AT_ONCE", 7 * len(LOADINGS))
    order = np.random.default_rng(0).permutation(60)
    for found, before in zip(posterior_moments(model, cells.taken(order), refine=20), once, strict=True):
        np.testing.assert_allclose(found, before[order], atol=1e-4)


def simulated():
    return scvae.datasets.simulate(n_cells=80, n_genes=30, n_batches=2, truth=False, rng=0)


@pytest.fixture(scope="module")
def of_many_betas():
    training, network = TrainingConfig(epochs=15, batch_size=32), NetworkConfig(width=16)
    options = {"batch_key": "batch", "beta": (0.1, 10.0), "n_latent": 3, "training": training, "network": network}
    return scvae.fit(simulated(), rng=0, verbose=False, **options)


def objective(model, cells, moments, beta):
    """E_q[log p(x | z)] - β KL of each cell at its posterior, with noise of its own."""
    mean, variance = (torch.from_numpy(moment) for moment in moments)
    batch = cells.batch(np.arange(len(cells))).at(model.network.betas, torch.full((len(cells),), np.log(beta)).float())
    noise = torch.randn(64, *mean.shape, generator=torch.Generator().manual_seed(7))
    z = (mean + variance.sqrt() * noise).flatten(0, 1)
    with torch.no_grad():
        fit = model.network.log_likelihood(z, batch, torch.zeros(len(z))).per_row.view(64, -1).mean(0)
    kl = 0.5 * (mean.square() + variance - 1.0 - variance.log()).sum(1)
    return float((fit - beta * kl).mean())


@pytest.mark.parametrize("lacking", [False, True])
@pytest.mark.parametrize("beta", [0.1, 10.0])
def test_each_beta_has_its_own_best_posterior_with_batches_and_without_some_genes(beta, lacking, of_many_betas):
    adata = simulated()
    if lacking:
        with pytest.warns(UserWarning, match="27 of the 30"):
            cells = read_cells(adata[:, 3:].copy(), of_many_betas, None)
    else:
        cells = read_cells(adata, of_many_betas, None)
    reached = [
        objective(of_many_betas, cells, posterior_moments(of_many_betas, cells, beta=beta, refine=n), beta)
        for n in (0, 100)
    ]
    elsewhere = posterior_moments(of_many_betas, cells, beta=1.0, refine=100)
    assert reached[1] > reached[0] + 0.02
    assert reached[1] > objective(of_many_betas, cells, elsewhere, beta) + 0.02


def test_a_refined_embedding_is_recorded_and_takes_the_place_of_what_came_from_the_encoder(of_many_betas):
    adata = simulated()
    scvae.tl.embed(adata, of_many_betas)
    plain = adata.obsm["X_scvae"].copy()
    scvae.tl.latent_genes(adata, of_many_betas)
    scvae.tl.neighbors(adata, of_many_betas)
    scvae.tl.embed(adata, of_many_betas, refine=20, n_samples=2)
    assert adata.uns["scvae"]["refine"] == 20
    assert not np.allclose(adata.obsm["X_scvae"], plain, atol=1e-3)
    assert "scvae_effects" not in adata.varm
    assert not adata.obsp
    # what is made of the model alone can be looked at beside it
    scvae.tl.latent_genes(adata, of_many_betas)
    scvae.pl.loadings(adata, show=False)
    scvae.tl.embed(adata, of_many_betas)
    assert adata.uns["scvae"]["refine"] == 0
    assert adata.obsm["X_scvae"].tobytes() == plain.tobytes()
    assert "X_scvae_samples" not in adata.obsm


@pytest.mark.parametrize("tool", [scvae.tl.embed, scvae.tl.log_likelihood])
@pytest.mark.parametrize("refine", [-1, 2.5, True])
def test_a_number_of_steps_that_is_none_is_refused(tool, refine, misled, digest):
    model, adata = misled
    before = digest(adata)
    with pytest.raises((TypeError, ValueError), match="refine"):
        tool(adata, model, refine=refine)
    assert digest(adata) == before
