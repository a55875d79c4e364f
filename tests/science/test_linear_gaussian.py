"""A model whose evidence and posterior are known in closed form, run through the package's own functions.

x = W z + noise with z ~ N(0, I) and noise ~ N(0, s^2), so that x ~ N(0, W W' + s^2 I). With orthogonal columns in W the
posterior is a product of normals, N(w'x / (w'w + s^2), s^2 / (w'w + s^2)) per dimension, which the encoder can hold.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

from scvae.config import NetworkConfig
from scvae.data.batches import Batch
from scvae.data.schema import Schema
from scvae.kernels.block import Dense
from scvae.model.latent.mixture import Mixture
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.objective import elbo, evidence_terms, importance_weighted, loss
from scvae.model.vae import make_model

SCALE = 0.8
ONE_DIMENSION = np.array([[0.7]])
THREE_DIMENSIONS = np.array([[1.5, 0.0, 0.2], [0.5, 0.0, -0.6], [0.0, 0.9, 0.0], [0.0, -0.4, 0.0]])
WEIGHTS = pytest.mark.parametrize("weight", [ONE_DIMENSION, THREE_DIMENSIONS], ids=["1 latent", "3 latents"])


class KnownPosterior(nn.Module):
    """Stands in for the encoder: the same posterior whatever it is shown."""

    shifts = None

    def __init__(self, mean, variance):
        super().__init__()
        self.n_latent = mean.shape[1]
        self.mean = nn.Parameter(torch.tensor(mean))
        self.log_variance = nn.Parameter(torch.tensor(np.log(variance)))

    def forward(self, x, covariates, generator, knots, mapped, added):
        return DiagonalNormal(self.mean, self.log_variance)


class Unchanged(nn.Module):
    """Stands in for the decoder: the features are z, so that the head's output layer is the only map."""

    skip = None

    def forward(self, z, conditions, knots, x):
        return z


class LinearGaussian:
    """Some cells, a VAE that knows the law they come from, and the truth about them."""

    def __init__(self, weight, n_cells=5, seed=0):
        n_genes = len(weight)
        self.weight = weight
        self.x = np.random.default_rng(seed).normal(size=(n_cells, n_genes)) * 1.7
        square = (weight**2).sum(0)
        self.mean = self.x @ weight / (square + SCALE**2)
        self.variance = np.broadcast_to(SCALE**2 / (square + SCALE**2), self.mean.shape).copy()
        covariance = weight @ weight.T + SCALE**2 * np.eye(n_genes)
        self.log_evidence = np.atleast_1d(multivariate_normal(np.zeros(n_genes), covariance).logpdf(self.x))
        self.batch = Batch(
            x=Dense(torch.tensor(self.x)),
            library=torch.ones(n_cells, dtype=torch.float64),
            codes=torch.zeros(n_cells, 0, dtype=torch.int64),
            numeric=torch.zeros(n_cells, 0, dtype=torch.float64),
        )
        self.cell_weight = torch.full((n_cells,), 1.0 / n_cells, dtype=torch.float64)

    def model(self, mean=None, variance=None):
        n_genes, n_latent = self.weight.shape
        schema = Schema(tuple(f"gene{g}" for g in range(n_genes)), "real", None, None, (), (), None)
        vae = make_model(schema, "gaussian", n_latent, NetworkConfig(width=n_latent, minimum_scale=0.0), seed=0)
        vae.encoder = KnownPosterior(
            self.mean if mean is None else mean, self.variance if variance is None else variance
        )
        vae.decoder = Unchanged()
        vae = vae.double()
        with torch.no_grad():
            vae.likelihood.output.weight.copy_(torch.tensor(self.weight))
            vae.likelihood.log_free_scale.fill_(math.log(SCALE))
        return vae.eval()

    def exact_elbo(self, mean=None, variance=None):
        """The bound of each cell by Gauss-Hermite quadrature over the noise, exact for a quadratic log-likelihood."""
        vae = self.model(mean, variance)
        nodes, weights = np.polynomial.hermite_e.hermegauss(3)
        weights = weights / weights.sum()
        total = np.zeros(len(self.x))
        for point in itertools.product(range(3), repeat=self.weight.shape[1]):
            noise = torch.tensor(nodes[list(point)]).expand(len(self.x), -1)
            terms = evidence_terms(vae, self.batch, noise, self.cell_weight)
            total += weights[list(point)].prod() * terms.elbo.detach().numpy()
        return total

    def divergence(self, mean, variance):
        """KL(q || p(z | x)) of each cell, between two diagonal normals."""
        ratio = variance / self.variance
        return 0.5 * (ratio + (mean - self.mean) ** 2 / self.variance - 1 - np.log(ratio)).sum(1)


