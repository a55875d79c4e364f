"""The β recommended keeps the ELBO and has the most stable clusters."""

import numpy as np
import pandas as pd
import pytest

from scvae.diagnostics.recommendation import recommend


def table(**columns):
    n = len(columns["elbo"])
    defaults = {"beta": np.geomspace(0.1, 10, n), "rate": np.full(n, 10.0), "leiden_stability": np.full(n, 0.8)}
    return pd.DataFrame({**defaults, **columns})


def test_the_most_stable_of_those_that_keep_the_elbo_wins():
    found = table(elbo=[-501.9, -500.0, -500.5, -501.0, -501.5], leiden_stability=[0.7, 0.7, 0.8, 0.9, 0.9])
    assert recommend(found) == pytest.approx(found["beta"][4])


def test_a_beta_that_loses_more_than_a_fifth_of_the_rate_at_the_best_elbo_is_out():
    found = table(elbo=[-500.0, -500.0, -501.9, -502.1, -502.1], leiden_stability=[0.7, 0.7, 0.7, 0.9, 0.9])
    assert recommend(found) == pytest.approx(found["beta"][2])
    half = found.assign(rate=[5.0, 50.0, 50.0, 50.0, 50.0])  # the rate at the first of the best counts
    assert recommend(half) == pytest.approx(found["beta"][0])


def test_the_scale_of_the_likelihood_does_not_matter():
    elbo = np.array([-3.0, -1.0, -1.5, -4.0])
    found = table(elbo=elbo, leiden_stability=[0.9, 0.7, 0.8, 0.9], rate=[4.0, 3.0, 2.0, 1.0])
    assert recommend(found) == recommend(found.assign(elbo=1e3 + elbo)) == pytest.approx(found["beta"][2])


def test_one_lucky_beta_does_not_beat_a_stable_neighbourhood():
    found = table(elbo=[-500.0] * 6, leiden_stability=[0.91, 0.70, 0.70, 0.85, 0.90, 0.85])
    assert recommend(found) == pytest.approx(found["beta"][4])


def test_the_smallest_of_equals_is_taken():
    found = table(elbo=[-500.0] * 4)
    assert recommend(found) == pytest.approx(0.1)
