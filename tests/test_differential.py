"""Means of groups and their likelihood ratios against closed forms, and against what cells were drawn from."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom, norm

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.differential import Side, _contrast, contrasts, overdispersion
from scvae.tl._read import read_cells

QUICK = TrainingConfig(epochs=8)


@cache
def fitted(likelihood="nb"):
    adata = scvae.datasets.simulate(n_cells=300, n_genes=60, likelihood=likelihood, n_types=1, truth=False, rng=0)
    model = scvae.fit(
        adata, likelihood=likelihood, n_latent=3, network=NetworkConfig(width=16), training=QUICK, rng=0, verbose=False,
    )  # fmt: skip
    return adata, model, read_cells(adata, model, None)


def side(mean, *, unit=1e-4, spread=0.0, n_cells=100):
    """A side whose cells and model agree on the overdispersion."""
    mean = np.atleast_1d(np.asarray(mean, float))
    variance = unit * mean + spread * mean**2
    ones = np.ones_like(mean)
    return Side(
        mean=mean, model_mean=np.maximum(mean, 1e-6), variance=variance,
        model_variance=unit * np.maximum(mean, 1e-6) + spread * np.maximum(mean, 1e-6) ** 2,
        unit=unit * ones, counts=mean / unit, detected=ones, n_cells=n_cells, mean_library=1 / (unit * n_cells),
    )  # fmt: skip


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
    monkeypatch.setattr("scvae.differential.AT_ONCE", 60 * 17)
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


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("counts", [(40, 10), (3, 0), (0, 25), (500, 480)])
def test_the_error_reproduces_the_likelihood_ratio(counts, spread):
    a, b = (side(c * 1e-4, spread=spread) for c in counts)
    used = [float(overdispersion(s)[0]) for s in (a, b)]

    def log_density(count, mean, s):
        if s == 0:
            return count * np.log(mean) - mean
        return nbinom.logpmf(count, 1 / s, 1 / (1 + s * mean))

    def joint(log_mean):
        return sum(log_density(c, np.exp(log_mean), s) for c, s in zip(counts, used, strict=True))

    common = -minimize_scalar(lambda t: -joint(t), bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).fun
    apart = sum(log_density(c, max(c, 1e-300), s) if c else 0.0 for c, s in zip(counts, used, strict=True))
    ratio = 2 * (apart - common)
    found = _contrast(a, b)
    assert np.sign(found.estimate[0]) == np.sign(counts[0] - counts[1])
    if ratio > 1:
        assert (found.estimate[0] / found.error[0]) ** 2 == pytest.approx(ratio, rel=1e-4)


def test_what_cells_show_outweighs_the_model_where_they_are_many():
    # of 400 genes all but one are as the model says, and that one is four times as overdispersed
    for n_cells, low, high in ((5, 1.0, 1.6), (5000, 3.5, 4.0)):
        s = side(np.full(400, 1e-2), unit=1e-3 / n_cells, spread=1.0 / n_cells, n_cells=n_cells)
        cells_say = np.where(np.arange(400) == 0, 4.0, 1.0) / n_cells
        found = overdispersion(replace(s, variance=s.unit * s.mean + cells_say * s.mean**2)) * n_cells
        assert low <= found[0] < high
        np.testing.assert_allclose(found[1:], 1.0, atol=0.05)


def test_what_the_model_lacks_is_learnt_from_all_genes():
    # cells show an overdispersion of 0.5 that a Poisson model has nothing of; with few cells they show it badly
    n_cells, rng = 30, np.random.default_rng(0)
    s = side(np.full(500, 1e-2), unit=1e-3 / n_cells, n_cells=n_cells)
    cells_say = 0.5 / n_cells + np.sqrt((0.6 / n_cells) ** 2 * 2 / n_cells) * rng.normal(size=500)
    found = overdispersion(replace(s, variance=s.unit * s.mean + cells_say * s.mean**2)) * n_cells
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.std() < 0.5 * (cells_say * n_cells).std()


def test_no_pair_without_two_cells_of_both_in_a_batch():
    _, model, cells = fitted()
    codes = np.where(np.arange(300) == 0, 0, 1)
    assert contrasts(model, cells, codes, [(0, 1), (0, 2)]) == [None, None]