@WEIGHTS
def test_elbo_at_the_exact_posterior_is_the_evidence(weight):
    truth = LinearGaussian(weight)
    np.testing.assert_allclose(truth.exact_elbo(), truth.log_evidence, rtol=0, atol=1e-6)


def test_the_posterior_of_one_dimension_is_the_textbook_one():
    truth = LinearGaussian(ONE_DIMENSION)
    w = ONE_DIMENSION.item()
    np.testing.assert_allclose(truth.mean, w * truth.x / (w**2 + SCALE**2))
    np.testing.assert_allclose(truth.variance, SCALE**2 / (w**2 + SCALE**2))


@WEIGHTS
@pytest.mark.parametrize("step", [-0.1, 0.1])
def test_no_other_mean_or_variance_gives_a_higher_elbo(weight, step):
    truth = LinearGaussian(weight)
    best = truth.exact_elbo()
    for dimension in range(weight.shape[1]):
        shift = step * np.eye(weight.shape[1])[dimension]
        assert (truth.exact_elbo(mean=truth.mean + shift) < best - 1e-4).all()
        assert (truth.exact_elbo(variance=truth.variance * np.exp(shift)) < best - 1e-4).all()


@WEIGHTS
def test_the_gradient_vanishes_at_the_exact_posterior(weight):
    truth = LinearGaussian(weight)
    vae = truth.model()
    for point in itertools.product((-1.0, 1.0), repeat=weight.shape[1]):  # the mean and covariance of N(0, I)
        noise = torch.tensor(point, dtype=torch.float64).expand(len(truth.x), -1)
        loss(evidence_terms(vae, truth.batch, noise, truth.cell_weight), truth.cell_weight, beta=1.0).backward()
    assert vae.encoder.mean.grad.abs().max() < 1e-9
    assert vae.encoder.log_variance.grad.abs().max() < 1e-9


@WEIGHTS
def test_the_gap_is_the_divergence_from_the_exact_posterior(weight):
    truth = LinearGaussian(weight)
    mean, variance = truth.mean + 0.3, truth.variance * 1.8
    gap = truth.log_evidence - truth.exact_elbo(mean, variance)
    np.testing.assert_allclose(gap, truth.divergence(mean, variance), rtol=0, atol=1e-9)


def test_the_sampled_gap_is_the_divergence_to_sampling_error():
    truth, n = LinearGaussian(THREE_DIMENSIONS), 20_000
    mean, variance = truth.mean + 0.2, truth.variance * 1.3
    vae = truth.model(mean, variance)
    sampled = elbo(vae, truth.batch, n, torch.Generator().manual_seed(1)).numpy()
    z = mean + np.sqrt(variance) * np.random.default_rng(0).normal(size=(n, *mean.shape))
    square = ((truth.x - z @ truth.weight.T) ** 2).sum(-1)
    error = (0.5 * square / SCALE**2).std(0) / math.sqrt(n)
    gap = truth.log_evidence - sampled
    assert (np.abs(gap - truth.divergence(mean, variance)) < 4 * error).all()
    assert (truth.divergence(mean, variance) > 8 * error).all()


@WEIGHTS
def test_the_importance_weighted_bound_is_exact_at_the_exact_posterior(weight):
    truth = LinearGaussian(weight)
    for n_samples in (1, 7):
        bound = importance_weighted(truth.model(), truth.batch, n_samples, torch.Generator().manual_seed(0))
        np.testing.assert_allclose(bound.numpy(), truth.log_evidence, rtol=0, atol=1e-9)


