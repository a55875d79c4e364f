"""Every law against its definition: one table of (law, reference, parameters) drives all claims."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from scvae.likelihoods import Distribution
from scvae.likelihoods.binary import BernoulliTable
from scvae.likelihoods.continuous import GaussianTable
from scvae.likelihoods.counts import NegativeBinomialTable, PoissonTable, ZeroInflatedTable
from tests import references

EPS = np.finfo(np.float64).eps
MEANS = np.log([1e-8, 0.3, 20.0, 1e5])
THETAS = np.log([1e-6, 0.5, 10.0, 1e6])
COUNTS = (0.0, 1.0, 3.0, 2.5, 40.0, 1e5)
FEASIBLE = [(m, t) for m, t in product(np.log([0.3, 20.0]), np.log([0.5, 10.0, 1e6]))]


@dataclass(frozen=True)
class Law:
    """A law, its definition, and what to try: `hard` parameters for densities, `soft` ones for moments and draws.

    `terms` bounds the numbers that a float64 evaluation adds up, in value and in gradient: what is left of digits.
    """

    table: Callable[..., Distribution]
    reference: references.Law
    scipy: Callable[..., stats.rv_frozen]
    values: tuple[float, ...]
    hard: list[tuple[float, ...]]
    soft: list[tuple[float, ...]]
    terms: Callable[..., float]


def nb_terms(x, log_mean, log_theta, *zero_logit):
    mean, theta = np.exp(log_mean), np.exp(log_theta)
    size = mean + abs(sum(zero_logit))
    if x > 0:
        size += abs(special.gammaln(x + theta)) + abs(special.gammaln(theta)) + special.gammaln(x + 1) + abs(x)
        size += x * (abs(log_mean) + abs(log_theta)) + theta * (
            abs(special.digamma(x + theta)) + abs(special.digamma(theta))
        )
    return size


LAWS = {
    "nb": Law(
        NegativeBinomialTable, references.negative_binomial, references.scipy_negative_binomial,
        COUNTS, list(product(MEANS, THETAS)), FEASIBLE, nb_terms,
    ),
    "zinb": Law(
        lambda m, t, z: ZeroInflatedTable(NegativeBinomialTable(m, t), z), references.zero_inflated_negative_binomial,
        references.ScipyZeroInflated, COUNTS[:3] + COUNTS[-1:],
        [(m, t, z) for m, t, z in product(MEANS[[0, 2, 3]], THETAS[[0, 1, 3]], (-80.0, -1.0, 80.0))],
        [(m, t, z) for (m, t), z in product(FEASIBLE[:3], (-2.0, 1.0))], nb_terms,
    ),
    "poisson": Law(
        PoissonTable, references.poisson, lambda m: stats.poisson(np.exp(m)), COUNTS, [(m,) for m in MEANS],
        [(m,) for m in np.log([0.3, 20.0])], lambda x, m: np.exp(m) + x * abs(m) + special.gammaln(x + 1) + x,
    ),
    "bernoulli": Law(
        BernoulliTable, references.bernoulli, lambda logit: stats.bernoulli(special.expit(logit)), (0.0, 1.0),
        [(v,) for v in (-80.0, -2.0, 0.0, 0.5, 80.0)], [(v,) for v in (-2.0, 0.0, 0.5)],
        lambda x, logit: abs(logit) + 1,
    ),
    "gaussian": Law(
        lambda mean, log_scale: GaussianTable(mean, log_scale[0]), references.gaussian,
        lambda mean, log_scale: stats.norm(mean, np.exp(log_scale)), (-1e3, -1.5, 0.0, 2.0),
        [(m, s) for m, s in product((-3.0, 0.0, 1e3), (-7.0, 0.0, 5.0))],
        [(m, s) for m, s in product((-3.0, 0.0), (-2.0, 1.0))],
        lambda x, m, s: 10 * (abs(s) + 2 + ((x - m) / np.exp(s)) ** 2),
    ),
}  # fmt: skip


def columns(parameters, n_rows=1, dtype=torch.float64, requires_grad=False):
    """Each parameter as a rows x cases tensor."""
    tensors = torch.tensor(np.array(parameters), dtype=dtype).T.contiguous()
    return [t.expand(n_rows, -1).clone().requires_grad_(requires_grad) for t in tensors]


def cases(law):
    pairs = list(product(law.values, law.hard))
    return [x for x, _ in pairs], [p for _, p in pairs]


@pytest.mark.parametrize("name", LAWS)
def test_log_probability_is_the_definition_with_all_constants(name):
    law = LAWS[name]
    values, parameters = cases(law)
    found = law.table(*columns(parameters)).log_prob(torch.tensor([values], dtype=torch.float64))[0].numpy()
    expected = np.array(
        [references.log_probability(law.reference, x, p) for x, p in zip(values, parameters, strict=True)]
    )
    rounding = np.array([law.terms(x, *p) for x, p in zip(values, parameters, strict=True)])
    assert np.all(np.abs(found - expected) <= 1e-12 * np.abs(expected) + 16 * EPS * rounding)


@pytest.mark.parametrize("name", LAWS)
def test_gradient_is_the_derivative_and_finite(name):
    law = LAWS[name]
    values, parameters = cases(law)
    tensors = columns(parameters, requires_grad=True)
    law.table(*tensors).log_prob(torch.tensor([values], dtype=torch.float64)).sum().backward()
    found = np.array([t.grad[0].numpy() for t in tensors]).T
    expected = np.array([references.gradient(law.reference, x, p) for x, p in zip(values, parameters, strict=True)])
    rounding = np.array([law.terms(x, *p) for x, p in zip(values, parameters, strict=True)])[:, None]
    assert np.all(np.isfinite(found))
    assert np.all(np.abs(found - expected) <= 1e-12 * np.abs(expected) + 16 * EPS * rounding)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "bernoulli"])
def test_probabilities_sum_to_the_distribution_function(name):
    law = LAWS[name]
    parameters = law.soft + [p for p in law.hard if np.exp(p[0]) <= 25]
    for p in parameters:
        last = 1 if name == "bernoulli" else 4000
        support = torch.arange(last + 1, dtype=torch.float64)[:, None]
        total = float(law.table(*columns([p], n_rows=last + 1)).log_prob(support).exp().sum())
        assert total == pytest.approx(float(law.scipy(*p).cdf(last)), rel=1e-9)
        if p in law.soft:
            assert total == pytest.approx(1.0, rel=1e-9)


def test_gaussian_density_integrates_to_one():
    for mean, log_scale in LAWS["gaussian"].soft:
        grid = mean + np.exp(log_scale) * np.linspace(-12, 12, 2001)
        table = GaussianTable(*columns([(mean, log_scale)], n_rows=2001)[:1], torch.tensor([log_scale]).double())
        density = table.log_prob(torch.from_numpy(grid)[:, None]).exp()[:, 0].numpy()
        assert integrate.trapezoid(density, grid) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("name", LAWS)
def test_mean_and_variance_are_those_of_scipy(name):
    law = LAWS[name]
    table = law.table(*columns(law.soft))
    np.testing.assert_allclose(table.mean[0], [law.scipy(*p).mean() for p in law.soft], rtol=1e-8)
    np.testing.assert_allclose(table.variance[0], [law.scipy(*p).var() for p in law.soft], rtol=1e-8)


@pytest.mark.parametrize("name", ["nb", "zinb", "poisson", "bernoulli"])
def test_draws_follow_the_probabilities(name):
    """Chi-square test over bins with at least ten expected draws each, at a level of 1e-4 for each fixed seed."""
    law, n = LAWS[name], 20_000
    draws = law.table(*columns(law.soft, n_rows=n, dtype=torch.float32)).sample(torch.Generator().manual_seed(7))
    assert draws.shape == (n, len(law.soft))
    for p, column in zip(law.soft, draws.T.numpy(), strict=True):
        scipy_law = law.scipy(*p)
        support = np.arange(column.max() + 1)
        expected = n * scipy_law.pmf(support)
        bins = np.floor((np.cumsum(expected) - expected / 2) / 10).astype(int)
        expected = np.bincount(bins, expected)
        observed = np.bincount(bins, np.bincount(column.astype(int), minlength=len(support)))
        expected, observed = expected[expected > 0], observed[expected > 0]
        expected[-1] += n - expected.sum()
        assert stats.chisquare(observed, expected).pvalue > 1e-4


def test_gaussian_draws_follow_the_density():
    law, n = LAWS["gaussian"], 20_000
    mean, log_scale = columns(law.soft, n_rows=n)
    draws = GaussianTable(mean, log_scale[0]).sample(torch.Generator().manual_seed(7)).numpy()
    for p, column in zip(law.soft, draws.T, strict=True):
        assert stats.kstest(column, law.scipy(*p).cdf).pvalue > 1e-4


@pytest.mark.parametrize("theta", [1e-6, 0.5, 1e6])
def test_negative_binomial_draws_have_the_share_of_zeros_of_their_law(theta):
    """At theta = 1e-6 nearly every draw is 0 and the gamma rates underflow, and yet no draw may be NaN."""
    n = 200_000
    table = NegativeBinomialTable(torch.full((n, 1), 1.0), torch.full((n, 1), float(np.log(theta))))
    draws = table.sample(torch.Generator().manual_seed(3))
    assert torch.isfinite(draws).all()
    zeros = float(np.exp(-theta * np.log1p(np.e / theta)))
    standard_error = np.sqrt(zeros * (1 - zeros) / n)
    assert abs(float((draws == 0).double().mean()) - zeros) < 5 * standard_error + 1 / n


def test_rare_bursts_of_a_tiny_inverse_dispersion_carry_the_mean():
    """theta = 1e-3, n draws: standard error sqrt((mean + mean^2 / theta) / n)."""
    n, mean, theta = 2_000_000, 2.0, 1e-3
    table = NegativeBinomialTable(torch.full((n, 1), float(np.log(mean))), torch.full((n, 1), float(np.log(theta))))
    draws = table.sample(torch.Generator().manual_seed(5)).double()
    assert abs(float(draws.mean()) - mean) < 4 * np.sqrt((mean + mean**2 / theta) / n)


def test_draws_come_from_the_given_generator_only():
    state = torch.get_rng_state()
    for law in LAWS.values():
        table = law.table(*columns(law.soft, n_rows=50, dtype=torch.float32))
        first, again, other = (table.sample(torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_nb_tends_to_poisson_as_inverse_dispersion_grows():
    """The distance falls in proportion to 1 / theta: by a factor of 100 from each theta to the next."""
    x = torch.arange(60, dtype=torch.float64)[None]
    log_mean = torch.full_like(x, float(np.log(7.0)))
    poisson = PoissonTable(log_mean).log_prob(x)
    gaps = [
        float((NegativeBinomialTable(log_mean, torch.full_like(x, float(np.log(t)))).log_prob(x) - poisson).abs().max())
        for t in (1e4, 1e6, 1e8)
    ]
    assert gaps[0] < 0.2
    assert gaps[0] / gaps[1] == pytest.approx(100, rel=0.02)
    assert gaps[1] / gaps[2] == pytest.approx(100, rel=0.02)


def test_the_definitions_agree_with_scipy():
    """Two independent references: mpmath formulas and scipy's own laws."""
    for name, law in LAWS.items():
        if name == "zinb":
            continue
        for x, p in product((0.0, 1.0) if name == "bernoulli" else (0.0, 3.0, 40.0), law.soft):
            scipy_law = law.scipy(*p)
            log_density = scipy_law.logpdf if name == "gaussian" else scipy_law.logpmf
            assert references.log_probability(law.reference, x, p) == pytest.approx(float(log_density(x)), rel=1e-9)
