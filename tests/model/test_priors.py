"""The priors: densities, draws and divergences, against scipy and integration."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Normal, kl_divergence

from scvae.model.latent.mixture import Mixture
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.latent.prior import StandardNormal

MEAN = torch.tensor([[0.0, 1.5, -3.0], [1e-4, 8.0, 0.2]], dtype=torch.float64)
LOG_VARIANCE = torch.tensor([[0.0, -12.0, 4.0], [1e-9, 0.5, -2.0]], dtype=torch.float64)
POSTERIOR = DiagonalNormal(MEAN, LOG_VARIANCE)

WEIGHT = np.array([0.6, 0.3, 0.1])
CENTRE = np.array([[0.0, 0.0], [2.0, -1.0], [-3.0, 4.0]])
COVARIANCE = np.array([[[1.0, 0.6], [0.6, 0.5]], [[0.2, -0.1], [-0.1, 2.0]], [[0.01, 0.0], [0.0, 0.02]]])
LAWS = [stats.multivariate_normal(m, c) for m, c in zip(CENTRE, COVARIANCE, strict=True)]


def mixture(kept=slice(None)):
    factor = np.linalg.cholesky(COVARIANCE[:, kept, kept])
    return Mixture(*(torch.from_numpy(values) for values in (WEIGHT, CENTRE[:, kept], factor)))


def mixture_density(z):
    return sum(w * law.pdf(z) for w, law in zip(WEIGHT, LAWS, strict=True))


PRIORS = {  # name: (prior of two dimensions, its log density)
    "standard normal": (StandardNormal(2).double(), lambda z: stats.norm.logpdf(z).sum(-1)),
    "mixture": (
        mixture(),
        lambda z: special.logsumexp([np.log(w) + law.logpdf(z) for w, law in zip(WEIGHT, LAWS, strict=True)], axis=0),
    ),
}
each_prior = pytest.mark.parametrize("name", PRIORS)


def points(*shape, sd=2.0):
    return sd * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@each_prior
def test_the_density_is_that_of_scipy_for_one_and_many_draws_and_far_away(name):
    prior, expected = PRIORS[name]
    for z in (points(7, 2), points(3, 7, 2), points(5, 2, sd=100.0)):
        np.testing.assert_allclose(prior.log_prob(z), expected(z.numpy()), rtol=1e-9)


@each_prior
def test_the_gradient_of_the_density_is_its_slope(name):
    prior, _ = PRIORS[name]
    assert torch.autograd.gradcheck(prior.log_prob, (points(4, 2).requires_grad_(),))


@each_prior
def test_draws_have_the_law_of_the_prior(name):
    """Their mean log density is minus the entropy, and mean and variance are those that the prior names."""
    prior, density = PRIORS[name]
    z = prior.sample(40_000, torch.Generator().manual_seed(1)).numpy()
    reach = 12.0
    grid = np.linspace(-reach, reach, 1201)
    cells = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    log_p = density(cells)
    mass = np.exp(log_p) * (grid[1] - grid[0]) ** 2
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    found = density(z)
    assert found.mean() == pytest.approx((mass * log_p).sum(), abs=4 * found.std() / 200)
    np.testing.assert_allclose(prior.mean, (mass[..., None] * cells).sum((0, 1)), atol=1e-3)
    np.testing.assert_allclose(prior.variance, (mass[..., None] * (cells - prior.mean.numpy()) ** 2).sum((0, 1)), 1e-3)
    np.testing.assert_allclose(z.mean(0), prior.mean, atol=4 * float(prior.variance.max() ** 0.5) / 200)
    np.testing.assert_allclose(z.var(0), prior.variance, rtol=0.05)


@each_prior
def test_the_divergence_by_draws_is_the_integral_of_its_definition(name):
    prior, density = PRIORS[name]
    q = DiagonalNormal(torch.tensor([[0.5, -0.3]]).double(), torch.tensor([[-1.0, 0.4]]).double())
    mean, sd = q.mean[0].numpy(), (0.5 * q.log_variance[0]).exp().numpy()
    law = stats.multivariate_normal(mean, np.diag(sd**2))
    axes = [np.linspace(m - 9 * s, m + 9 * s, 1501) for m, s in zip(mean, sd, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    integrand = law.pdf(grid) * (law.logpdf(grid) - density(grid))
    integral = integrate.simpson(integrate.simpson(integrand, x=axes[1]), x=axes[0])
    draws = q.reparameterize(points(40_000, 1, 2, sd=1.0))
    assert float(prior.kl(q, draws).sum()) == pytest.approx(integral, abs=0.02)


@each_prior
def test_a_dimension_whose_posterior_has_the_moments_of_the_prior_is_not_used(name):
    prior, _ = PRIORS[name]
    same = DiagonalNormal(prior.mean[None], prior.variance.log()[None])
    np.testing.assert_allclose(prior.usage(same), 0.0, atol=1e-12)
    other = DiagonalNormal(points(1, 2), points(1, 2, sd=0.5))
    expected = kl_divergence(Normal(other.mean, other.variance.sqrt()), Normal(prior.mean, prior.variance.sqrt()))
    torch.testing.assert_close(prior.usage(other), expected, rtol=1e-9, atol=1e-12)


def test_what_remains_of_a_mixture_without_a_dimension_is_its_marginal_law():
    prior = mixture()
    prior.drop_dimensions(torch.tensor([True, False]))
    z = points(6, 1)
    torch.testing.assert_close(prior.log_prob(z), mixture(slice(1, None)).log_prob(z), rtol=1e-9, atol=0)
    integral, _ = integrate.quad(lambda x: mixture_density((x, 0.7)), -20, 20, points=[-3, 0, 2], limit=200)
    assert float(prior.log_prob(torch.tensor([[0.7]]).double())) == pytest.approx(np.log(integral), abs=1e-6)


def test_fewer_dimensions_of_the_standard_normal_are_standard_normal():
    prior = StandardNormal(3)
    prior.drop_dimensions(torch.tensor([True, False, False]))
    assert prior.sample(5, torch.Generator().manual_seed(0)).shape == (5, 2)
    assert not prior.state_dict()  # a file of a model has nothing of it


@pytest.mark.parametrize(("mean", "log_variance"), [(0.0, -3.0), (1.2, 0.7), (-2.0, -1.0)])
def test_the_closed_form_for_the_standard_normal_is_the_integral_of_its_definition(mean, log_variance):
    q, p = stats.norm(mean, np.exp(log_variance / 2)), stats.norm()
    integral = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), mean - 20, mean + 20, points=[mean])[0]
    found = DiagonalNormal(torch.tensor([[mean]]).double(), torch.tensor([[log_variance]]).double())
    assert float(StandardNormal(1).usage(found)) == pytest.approx(integral, rel=1e-7)


def test_the_closed_form_is_that_of_torch_distributions():
    law = Normal(MEAN, (0.5 * LOG_VARIANCE).exp())
    expected = kl_divergence(law, Normal(torch.zeros_like(MEAN), torch.ones_like(MEAN)))
    torch.testing.assert_close(StandardNormal(3).kl(POSTERIOR, MEAN), expected, rtol=1e-9, atol=1e-12)


def test_the_closed_form_keeps_its_digits_where_the_posterior_nearly_is_the_prior():
    """(v - 1 - log v) / 2 is t^2 / 4 at v = exp(t): in float32, subtraction would leave nothing of it."""
    nearly = DiagonalNormal(torch.zeros(1, 1), torch.full((1, 1), 1e-2))
    assert float(StandardNormal(1).usage(nearly)) == pytest.approx(1e-4 / 4 + 1e-6 / 12, rel=1e-4)
    assert not StandardNormal(3).usage(DiagonalNormal(torch.zeros(2, 3), torch.zeros(2, 3))).any()
