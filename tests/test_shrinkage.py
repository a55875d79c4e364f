"""Adaptive shrinkage against exact integrals and planted shares of false discoveries."""

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from scvae.shrinkage import bayesian_fdr, shrink


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


def test_changes_that_all_go_one_way_move_the_centre_less_than_they_move_the_median():
    estimate, error, truth = planted(3, changed=0.2, centre=-0.3)
    one_way = estimate + np.abs(truth) - truth  # every change upwards
    found = shrink(one_way, error)
    assert abs(found.centre + 0.3) < 0.7 * abs(np.median(one_way) + 0.3)
    assert shrink(estimate, error).centre == pytest.approx(-0.3, abs=0.02)


def test_mean_sd_and_tails_are_those_of_the_posterior_under_a_known_prior():
    # half of the changes are 0 and half N(0, 1); the pseudo-observations of no change add 15 % of the estimates
    estimate, error, _ = planted(0, n=6_000, changed=0.5)
    found = shrink(estimate, error, threshold=0.2)
    share = (found.unchanged + 0.15) / 1.15
    rows = np.argsort(np.abs(estimate / error))[::749]
    for row in rows:
        x, s = estimate[row], error[row]

        def joint(change, x=x, s=s):
            return (1 - share) * norm.pdf(change) * norm.pdf(x, change, s)

        none = share * norm.pdf(x, 0, s)
        total = none + quad(joint, -8, 8, points=[0, x])[0]
        mean = quad(lambda c, f=joint: c * f(c), -8, 8, points=[0, x])[0] / total
        square = quad(lambda c, f=joint: c * c * f(c), -8, 8, points=[0, x])[0] / total
        beyond = max(quad(joint, 0.2, 8, points=[max(x, 0.3)])[0], quad(joint, -8, -0.2, points=[min(x, -0.3)])[0])
        assert found.mean[row] == pytest.approx(mean, abs=0.06)
        assert found.sd[row] == pytest.approx(np.sqrt(square - mean**2), abs=0.06)
        assert found.error_probability[row] == pytest.approx(1 - beyond / total, abs=0.08)


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
