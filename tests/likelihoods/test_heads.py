"""The likelihood heads: what they make of features and data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scvae.data.batches import Batch
from scvae.data.summary import GeneSummary
from scvae.kernels.block import Dense
from scvae.likelihoods import KIND, NAMES, Gaussian, make_likelihood
from tests import references
from tests.kernels.problems import csr, tensor

FEATURES, GENES, CELLS = 5, 17, 11
COUNT_HEADS = ("nb", "zinb", "poisson")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def values_for(name):
    rng = np.random.default_rng(4)
    if KIND[name] == "real":
        return rng.normal(size=(CELLS, GENES)).astype(np.float32)
    counts = rng.negative_binomial(0.7, 0.2, (CELLS, GENES)).astype(np.float32)
    counts[3] = 0
    return np.minimum(counts, 1) if KIND[name] == "binary" else counts


def batch_of(values, *, kind="counts", groups=1):
    library = np.ones(len(values)) if kind == "real" else values.sum(1)
    codes = torch.arange(len(values))[:, None] % groups
    x = Dense(tensor(values)) if kind == "real" else csr(values)
    return Batch(x, tensor(library), codes, torch.zeros(len(values), 0), has_batch=groups > 1)


def summary_of(values):
    x = torch.from_numpy(values)
    log_library = x.sum(1).clamp_min(1.0).log().mean()
    return GeneSummary(len(values), x.sum(0), x.square().sum(0), float(log_library))


def started(name, n_groups=1):
    head = make_likelihood(name, FEATURES, GENES, n_groups=n_groups, generator=generator())
    head.start_from(summary_of(values_for(name)))
    return head


@pytest.mark.parametrize("name", NAMES)
def test_only_chosen_cells_and_only_counts_are_scaled_down_to_twice_the_mean_depth(name):
    head, values = started(name), values_for(name)
    batch, chosen = batch_of(values, kind=KIND[name]), torch.arange(CELLS) % 2 == 0
    shallow = head.shallow(batch, chosen)
    if KIND[name] != "counts":
        assert shallow is batch
        return
    most = 2 * np.exp(np.log(np.maximum(values.sum(1), 1.0)).mean())
    expected = np.where(chosen, np.minimum(most / np.maximum(values.sum(1), 1.0), 1.0), 1.0)
    assert 0 < (expected < 1).sum() < chosen.sum()
    np.testing.assert_allclose(shallow.x.to_dense(), values * expected[:, None], rtol=1e-5)
    np.testing.assert_allclose(shallow.library, values.sum(1) * expected, rtol=1e-5)
    assert torch.equal(shallow.x.to_dense()[~chosen], batch.x.to_dense()[~chosen])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("draws", [1, 3])
def test_log_prob_is_the_weighted_sum_over_the_table(name, draws):
    """The heads' own route (fused for nb) against their dense table, which is tested against mpmath."""
    head = started(name, n_groups=2)
    values = values_for(name)
    batch = batch_of(values, kind=KIND[name], groups=2)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(1)))
    features = torch.randn(draws * CELLS, FEATURES, generator=generator(2))
    weight = torch.rand(draws * CELLS, generator=generator(3))
    total, per_row = head.log_prob(features, batch, weight)
    table = head.distribution(features, batch).log_prob(tensor(values).repeat(draws, 1))
    assert table.dtype == torch.float64
    torch.testing.assert_close(per_row.double(), table.sum(1), rtol=2e-6, atol=1e-5)
    torch.testing.assert_close(total.double(), (weight * table.sum(1)).sum(), rtol=2e-6, atol=1e-5)
    assert total.requires_grad
    assert not per_row.requires_grad


@pytest.mark.parametrize("name", NAMES)
def test_training_starts_at_the_marginal_means(name):
    head = started(name)
    values = values_for(name)
    batch = batch_of(values, kind=KIND[name])
    mean = head.distribution(torch.zeros(CELLS, FEATURES), batch).mean.detach().numpy()
    if name in COUNT_HEADS:
        smoothed = values.sum(0) + 0.5
        expected = np.outer(values.sum(1), smoothed / smoothed.sum()) * (0.9526 if name == "zinb" else 1.0)
        np.testing.assert_allclose(mean, expected, rtol=1e-4)
    elif name == "gaussian":
        np.testing.assert_allclose(mean, np.tile(values.mean(0), (CELLS, 1)), atol=1e-6)
        variance = head.distribution(torch.zeros(CELLS, FEATURES), batch).variance.detach()
        np.testing.assert_allclose(variance[0], values.var(0) * 1.01, rtol=1e-5)  # the floor adds (1 / 10)^2
    else:
        typical = np.exp(np.log(np.maximum(values.sum(1), 1)).mean())
        share = (values.sum(0) + 0.5) / (CELLS + 1)
        odds = np.maximum(values.sum(1), 1)[:, None] / typical * share / (1 - share)
        np.testing.assert_allclose(mean, odds / (1 + odds), rtol=1e-4)


