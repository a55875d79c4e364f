"""Used and unused latent dimensions."""

import numpy as np
import pytest
import torch

from scvae.diagnostics.collapse import kl_to_prior, usage
from scvae.model.latent.mixture import TrainedMixture
from scvae.model.latent.posterior import DiagonalNormal


def test_kl_is_that_of_torch():
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(5, 3)), rng.normal(size=(5, 3))
    normal = torch.distributions.Normal
    q = normal(torch.tensor(mean), torch.tensor(np.exp(0.5 * log_variance)))
    expected = torch.distributions.kl_divergence(q, normal(0.0, 1.0)).numpy()
    np.testing.assert_allclose(kl_to_prior(mean, log_variance), expected, rtol=1e-12)


def test_a_dimension_equal_to_the_prior_is_neither_active_nor_varying():
    mean = np.random.default_rng(0).normal(size=(100, 3))
    mean[:, 1] = 0.0
    found = usage(mean, np.zeros((100, 3)))
    assert (found.active, found.varying) == (2, 2)
    assert found.kl[1] == 0.0


def test_a_constant_offset_is_active_by_its_kl_but_does_not_vary():
    found = usage(np.full((50, 1), 2.0), np.zeros((50, 1)))
    assert (found.active, found.varying) == (1, 0)


@pytest.mark.parametrize("n", [1, 3, 7])
def test_effective_dimension_of_equal_dimensions_is_their_number(n):
    mean = np.zeros((4, 10))
    mean[:, :n] = 1.0
    assert usage(mean, np.zeros_like(mean)).effective == pytest.approx(n)


def test_effective_dimension_lies_below_the_number_of_dimensions_where_some_carry_more():
    mean = np.tile([2.0, 1.0, 0.1], (4, 1))
    assert 1.0 < usage(mean, np.zeros_like(mean)).effective < 2.0


def test_effective_dimension_without_any_kl_is_zero():
    assert usage(np.zeros((4, 2)), np.zeros((4, 2))).effective == 0.0


def test_the_use_of_a_dimension_is_measured_from_the_moments_of_a_trained_prior():
    prior = TrainedMixture(3, 4, generator=torch.Generator().manual_seed(0))
    rng = np.random.default_rng(0)
    mean, log_variance = rng.normal(size=(6, 3)), rng.normal(size=(6, 3))
    expected = prior.double().usage(DiagonalNormal(torch.from_numpy(mean), torch.from_numpy(log_variance)))
    np.testing.assert_allclose(kl_to_prior(mean, log_variance, prior), expected.detach(), rtol=1e-9)
