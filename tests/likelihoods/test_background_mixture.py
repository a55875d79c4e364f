"""Counts of antibodies: a mixture of background and foreground, and what is left without the background."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import special, stats

import scvae
from scvae.kernels import reference
from scvae.likelihoods.counts import NegativeBinomialTable
from scvae.likelihoods.mixture import BackgroundTable

VALUES = np.array([0.0, 1.0, 7.0, 60.0, 5000.0])
LAWS = [(5.0, 100.0, 10.0, -1.0), (0.01, 0.02, 1e-3, 0.0), (300.0, 301.0, 1e6, 40.0), (2.0, 1e4, 3.0, -60.0)]


def table(background, foreground, theta, logit, n):
    rows = [torch.full((1, n), value, dtype=torch.float64) for value in (background, foreground, theta)]
    background, foreground, theta = (row.log() for row in rows)
    laws = NegativeBinomialTable(background, theta), NegativeBinomialTable(foreground, theta)
    return BackgroundTable(*laws, torch.full((1, n), logit, dtype=torch.float64))


def nbinom(mean, theta):
    return stats.nbinom(theta, theta / (theta + mean))


@pytest.mark.parametrize(("background", "foreground", "theta", "logit"), LAWS)
def test_log_probability_mean_and_variance_are_those_of_the_mixture(background, foreground, theta, logit):
    law = table(background, foreground, theta, logit, len(VALUES))
    low, high = nbinom(background, theta), nbinom(foreground, theta)
    parts = [low.logpmf(VALUES) - np.log1p(np.exp(-logit)), high.logpmf(VALUES) - np.log1p(np.exp(logit))]
    expected = special.logsumexp(parts, axis=0)
    np.testing.assert_allclose(law.log_prob(torch.tensor(VALUES)[None])[0], expected, rtol=1e-9, atol=1e-7)
    share = special.expit(logit)
    mean = share * background + (1 - share) * foreground
    square = share * (low.var() + background**2) + (1 - share) * (high.var() + foreground**2)
    np.testing.assert_allclose(law.mean[0, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(law.variance[0, 0], square - mean**2, rtol=1e-6)
    given = law.foreground_share(torch.tensor(VALUES)[None])[0]
    np.testing.assert_allclose(given, np.exp(parts[1] - expected), rtol=1e-6, atol=1e-12)


def test_gradients_are_finite_where_one_law_has_no_probability():
    logit = torch.tensor([-800.0, 0.0, 800.0], requires_grad=True)
    first = torch.tensor([-1e4, -3.0, -1e4], dtype=torch.float64, requires_grad=True)
    second = torch.tensor([-2.0, -1e4, -5.0], dtype=torch.float64, requires_grad=True)
    reference.mixture_log_prob(first, second, logit).sum().backward()
    assert all(torch.isfinite(each.grad).all() for each in (logit, first, second))


def test_draws_follow_the_law():
    n = 40_000
    law = table(4.0, 90.0, 8.0, 0.4, n)
    drawn = law.sample(torch.Generator().manual_seed(0))[0].numpy()
    assert drawn.mean() == pytest.approx(float(law.mean[0, 0]), rel=0.03)
    assert drawn.var() == pytest.approx(float(law.variance[0, 0]), rel=0.05)


def test_denoised_proteins_are_foreground():
    adata = scvae.datasets.simulate(n_cells=600, n_genes=60, n_types=4, n_proteins=10, n_batches=2, rng=0)
    short = {"n_latent": 5, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=60)}
    model = scvae.fit(adata, protein_key="protein", protein_likelihood="nb_mixture", batch_key="batch", **short)
    scvae.tl.denoise(adata, model, view="protein", n_samples=0)
    denoised, share = adata.obsm["scvae_protein_denoised"].to_numpy(), adata.obsm["protein_foreground"].to_numpy()
    counts = adata.obsm["protein"].to_numpy()
    negative, positive = share < 0.1, share > 0.9
    assert denoised[negative].mean() < 0.35 * counts[negative].mean()
    assert denoised[positive].mean() > 0.75 * counts[positive].mean()
    with pytest.raises(ValueError, match="library_size has no effect on counts with background"):
        scvae.tl.denoise(adata, model, view="protein", library_size=100)
    with pytest.raises(ValueError, match="rank_genes compares proportions"):
        scvae.tl.rank_genes(adata, model, groupby="cell_type", view="protein")
    with pytest.raises(ValueError, match="likelihood must be one of"):
        scvae.fit(adata, likelihood="nb_mixture")
    query = adata[:100].copy()
    query.obs["batch"] = "new"
    mapped = scvae.tl.map_query(query, model, epochs=3, verbose=False)
    assert mapped.network.views[0].head.log_background.shape == (3, 10)
