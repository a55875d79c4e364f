"""Mutual information and the aggregate posterior, against closed forms."""

import math

import numpy as np
import pytest
import torch

from scvae.diagnostics.collapse import mean_kl
from scvae.diagnostics.information import information
from scvae.model.latent.mixture import TrainedMixture


def channel(a, n, *, n_latent=1, seed=0):
    """q(z | x) = N(a x, 1 - a^2) with x ~ N(0, 1): moments of n cells."""
    x = np.random.default_rng(seed).standard_normal((n, n_latent))
    return a * x, np.full((n, n_latent), math.log1p(-(a**2)))


@pytest.mark.parametrize("a", [0.0, 0.3, 0.6, 0.9])
def test_a_normal_channel_has_its_information_and_an_aggregate_equal_to_the_prior(a):
    truth = -0.5 * math.log1p(-(a**2))
    found = information(*channel(a, 3000), seed=0, n_reference=3000)
    assert abs(found.mutual_information - truth) < 4 * found.mutual_information_error + 0.01
    assert abs(found.marginal_kl) < 4 * found.marginal_kl_error + 0.01
    assert found.per_dimension.item() == pytest.approx(found.mutual_information)
    assert found.upper_bound == pytest.approx(truth, abs=0.05)
    assert not found.saturated


def test_the_two_parts_add_up_to_the_mean_kl_within_their_noise():
    rng = np.random.default_rng(1)
    mean, log_variance = rng.normal(0.5, 1.0, (800, 4)), rng.normal(-1.0, 0.5, (800, 4))
    found = information(mean, log_variance, seed=0, n_draws=8)
    error = math.hypot(found.mutual_information_error, found.marginal_kl_error)
    assert abs(found.mutual_information + found.marginal_kl - found.kl) < 4 * error
    assert error < 0.1 * found.kl


def test_a_constant_posterior_has_no_information_and_all_of_its_kl_in_the_aggregate():
    mean, log_variance = np.full((500, 2), 1.5), np.full((500, 2), -1.0)
    found = information(mean, log_variance, seed=0, n_draws=20)
    assert found.mutual_information == pytest.approx(0.0, abs=1e-9)
    assert found.marginal_kl == pytest.approx(found.kl, abs=4 * found.marginal_kl_error)
    assert found.upper_bound == pytest.approx(0.0, abs=1e-9)


def test_information_stops_at_the_log_of_the_number_of_cells_and_says_so():
    found = information(*channel(0.999, 500, n_latent=3), seed=0)
    truth = -1.5 * math.log1p(-(0.999**2))
    assert truth > math.log(500)
    assert found.saturated
    assert found.mutual_information <= found.cap + 1e-9 == pytest.approx(math.log(500))
    assert found.upper_bound == pytest.approx(truth, rel=0.05)


def test_saturated_models_are_still_told_apart_by_the_bound_and_by_dimension():
    low, high = (information(*channel(a, 500, n_latent=8), seed=0) for a in (0.95, 0.98))
    assert low.saturated
    assert high.saturated
    assert abs(high.mutual_information - low.mutual_information) < 0.5
    gain = 8 * 0.5 * math.log((1 - 0.95**2) / (1 - 0.98**2))
    assert high.upper_bound - low.upper_bound == pytest.approx(gain, rel=0.05)
    assert high.per_dimension.sum() - low.per_dimension.sum() == pytest.approx(gain, rel=0.1)


def test_information_of_factorised_posteriors_is_at_most_the_sum_over_dimensions():
    x = np.random.default_rng(2).standard_normal((1000, 1))
    mean = 0.8 * np.hstack([x, x, x])  # three copies say little more than one
    found = information(mean, np.full_like(mean, math.log(0.36)), seed=0)
    assert found.mutual_information < 0.75 * found.per_dimension.sum()


def test_more_cells_than_the_reference_are_sampled_and_the_cap_is_that_of_the_sample():
    found = information(*channel(0.6, 20_000), seed=0, n_reference=1000)
    assert found.cap == pytest.approx(math.log(1000))
    assert found.mutual_information == pytest.approx(-0.5 * math.log1p(-0.36), abs=0.06)


def test_the_same_seed_gives_the_same_numbers_and_another_does_not():
    moments = channel(0.5, 200)
    first, again, other = (information(*moments, seed=seed).mutual_information for seed in (3, 3, 4))
    assert first == again != other


def test_under_a_mixture_that_the_cells_fill_nothing_is_lost_between_posteriors_and_prior():
    """Cells drawn from the prior, with their exact posteriors: KL(q(z) || p(z)) is 0, and is not under N(0, I)."""
    prior = TrainedMixture(2, 3, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        prior.centre.mul_(6.0)
        z = prior.sample(2000, torch.Generator().manual_seed(4)).double().numpy()
    noise = np.random.default_rng(0).standard_normal(z.shape)
    variance = 0.1 * 0.36 / (0.1 + 0.36)  # of a normal component, seen with noise of variance 0.1
    components = prior.joint(torch.from_numpy(z).float()).argmax(1).numpy()
    centre = prior.centre.detach().double().numpy()[components]
    mean = centre + 0.36 / 0.46 * (z + 0.1**0.5 * noise - centre)
    found = information(mean, np.full_like(mean, math.log(variance)), prior, seed=0)
    assert found.marginal_kl == pytest.approx(0.0, abs=4 * found.marginal_kl_error + 0.05)
    assert found.kl == pytest.approx(found.mutual_information + found.marginal_kl)
    assert information(mean, np.full_like(mean, math.log(variance)), seed=0).marginal_kl > 1.0
    by_draws = mean_kl(mean, np.full_like(mean, math.log(variance)), prior, seed=0)
    assert by_draws == pytest.approx(found.kl, abs=0.1)
