"""The approximate posterior and the prior."""

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch.distributions import Independent, Normal, kl_divergence

from scvae.model.latent import DiagonalNormal, standard_normal_log_prob

MEAN = torch.tensor([[0.0, 1.5, -3.0], [1e-4, 8.0, 0.2]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[0.0, -12.0, 4.0], [1e-9, 0.5, -2.0]], dtype=torch.float64)
POSTERIOR = DiagonalNormal(MEAN, LOG_VARIANCE)
TORCH = Normal(MEAN, (0.5 * LOG_VARIANCE).exp())


def test_kl_is_the_closed_form_of_torch_distributions():
    expected = kl_divergence(TORCH, Normal(torch.zeros_like(MEAN), torch.ones_like(MEAN)))
    torch.testing.assert_close(POSTERIOR.kl_to_standard_normal(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, -3.0), (1.2, 0.7), (-2.0, -1.0)])
def test_kl_is_the_integral_of_its_definition(mean, log_variance):
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm()
    integral = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 20, mean + 20, points=[mean])[0]
    found = DiagonalNormal(torch.tensor([[mean]]).double(), torch.tensor([[log_variance]]).double())
    assert float(found.kl_to_standard_normal()) == pytest.approx(integral, rel=1e-7)


def test_kl_keeps_its_digits_where_the_posterior_nearly_is_the_prior():
    """(v - 1 - log v) / 2 is t^2 / 4 at v = exp(t): in float32, subtraction would leave nothing of it."""
    nearly = DiagonalNormal(torch.zeros(1, 1), torch.full((1, 1), 1e-2))
    assert float(nearly.kl_to_standard_normal()) == pytest.approx(1e-4 / 4 + 1e-6 / 12, rel=1e-4)
    prior = DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))
    assert not prior.kl_to_standard_normal().any()


def test_log_prob_is_that_of_torch_distributions_for_one_and_many_draws():
    for shape in ((2, 3), (5, 2, 3)):
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(POSTERIOR.log_prob(z), Independent(TORCH, 1).log_prob(z), rtol=1e-9, atol=0)
        expected = stats.norm.logpdf(z.numpy()).sum(-1)
        np.testing.assert_allclose(standard_normal_log_prob(z), expected, rtol=1e-12)


def test_reparameterized_noise_is_shifted_and_scaled_and_its_gradient_reaches_both():
    mean, log_variance = MEAN.clone().requires_grad_(), LOG_VARIANCE.clone().requires_grad_()
    noise = torch.randn(4, 2, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = DiagonalNormal(mean, log_variance).reparameterize(noise)
    standard_deviation = np.sqrt(np.exp(LOG_VARIANCE.numpy()))
    np.testing.assert_allclose(z.detach(), MEAN.numpy() + standard_deviation * noise.numpy(), rtol=1e-12)
    z.sum().backward()
    np.testing.assert_allclose(mean.grad, 4.0)
    np.testing.assert_allclose(log_variance.grad, 0.5 * standard_deviation * noise.sum(0).numpy(), rtol=1e-12)


def test_variance_is_the_exponential_of_its_logarithm():
    np.testing.assert_allclose(POSTERIOR.variance, np.exp(LOG_VARIANCE.numpy()), rtol=1e-12)