def test_bernoulli_logits_are_decoder_plus_bias_plus_slope_times_centred_log_depth():
    head = started("bernoulli")
    values = values_for("bernoulli")
    batch = batch_of(values)
    with torch.no_grad():
        head.depth_slope.copy_(torch.linspace(-1.0, 2.0, GENES))
    features = torch.randn(2 * CELLS, FEATURES, generator=generator(2))
    depth = np.log(np.maximum(values.sum(1), 1.0))
    decoder = features.numpy() @ head.output.weight.detach().numpy().T
    expected = (
        decoder
        + head.output.bias.detach().numpy()
        + np.tile(depth - depth.mean(), 2)[:, None] * np.linspace(-1.0, 2.0, GENES)
    )
    np.testing.assert_allclose(head.distribution(features, batch).logit.detach(), expected, atol=1e-5)


def test_count_heads_show_the_encoder_counts_at_a_common_library_and_its_log():
    values = values_for("nb")
    library = np.maximum(values.sum(1), 1.0)
    typical = np.exp(np.log(library).mean())
    for name in COUNT_HEADS:
        x, covariates = started(name).encoder_input(batch_of(values))
        np.testing.assert_allclose(x.to_dense(), np.log1p(values * (typical / library)[:, None]), rtol=1e-5)
        np.testing.assert_allclose(covariates[:, 0], np.log(library / typical), atol=1e-5)


def test_gaussian_shows_the_encoder_z_scores_and_takes_negative_values():
    values = values_for("gaussian")
    assert (values < 0).any()
    values[:, 2] = -1.5
    head = make_likelihood("gaussian", FEATURES, GENES, generator=generator())
    head.start_from(summary_of(values))
    x, covariates = head.encoder_input(batch_of(values, kind="real"))
    others = np.arange(GENES) != 2
    expected = (values - values.mean(0))[:, others] / values.std(0)[others]
    np.testing.assert_allclose(x.values[:, others], expected, atol=1e-4)
    assert np.allclose(x.values[:, 2], 0, atol=1e-3)
    assert covariates.shape == (CELLS, 0)


def climb(minimum_scale):
    """Log-likelihood per cell after each tenth of the optimisation of a head that reproduces its data exactly."""
    values = np.tile(np.float32([[1.0], [-1.0]]), (5, GENES))  # mean 0, spread 1: nothing is rounded
    head = Gaussian(1, GENES, minimum_scale=minimum_scale, generator=generator())
    head.start_from(summary_of(values))
    with torch.no_grad():
        head.output.weight.fill_(1.0)
    features, batch = tensor(values[:, :1]), batch_of(values, kind="real")
    optimizer = torch.optim.Adam([head.log_free_scale], lr=0.1)
    seen = []
    for _ in range(200):
        optimizer.zero_grad()
        total, _ = head.log_prob(features, batch, torch.full((10,), 0.1))
        (-total).backward()
        optimizer.step()
        seen.append(float(total.detach()))
    return np.array(seen)[19::20]


def test_the_bound_of_the_scale_is_what_stops_the_gaussian_likelihood_running_away():
    bounded = climb(0.1)
    ceiling = GENES * references.log_probability(references.gaussian, 0.0, (0.0, np.log(0.1)))
    assert np.all(bounded < ceiling)
    assert bounded[-1] == pytest.approx(ceiling, abs=0.1)
    free = climb(0.0)
    assert free[-1] > ceiling + 100
    assert np.all(np.diff(free) > 0.9 * (free[1] - free[0]))  # as fast at the end as at the beginning


@pytest.mark.parametrize("theta", [1e-6, 1.0])
def test_zero_inflation_adds_zeros_and_takes_its_share_of_the_mean(theta):
    head = started("zinb")
    batch = batch_of(values_for("zinb"))
    with torch.no_grad():
        head.base.log_inverse_dispersion.fill_(float(np.log(theta)))
    features = torch.zeros(CELLS, FEATURES)
    base, table = head.base.distribution(features, batch), head.distribution(features, batch)
    lost = 1 / (1 + np.exp(3.0))
    torch.testing.assert_close(table.mean, (1 - lost) * base.mean)
    zeros, base_zeros = (d.log_prob(torch.zeros(CELLS, GENES)).exp() for d in (table, base))
    torch.testing.assert_close(zeros, lost + (1 - lost) * base_zeros, rtol=1e-6, atol=0)


def test_dispersions_of_a_group_are_used_by_its_cells_only():
    head = started("nb", n_groups=2)
    with torch.no_grad():
        head.log_inverse_dispersion[1] = 3.0
    table = head.distribution(torch.zeros(2 * CELLS, FEATURES), batch_of(values_for("nb"), groups=2))
    expected = np.tile(np.where(np.arange(CELLS) % 2 == 1, 3.0, 0.0), 2)
    np.testing.assert_array_equal(table.log_inverse_dispersion[:, 0].detach(), expected)
