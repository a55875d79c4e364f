"""Comparing donors against closed forms, quadrature, and what counts were drawn from."""

import numpy as np
import pytest
from scipy import integrate, stats

from scvae.inference.donors import Units, _dependence, _fitted, _residuals, difference, size_factors, weighted_fdr


def units(count, exposure, on_side, *, spread=0.0, block=None):
    count = np.asarray(count, float)
    return Units(
        count=count,
        exposure=np.broadcast_to(np.asarray(exposure, float), count.shape).copy(),
        spread=np.full(count.shape, spread),
        on_side=np.asarray(on_side, bool),
        block=np.zeros(len(count), int) if block is None else np.asarray(block),
    )


def drawn(rng, n_donors, *, n_features=2_000, sd=0.3, cells=(20, 200), paired=False):
    """Counts of donors without any difference between the sides; donors have very different numbers of cells."""
    n = 2 * n_donors
    donor = np.repeat(np.arange(n_donors), 2) if paired else np.arange(n)
    own = rng.normal(0, 1.0, (n, n_features))[donor] if paired else 0.0
    eta = rng.normal(-7, 1.5, n_features) + own + sd * rng.normal(size=(n, n_features))
    size, spread = rng.integers(*cells, n)[:, None], 0.5
    mean = 1500.0 * size * np.exp(eta)
    count = rng.poisson(mean * rng.gamma(size / spread, spread / size, mean.shape))
    kept = count.sum(0) >= 10
    return Units(
        count=count[:, kept].astype(float),
        exposure=np.repeat(1500.0 * size, kept.sum(), 1),
        spread=np.repeat(spread / size, kept.sum(), 1),
        on_side=np.arange(n) % 2 == 0,
        block=donor if paired else np.zeros(n, int),
    )


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize(
    ("n_donors", "sd"), [(2, 0.5), (3, 0.2), (6, 0.5), pytest.param(20, 0.3, marks=pytest.mark.slow)]
)
def test_p_values_without_a_difference_are_uniform(n_donors, sd, paired):
    found = difference(drawn(np.random.default_rng(n_donors), n_donors, sd=sd, paired=paired))
    p = np.exp(found.log_p)
    for level in (0.05, 0.2):
        # at most nominal; two pairs are the hardest, with a single degree of freedom for each gene
        assert (0.5 if n_donors > 2 else 0.2) * level < (p <= level).mean() < 1.25 * level
    assert (p <= 1e-3).mean() < 3e-3
    np.testing.assert_allclose(np.abs(found.estimate / found.tail_error)[p < 0.3], stats.norm.isf(p[p < 0.3] / 2))
    assert np.median(found.donor_sd) == pytest.approx(sd, rel=0.3)


