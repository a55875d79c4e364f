"""Posterior-predictive checks pass for the law that made the cells, and fail for others."""

import numpy as np
import pytest
import torch

import scvae
from scvae.diagnostics.predictive import N_REPLICATES, _Rank, predictive
from scvae.inference.cells import read_cells
from tests.diagnostics.models import linear_normal

LOADINGS = np.linspace(0.2, 1.0, 24, dtype=np.float32).reshape(12, 2)


def test_the_true_law_covers_nine_values_in_ten():
    model, cells, x = linear_normal(LOADINGS, n_cells=400)
    found = predictive(model, cells, seed=0)
    assert found.coverage == pytest.approx(0.9, abs=0.03)
    assert found.library_coverage >= 0.9  # z knows the cell it is compared with, and its sum best of all
    assert found.variance_ratio == pytest.approx(1.0, abs=0.1)
    assert found.ranks.sum() == pytest.approx(1.0)
    np.testing.assert_allclose(found.mean, x.mean(0), atol=1e-5)
    np.testing.assert_allclose(found.variance, x.var(0), rtol=1e-4)


def test_too_narrow_a_law_covers_too_little_and_too_wide_a_law_too_much():
    model, cells, _ = linear_normal(LOADINGS)
    with torch.no_grad():
        model.network.likelihood.log_free_scale -= np.log(2)
    assert predictive(model, cells, seed=0).coverage < 0.75
    with torch.no_grad():
        model.network.likelihood.log_free_scale += np.log(4)
    assert predictive(model, cells, seed=0).coverage > 0.97


def test_overdispersed_counts_are_covered_by_nb_and_not_by_poisson():
    adata = scvae.datasets.simulate(n_cells=300, n_genes=60, inverse_dispersion=0.5, truth=False, rng=0)
    found = {}
    for likelihood in ("nb", "poisson"):
        model = scvae.fit(adata, likelihood=likelihood, n_latent=3, rng=0, verbose=False)
        found[likelihood] = predictive(model, read_cells(adata, model, None), seed=0)
    assert found["nb"].coverage == pytest.approx(0.9, abs=0.04)
    assert found["poisson"].coverage < 0.8
    assert found["nb"].zero_error < 0.5 * found["poisson"].zero_error
    np.testing.assert_allclose(found["nb"].zero_fraction, (adata.X.toarray() == 0).mean(0))


def test_places_among_draws_of_the_same_discrete_law_are_uniform():
    generator = torch.Generator().manual_seed(0)
    rate = torch.full((200, 100), 0.7)
    rank = _Rank(torch.poisson(rate, generator=generator))
    for _ in range(N_REPLICATES):
        rank.compare(torch.poisson(rate, generator=generator))
    share = torch.bincount(rank.place(generator).long().flatten()) / rate.numel()
    torch.testing.assert_close(share, torch.full((N_REPLICATES + 1,), 0.05), atol=0.005, rtol=0.0)
