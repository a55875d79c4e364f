"""The priors: densities, draws and divergences, against scipy and integration."""

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats
from torch.distributions import Normal, kl_divergence

from scvae.model.latent.flow import STEEPEST, Flow
from scvae.model.latent.mixture import Mixture, TrainedMixture
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


def trained_mixture():
    """With the weights and centres of the other, and the diagonals of its covariances."""
    prior = TrainedMixture(2, len(WEIGHT), generator=torch.Generator()).double()
    with torch.no_grad():
        prior.log_weight.copy_(torch.from_numpy(np.log(WEIGHT) + 3.0))
        prior.centre.copy_(torch.from_numpy(CENTRE))
        prior.log_variance.copy_(torch.from_numpy(np.log(np.diagonal(COVARIANCE, axis1=1, axis2=2))))
    return prior


def diagonal_density(z):
    laws = [stats.norm(m, np.sqrt(np.diag(c))) for m, c in zip(CENTRE, COVARIANCE, strict=True)]
    return special.logsumexp([np.log(w) + law.logpdf(z).sum(-1) for w, law in zip(WEIGHT, laws, strict=True)], axis=0)


def flow(n_latent=2, *, strength=0.4):
    """A flow away from its start."""
    generator = torch.Generator().manual_seed(5)
    prior = Flow(n_latent, generator=generator)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(strength * torch.randn(parameter.shape, generator=generator) / len(parameter) ** 0.5)
    return prior.double().eval()


def flow_density(z):
    """By the definition of a coupling, in numpy: each half is put back given the other, from the last to the first."""
    z, log_volume = z.copy(), np.zeros(z.shape[:-1])
    for coupling in reversed(FLOW.couplings):
        moved, fixed = coupling.moved.numpy(), coupling.fixed.numpy()
        parts = [(layer.weight.detach().numpy(), layer.bias.detach().numpy()) for layer in coupling.children()]
        (w, b), (v, c) = parts
        hidden = z[..., fixed] @ w + b
        found = hidden * special.expit(hidden) @ v + c
        log_scale = STEEPEST * np.tanh(found[..., len(moved) :] / STEEPEST)
        z[..., moved] = (z[..., moved] - found[..., : len(moved)]) / np.exp(log_scale)
        log_volume -= log_scale.sum(-1)
    return log_volume + stats.norm.logpdf(z).sum(-1)


FLOW = flow(strength=0.2)
PRIORS = {  # name: (prior of two dimensions, its log density)
    "standard normal": (StandardNormal(2).double(), lambda z: stats.norm.logpdf(z).sum(-1)),
    "mixture": (
        mixture(),
        lambda z: special.logsumexp([np.log(w) + law.logpdf(z) for w, law in zip(WEIGHT, LAWS, strict=True)], axis=0),
    ),
    "trained mixture": (trained_mixture(), diagonal_density),
    "flow": (FLOW, flow_density),
}
each_prior = pytest.mark.parametrize("name", PRIORS)


def points(*shape, sd=2.0):
    return sd * torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@each_prior
def test_the_density_is_that_of_scipy_for_one_and_many_draws_and_far_away(name):
    prior, expected = PRIORS[name]
    for z in (points(7, 2), points(3, 7, 2), points(5, 2, sd=100.0)):
        np.testing.assert_allclose(prior.log_prob(z).detach(), expected(z.numpy()), rtol=1e-9)


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
    grid = np.linspace(-reach, reach, 601)
    cells = np.stack(np.meshgrid(grid, grid, indexing="ij"), -1)
    log_p = density(cells)
    mass = np.exp(log_p) * (grid[1] - grid[0]) ** 2
    assert mass.sum() == pytest.approx(1.0, abs=1e-4)
    found = density(z)
    assert found.mean() == pytest.approx((mass * log_p).sum(), abs=4 * found.std() / 200)
    mean, variance = prior.mean.detach().numpy(), prior.variance.detach().numpy()
    np.testing.assert_allclose(mean, (mass[..., None] * cells).sum((0, 1)), atol=1e-3)
    np.testing.assert_allclose(variance, (mass[..., None] * (cells - mean) ** 2).sum((0, 1)), 3e-3)
    np.testing.assert_allclose(z.mean(0), mean, atol=4 * float(variance.max() ** 0.5) / 200)
    np.testing.assert_allclose(z.var(0), variance, rtol=0.05)


@each_prior
def test_the_divergence_by_draws_is_the_integral_of_its_definition(name):
    prior, density = PRIORS[name]
    q = DiagonalNormal(torch.tensor([[0.5, -0.3]]).double(), torch.tensor([[-1.0, 0.4]]).double())
    mean, sd = q.mean[0].numpy(), (0.5 * q.log_variance[0]).exp().numpy()
    law = stats.multivariate_normal(mean, np.diag(sd**2))
    axes = [np.linspace(m - 9 * s, m + 9 * s, 401) for m, s in zip(mean, sd, strict=True)]
    grid = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    integrand = law.pdf(grid) * (law.logpdf(grid) - density(grid))
    integral = integrate.simpson(integrate.simpson(integrand, x=axes[1]), x=axes[0])
    draws = q.reparameterize(points(40_000, 1, 2, sd=1.0))
    assert float(prior.kl(q, draws).detach().sum()) == pytest.approx(integral, abs=0.02)


