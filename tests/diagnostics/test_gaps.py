"""Amortization and variational gap of linear normal models, where both are known."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvae.diagnostics.gaps import gaps
from tests.diagnostics.models import NOISE, linear_normal, posterior_precision

ORTHOGONAL = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0], [0.0, 0.5]], dtype=np.float32)
NOT_FOUND = 0.03  # nats by which noisy steps may miss the best q
SLANTED = np.array([[1.0, 0.8], [0.3, 0.5], [0.0, 0.4]], dtype=np.float32)


def test_a_perfect_encoder_has_no_gap_of_either_kind():
    model, cells, _ = linear_normal(ORTHOGONAL)
    found = gaps(model, cells, seed=0)
    assert abs(found.amortization.value) < NOT_FOUND
    assert abs(found.variational.value) < 3 * found.variational.error + 0.01


def test_the_amortization_gap_of_a_damaged_encoder_is_the_divergence_from_the_posterior():
    model, cells, _ = linear_normal(ORTHOGONAL)
    shift, widening = 0.4, 0.7
    with torch.no_grad():
        model.network.encoder.mean.bias += shift
        model.network.encoder.log_variance.bias += widening
    precision = np.diag(posterior_precision(ORTHOGONAL))
    expected = 0.5 * (np.expm1(widening) - widening + shift**2 * precision).sum()
    found = gaps(model, cells, seed=0).amortization
    assert found.value == pytest.approx(expected, abs=3 * found.error + 0.02)
    assert found.error < 0.1 * expected


def test_the_variational_gap_of_a_diagonal_q_is_what_its_shape_costs():
    model, cells, _ = linear_normal(SLANTED)
    precision = posterior_precision(SLANTED)
    expected = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision)[1])
    found = gaps(model, cells, seed=0)
    assert expected > 0.2
    assert found.variational.value == pytest.approx(expected, abs=3 * found.variational.error + 0.02)
    assert abs(found.amortization.value) < NOT_FOUND  # no diagonal q is better


def test_the_amortization_gap_is_that_of_the_objective_at_the_beta_of_the_model():
    model, cells, x = linear_normal(ORTHOGONAL)
    beta = 4.0
    fit = (ORTHOGONAL**2).sum(0) / NOISE**2
    best = x @ ORTHOGONAL / (ORTHOGONAL**2).sum(0)

    def objective(mean, variance):
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance))
        return (-0.5 * fit * (variance + (mean - best) ** 2) - beta * kl).sum(1).mean()

    at_one = objective(fit * best / (fit + 1), np.broadcast_to(1 / (fit + 1), best.shape))
    expected = objective(fit * best / (fit + beta), np.broadcast_to(beta / (fit + beta), best.shape)) - at_one
    found = gaps(replace(model, beta=beta), cells, seed=0).amortization
    assert expected > 0.5
    assert found.value == pytest.approx(expected, abs=0.05)


def test_the_model_is_left_as_it_was():
    model, cells, _ = linear_normal(ORTHOGONAL, n_cells=20)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    gaps(model, cells, seed=0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.network.parameters())