@pytest.mark.parametrize("paired", [False, True])
def test_with_many_counts_the_estimate_is_the_difference_of_mean_logs(paired):
    rng = np.random.default_rng(0)
    eta = rng.normal(0, 0.5, (10, 50)) + np.arange(10)[:, None] % 2
    found = difference(units(1e8 * np.exp(eta), 1e8, np.arange(10) % 2, block=np.arange(10) // 2 if paired else None))
    np.testing.assert_allclose(found.estimate, eta[1::2].mean(0) - eta[::2].mean(0), atol=1e-3)
    # all features have this variance, and so the test is nearly that of a known variance
    np.testing.assert_allclose(found.error, 0.5 * np.sqrt(2 / 5), rtol=0.4)
    assert found.error.mean() == pytest.approx(0.5 * np.sqrt(2 / 5), rel=0.1)


@pytest.mark.parametrize(("count", "spread", "sd"), [(0, 0.0, 0.3), (3, 0.1, 0.8), (40, 0.02, 0.5)])
def test_the_marginal_likelihood_is_that_of_quadrature(count, spread, sd):
    it = units([[count], [20.0]], 10.0, [1, 0], spread=spread)
    eta = np.log(it.count + 0.5) - np.log(10.0)
    # one effect for two units takes up all differences, so both are at their own level, where u is 0
    for _ in range(6):
        eta, delta, _, marginal, _ = _fitted(it, np.ones((1, 2)), np.full((2, 1), -9.0), eta, sd, effect=False)
    assert delta[0] == 0
    level = float((eta - sd**2 * (it.count - 10 * np.exp(eta)) / (1 + spread * 10 * np.exp(eta)))[0, 0])

    def density(u, n):
        mean = 10.0 * np.exp(level + u)
        law = stats.poisson(mean) if spread == 0 else stats.nbinom(1 / spread, 1 / (1 + spread * mean))
        return law.pmf(n) * stats.norm.pdf(u, scale=sd)

    def constant(n):  # terms without the mean, which the code leaves out
        law = stats.poisson(5.0) if spread == 0 else stats.nbinom(1 / spread, 1 / (1 + spread * 5.0))
        term = -5.0 if spread == 0 else -np.log1p(spread * 5.0) / spread
        inflated = n * np.log1p(spread * 5.0)
        return law.logpmf(n) - (n * np.log(5.0) - inflated + term)

    expected = sum(
        np.log(integrate.quad(density, -8 * sd, 8 * sd, args=(n,), epsabs=1e-14)[0]) - constant(n)
        for n in (count, 20)
    )  # fmt: skip
    assert marginal[0] == pytest.approx(expected, abs=0.05)


def test_a_donor_with_few_counts_counts_little_and_one_feature_that_varies_more_is_not_called():
    rng = np.random.default_rng(1)
    quiet = 1e6 * np.exp(0.1 * rng.normal(size=(6, 300)))
    exposure = np.full(quiet.shape, 1e6)
    exposure[0] = 3.0
    quiet[0] = 0.0  # expected 3 counts, and none were seen: that says little against the five others
    found = difference(units(quiet, exposure, [1, 1, 1, 0, 0, 0]))
    assert np.abs(found.estimate).mean() < 0.15
    loud = 1e6 * np.exp(0.1 * rng.normal(size=(6, 300)))
    loud[:, 0] = 1e6 * np.exp([2.0, -1.0, 2.0, -2.0, 1.0, -2.0])
    found = difference(units(loud, 1e6, [1, 1, 1, 0, 0, 0]))
    assert found.donor_sd[0] > 1.0
    assert np.median(found.donor_sd) < 0.3
    assert np.exp(found.log_p[0]) > 0.01  # 20 standard errors by the variance of the other features


def test_levels_of_batches_cancel():
    rng = np.random.default_rng(2)
    batch, side = np.array([0, 0, 0, 1, 1, 1]), np.array([1, 1, 0, 1, 0, 0])
    eta = 0.2 * rng.normal(size=(6, 400)) + 3.0 * batch[:, None] * rng.normal(size=400)
    within = difference(units(1e6 * np.exp(eta), 1e6, side, block=batch))
    assert (np.exp(within.log_p) < 0.05).mean() < 0.08
    assert within.error.mean() < 0.3


@pytest.mark.parametrize(("n_units", "copies", "rel"), [(40, 1, 0.4), (40, 50, 0.3), (40, 250, 0.7), (6, 50, 1.0)])
def test_dependence_is_one_over_the_number_of_independent_features(n_units, copies, rel):
    rng = np.random.default_rng(copies)
    logs = np.repeat(rng.normal(size=(n_units, 1000 // copies)), copies, axis=1)
    of = units(np.exp(logs), 1.0, np.arange(n_units) % 2)
    assert _dependence(*_residuals(logs, of)) == pytest.approx(copies / 1000, rel=rel)


def test_one_degree_of_freedom_says_nothing_about_dependence():
    rng = np.random.default_rng(0)
    of = units(rng.uniform(1, 2, (4, 1000)), 1.0, [0, 1, 0, 1], block=[0, 0, 1, 1])
    expected = (1 - 1 / 1000) / np.log(1000)  # the mean of 1 / n, even in log n
    assert _dependence(*_residuals(np.log(of.count), of)) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("n_donors", [3, 10])
def test_features_that_vary_together_are_not_called_more_often(n_donors):
    rng = np.random.default_rng(n_donors)
    called = 0
    for _ in range(100):
        effect = np.repeat(0.4 * rng.normal(size=(2 * n_donors, 6)), 20, axis=1)
        found = difference(units(rng.poisson(40.0 * np.exp(effect)), 40.0, np.arange(2 * n_donors) % 2))
        called += (weighted_fdr(found.log_p, np.ones(120)) <= 0.1).any()
    assert called <= 17  # 0.1, and 2.3 standard errors of 100 repeats


def test_adjusted_p_values_are_those_of_scipy_and_a_weight_of_two_is_two_features():
    p = np.random.default_rng(0).uniform(size=200) ** 2
    np.testing.assert_allclose(weighted_fdr(np.log(p), np.ones(200)), stats.false_discovery_control(p))
    weight = np.where(np.arange(200) < 50, 2.0, 1.0)
    twice = stats.false_discovery_control(np.concatenate([p, p[:50]]))[:200]
    np.testing.assert_allclose(weighted_fdr(np.log(p), weight), twice)


def test_size_factors_follow_the_typical_feature_not_the_largest():
    rng = np.random.default_rng(3)
    rate = rng.lognormal(3, 1, 500)
    factor = np.array([0.5, 1.0, 2.0, 1.0])
    mean = factor[:, None] * np.tile(rate, (4, 1))
    mean[2, :50] *= 10  # a tenth of the features rise in one unit
    found = size_factors(rng.poisson(mean).astype(float), np.ones_like(mean))
    np.testing.assert_allclose(found, factor / stats.gmean(factor), rtol=0.1)
