"""Adaptive shrinkage against exact integrals and planted shares of false discoveries."""

import numpy as np
import pytest
from scipy.stats import norm

from scvae.inference.shrinkage import bayesian_fdr, shrink

NODES, WEIGHTS = np.polynomial.legendre.leggauss(40)


def planted(seed, *, n=2000, changed=0.1, width=1.0, centre=0.0):
    rng = np.random.default_rng(seed)
    is_changed = rng.random(n) < changed
    truth = np.where(is_changed, rng.normal(0, width, n), 0.0)
    error = rng.uniform(0.1, 0.6, n)
    return centre + truth + error * rng.normal(size=n), error, truth


@pytest.mark.parametrize("changed", [0.05, 0.3])
def test_the_share_of_false_discoveries_is_at_most_what_it_is_said_to_be(changed):
    shares = []
    for seed in range(5):
        estimate, error, truth = planted(seed, changed=changed)
        rate = bayesian_fdr(shrink(estimate, error).error_probability)
        shares.append([(truth[rate <= level] == 0).mean() for level in (0.05, 0.1)])
        assert (rate[np.abs(truth) > 8 * error] <= 0.05).all()
    assert (np.mean(shares, axis=0) <= [0.07, 0.12]).all()


def test_nothing_is_called_where_nothing_changes():
    called = 0
    for seed in range(4):
        estimate, error, _ = planted(seed, changed=0.0)
        called += (bayesian_fdr(shrink(estimate, error).error_probability) <= 0.05).sum()
    assert called <= 1


@pytest.mark.parametrize("one_way", [False, True])
def test_the_centre_is_that_of_the_unchanged_even_if_all_changes_go_one_way(one_way):
    estimate, error, truth = planted(3, changed=0.2, centre=-0.3)
    found = shrink(estimate + (np.abs(truth) - truth if one_way else 0.0), error)
    assert found.centre == pytest.approx(-0.3, abs=0.015)


@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_mean_sd_and_tails_are_those_of_the_posterior_under_the_prior(threshold):
    estimate, error, _ = planted(0, n=1_000, changed=0.5)
    found = shrink(estimate, error, threshold=threshold)
    none, up, down = np.split(found.prior_weight, [1, 1 + len(found.prior_sd)])
    assert found.prior_weight.sum() == pytest.approx(1.0)
    for row in np.argsort(estimate / error)[[0, 1, 60, 300, 500, 700, 940, 998, 999]]:
        x, s = estimate[row] - found.centre, error[row]

        def joint(change, x=x, s=s):
            side = np.where(change[:, None] > 0, up, down)
            return (side * 2 * norm.pdf(change[:, None], 0, found.prior_sd)).sum(1) * norm.pdf(x, change, s)

        def integral(low, high, power=0, f=joint, x=x, s=s):
            # Gauss-Legendre between the points where the integrand bends: errors from the estimate, sds from 0
            bends = np.concatenate([x + s * np.arange(-12, 13, 2), 0.2 * np.array([-8, -4, -2, -1, 0, 1, 2, 4, 8])])
            points = np.unique(np.clip([low, high, *bends], low, high))
            at = 0.5 * (np.diff(points)[:, None] * NODES + (points[1:] + points[:-1])[:, None]).ravel()
            return (0.5 * np.diff(points)[:, None] * WEIGHTS).ravel() @ (at**power * f(at))

        total = none[0] * norm.pdf(x, 0, s) + integral(-30, 30)
        mean = integral(-30, 30, 1) / total
        beyond = max(integral(threshold, 30), integral(-30, -threshold)) / total
        assert found.mean[row] == pytest.approx(mean, abs=1e-6)
        assert found.sd[row] == pytest.approx(np.sqrt(integral(-30, 30, 2) / total - mean**2), abs=1e-6)
        assert found.error_probability[row] == pytest.approx(1 - beyond, abs=1e-6)


def test_without_pseudo_observations_the_prior_is_the_one_that_changes_were_drawn_from(monkeypatch):
    # a third unchanged, and of the rest three quarters |N(0, 1)|, one quarter -|N(0, 1)|
    monkeypatch.setattr("scvae.inference.shrinkage.UNCHANGED_WEIGHT", 0.0)
    rng = np.random.default_rng(1)
    error = rng.uniform(0.05, 0.2, 8_000)
    sign = rng.choice([0, 1, -1], 8_000, p=[1 / 3, 1 / 2, 1 / 6])
    found = shrink(sign * np.abs(rng.normal(size=8_000)) + error * rng.normal(size=8_000), error)
    none, up, down = np.split(found.prior_weight, [1, 1 + len(found.prior_sd)])
    assert found.centre == pytest.approx(0.0, abs=0.01)
    assert none[0] == pytest.approx(1 / 3, abs=0.03)
    for weight, share in ((up, 1 / 2), (down, 1 / 6)):
        at = np.array([0.5, 1.0, 2.0])
        tails = 2 * norm.sf(at[:, None] / found.prior_sd) @ weight
        np.testing.assert_allclose(tails, share * 2 * norm.sf(at), atol=0.015)


def test_a_threshold_never_makes_a_change_more_certain():
    estimate, error, _ = planted(1)
    lower, higher = (shrink(estimate, error, threshold=t).error_probability for t in (0.0, 0.5))
    assert (higher >= lower - 1e-12).all()
    assert (higher > lower + 0.1).any()


def test_the_rate_is_the_running_mean_of_the_sorted_probabilities():
    np.testing.assert_allclose(bayesian_fdr(np.array([0.3, 0.0, 0.1, 1.0])), [0.4 / 3, 0.0, 0.05, 0.35])


def test_a_single_estimate_can_be_shrunk():
    found = shrink(np.array([0.5]), np.array([0.1]))
    assert np.isfinite([found.mean[0], found.sd[0], found.error_probability[0]]).all()
