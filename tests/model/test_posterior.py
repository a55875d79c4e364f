"""The approximate posterior."""

import numpy as np
import torch
from torch.distributions import Independent, Normal

from scvae.model.latent.posterior import DiagonalNormal

MEAN = torch.tensor([[0.0, 1.5, -3.0], [1e-4, 8.0, 0.2]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[0.0, -12.0, 4.0], [1e-9, 0.5, -2.0]], dtype=torch.float64)
POSTERIOR = DiagonalNormal(MEAN, LOG_VARIANCE)
TORCH = Normal(MEAN, (0.5 * LOG_VARIANCE).exp())


def test_log_prob_is_that_of_torch_distributions_for_one_and_many_draws():
    for shape in ((2, 3), (5, 2, 3)):
        z = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(POSTERIOR.log_prob(z), Independent(TORCH, 1).log_prob(z), rtol=1e-9, atol=0)


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
