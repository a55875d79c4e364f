"""Means of groups of cells against closed forms, and against what cells were drawn from."""

from functools import cache

import numpy as np
import pytest
from scipy.stats import norm

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.differential import contrasts

QUICK = TrainingConfig(epochs=8)


@cache
def fitted(likelihood="nb"):
    adata = scvae.datasets.simulate(n_cells=300, n_genes=60, likelihood=likelihood, n_types=1, truth=False, rng=0)
    model = scvae.fit(
        adata, likelihood=likelihood, n_latent=3, network=NetworkConfig(width=16), training=QUICK, rng=0, verbose=False,
    )  # fmt: skip
    return adata, model, read_cells(adata, model, None)


def test_with_a_poisson_head_the_mean_of_a_group_is_its_ratio_of_counts_up_to_unequal_libraries():
    adata, model, cells = fitted("poisson")
    codes = np.arange(300) % 2
    (found,) = contrasts(model, cells, codes, [(0, 1)])
    x = adata[:, model.genes].X.toarray()
    for which, of in ((0, found.group), (1, found.reference)):
        ratio = x[codes == which].sum(0) / x[codes == which].sum()
        np.testing.assert_allclose(of.mean, ratio, rtol=0.05, atol=1e-5)
        np.testing.assert_allclose(of.counts, x[codes == which].sum(0))
        np.testing.assert_allclose(of.detected, (x[codes == which] > 0).mean(0))


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_two_random_halves_give_standard_normal_scores(likelihood):
    _, model, cells = fitted(likelihood)
    scores = []
    for seed in range(40):
        codes = np.random.default_rng(seed).permutation(300) % 2
        (found,) = contrasts(model, cells, codes, [(0, 1)])
        enough = found.group.counts + found.reference.counts >= 50
        scores.append(np.where(enough, found.estimate / found.error, np.nan))
    # genes go together (programs of genes), halves do not: what holds for each half counts once
    scores = np.array(scores)
    spread = np.sqrt(np.nanmean(scores**2, axis=1))
    assert spread.mean() == pytest.approx(1.0, abs=0.08)
    beyond = np.nanmean(np.where(np.isnan(scores), np.nan, np.abs(scores) > norm.isf(0.025)), axis=1)
    assert beyond.mean() == pytest.approx(0.05, abs=0.025)
    assert np.nanmax(np.abs(scores)) < 5


def test_the_rest_is_all_other_cells():
    _, model, cells = fitted()
    codes = np.arange(300) % 3
    merged = np.where(codes == 0, 0, 1)
    (rest,) = contrasts(model, cells, codes, [(0, None)])
    (pair,) = contrasts(model, cells, merged, [(0, 1)])
    np.testing.assert_allclose(rest.estimate, pair.estimate, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(rest.error, pair.error, rtol=1e-3)
    assert rest.reference.n_cells == 200


def test_cells_outside_all_groups_play_no_part():
    adata, model, cells = fitted()
    codes = np.where(np.arange(300) < 200, np.arange(300) % 2, -1)
    kept = adata[:200].copy()
    (some,), (only,) = (
        contrasts(model, c, k, [(0, 1)]) for c, k in ((cells, codes), (read_cells(kept, model, None), codes[:200]))
    )
    np.testing.assert_allclose(some.estimate, only.estimate, rtol=1e-4, atol=1e-5)


def test_the_size_of_the_chunks_does_not_matter(monkeypatch):
    _, model, cells = fitted()
    codes = np.arange(300) % 2
    (whole,) = contrasts(model, cells, codes, [(0, 1)])
    monkeypatch.setattr("scvae.inference.differential.AT_ONCE", 60 * 17)
    (cut,) = contrasts(model, cells, codes, [(0, 1)])
    np.testing.assert_allclose(cut.estimate, whole.estimate, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(cut.error, whole.error, rtol=1e-3)


def test_an_error_of_the_decoder_cancels():
    _, model, cells = fitted()
    codes = np.arange(300) % 2
    (before,) = contrasts(model, cells, codes, [(0, 1)])
    bias = model.network.likelihood.output.bias
    bias.data += bias.new_tensor(0.4 * np.sin(np.arange(60)))
    (after,) = contrasts(model, cells, codes, [(0, 1)])
    enough = before.group.counts >= 50
    assert np.abs(after.group.model_mean / before.group.model_mean - 1)[enough].max() > 0.2
    np.testing.assert_allclose(after.group.mean[enough], before.group.mean[enough], rtol=0.04)
    assert np.abs(after.estimate - before.estimate)[enough].max() < 0.05


def test_no_pair_without_two_cells_of_both_in_a_batch():
    _, model, cells = fitted()
    codes = np.where(np.arange(300) == 0, 0, 1)
    assert contrasts(model, cells, codes, [(0, 1), (0, 2)]) == [None, None]