@WEIGHTS
def test_the_importance_weighted_bound_rises_to_the_evidence(weight):
    truth = LinearGaussian(weight)
    mean, variance = truth.mean + 0.3, truth.variance * 1.8
    vae, generator = truth.model(mean, variance), torch.Generator().manual_seed(0)

    def mean_bound(n_samples, repeats):
        bounds = [importance_weighted(vae, truth.batch, n_samples, generator).numpy() for _ in range(repeats)]
        return np.mean(bounds)

    bounds = [mean_bound(n_samples, repeats) for n_samples, repeats in [(1, 900), (4, 500), (32, 150), (512, 20)]]
    evidence = truth.log_evidence.mean()
    assert bounds == sorted(bounds)
    assert bounds[0] == pytest.approx(evidence - truth.divergence(mean, variance).mean(), abs=0.05)
    assert bounds[-1] == pytest.approx(evidence, abs=0.01)
    many = importance_weighted(vae, truth.batch, 100_000, generator).numpy()
    np.testing.assert_allclose(many, truth.log_evidence, rtol=0, atol=0.02)


def test_the_importance_weighted_bound_under_a_mixture_rises_to_the_evidence_under_it():
    """log p(x) of a linear normal model with a mixture of normals as prior is a mixture of normals, too."""
    truth = LinearGaussian(THREE_DIMENSIONS)
    rng = np.random.default_rng(3)
    weight, centre = np.array([0.7, 0.3]), rng.normal(size=(2, 3))
    factor = 0.3 * np.tril(rng.normal(size=(2, 3, 3)), -1) + np.diag([0.5, 0.8, 0.4])
    of_genes = truth.weight @ factor  # what each component adds to the noise
    covariance = of_genes @ of_genes.swapaxes(1, 2) + SCALE**2 * np.eye(len(truth.weight))
    laws = [multivariate_normal(truth.weight @ m, c) for m, c in zip(centre, covariance, strict=True)]
    parts = [np.log(w) + law.logpdf(truth.x) for w, law in zip(weight, laws, strict=True)]
    mixture = Mixture(*map(torch.from_numpy, (weight, centre, factor)))
    generator = torch.Generator().manual_seed(0)
    wide = truth.model(truth.mean, truth.variance * 2.0)
    bound = importance_weighted(wide, truth.batch, 200_000, generator, mixture).numpy()
    np.testing.assert_allclose(bound, np.logaddexp(*parts), rtol=0, atol=0.05)


@pytest.mark.parametrize(("beta", "free_bits", "capacity"), [(1.0, 0.0, None), (2.5, 0.3, None), (1.5, 0.0, 0.9)])
def test_reparameterized_gradients_agree_with_finite_differences(beta, free_bits, capacity):
    truth = LinearGaussian(THREE_DIMENSIONS)
    vae = truth.model(truth.mean + 0.2, truth.variance * 1.4)
    noise = torch.tensor(np.random.default_rng(3).normal(size=truth.mean.shape))
    parameters = [
        vae.encoder.mean,
        vae.encoder.log_variance,
        vae.likelihood.output.weight,
        vae.likelihood.output.bias,
        vae.likelihood.log_free_scale,
    ]

    def objective():
        terms = evidence_terms(vae, truth.batch, noise, truth.cell_weight)
        return loss(terms, truth.cell_weight, beta=beta, free_bits=free_bits, capacity=capacity)

    objective().backward()
    step = 1e-5
    for parameter in parameters:
        flat, gradient = parameter.data.view(-1), parameter.grad.view(-1)
        for i in range(len(flat)):
            kept = float(flat[i])
            values = []
            for moved in (kept + step, kept - step):
                flat[i] = moved
                values.append(float(objective().detach()))
            flat[i] = kept
            assert float(gradient[i]) == pytest.approx((values[0] - values[1]) / (2 * step), rel=1e-6, abs=1e-8)