@each_prior
def test_a_dimension_whose_posterior_has_the_moments_of_the_prior_is_not_used(name):
    prior, _ = PRIORS[name]
    same = DiagonalNormal(prior.mean[None], prior.variance.log()[None])
    np.testing.assert_allclose(prior.usage(same).detach(), 0.0, atol=1e-12)
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


def test_the_trained_mixture_is_the_one_with_full_covariances_in_value_and_gradient():
    trained, z = trained_mixture(), points(9, 2).requires_grad_()
    log_weight, centre, log_variance = (p.detach().clone().requires_grad_() for p in trained.parameters())
    full = Mixture(torch.ones(3), torch.zeros(3, 2), torch.zeros(3, 2, 2))
    full.weight, full.centre = torch.softmax(log_weight, 0), centre
    full.factor = torch.diag_embed((0.5 * log_variance).exp())
    torch.testing.assert_close(trained.log_prob(z), full.log_prob(z), rtol=1e-10, atol=1e-10)
    inputs = (z, trained.log_weight, trained.centre, trained.log_variance)
    found = torch.autograd.grad(trained.log_prob(z).square().sum(), inputs)
    expected = torch.autograd.grad(full.log_prob(z).square().sum(), (z, log_weight, centre, log_variance))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)


def test_parts_of_the_draws_give_the_same_density(monkeypatch):
    prior, z = trained_mixture(), points(3, 7, 2)
    expected = prior.log_prob(z)
    monkeypatch.setattr("scvae.model.latent.mixture.AT_ONCE", 20)
    torch.testing.assert_close(prior.log_prob(z), expected, rtol=0, atol=0)


def test_shares_of_a_cell_follow_from_its_whole_posterior():
    """softmax of the mean of log weight + log density over q, here by quadrature (Gauss-Hermite)."""
    prior = trained_mixture()
    mean, log_variance = ([[0.7, -0.4], [-2.5, 3.5]], [[-0.5, -1.0], [-2.0, 1.0]])
    q = DiagonalNormal(torch.tensor(mean).double(), torch.tensor(log_variance).double())
    nodes, weight = np.polynomial.hermite_e.hermegauss(40)
    grid = torch.from_numpy(np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 1, 2)).expand(-1, 2, 2)
    measure = torch.from_numpy(np.outer(weight, weight).reshape(-1, 1, 1) / (2 * np.pi))
    expected = torch.softmax((measure * prior.joint(q.reparameterize(grid))).sum(0), -1)
    torch.testing.assert_close(prior.responsibilities(q), expected, rtol=1e-9, atol=1e-12)


def test_variances_of_a_trained_mixture_have_a_floor_and_a_ceiling():
    prior = trained_mixture()
    with torch.no_grad():
        prior.log_variance[:2] = torch.tensor([[-50.0], [50.0]])
    np.testing.assert_allclose(prior.within[:2, 0].detach(), np.exp([-8.0, 4.0]))
    assert torch.isfinite(prior.log_prob(points(5, 2, sd=1e3))).all()


def test_what_remains_of_a_trained_mixture_without_a_dimension_is_its_marginal_law():
    prior = trained_mixture()
    prior.drop_dimensions(torch.tensor([True, False]))
    laws = [stats.norm(m[1], c[1, 1] ** 0.5) for m, c in zip(CENTRE, COVARIANCE, strict=True)]
    z = points(6, 1)
    expected = np.log(sum(w * law.pdf(z[:, 0].numpy()) for w, law in zip(WEIGHT, laws, strict=True)))
    np.testing.assert_allclose(prior.log_prob(z).detach(), expected, rtol=1e-9)
    assert [type(p) for p in prior.parameters()] == 3 * [torch.nn.Parameter]


@pytest.mark.parametrize("n_latent", [2, 3, 10])
def test_a_flow_is_undone_by_its_inverse(n_latent):
    prior = flow(n_latent).float()
    noise = torch.randn(200, n_latent, generator=torch.Generator().manual_seed(2))
    back, log_volume = prior.normal(prior.moved(noise))
    torch.testing.assert_close(back, noise, rtol=0, atol=1e-5)
    assert (log_volume.abs() > 0.1).any()  # it does move something


@pytest.mark.parametrize("n_latent", [2, 3, 10])
def test_the_log_determinant_of_a_flow_is_that_of_its_jacobian(n_latent):
    prior = flow(n_latent, strength=1.0)
    z = points(5, n_latent)
    _, log_volume = prior.normal(z)
    for one, found in zip(z, log_volume, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda row: prior.normal(row[None])[0][0], one)
        torch.testing.assert_close(torch.linalg.slogdet(jacobian)[1], found, rtol=1e-9, atol=1e-9)


def test_a_flow_starts_as_the_standard_normal():
    prior = Flow(4, generator=torch.Generator().manual_seed(0)).eval()
    z = points(6, 4).float()
    torch.testing.assert_close(prior.log_prob(z), StandardNormal(4).log_prob(z))
    torch.testing.assert_close(prior.variance, torch.ones(4), rtol=0.01, atol=0)


def test_a_flow_has_no_marginal_law_in_closed_form():
    with pytest.raises(ValueError, match="closed form"):
        flow().drop_dimensions(torch.tensor([True, False]))


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
