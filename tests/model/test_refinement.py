"""The best posterior of a cell against a model in which it is known, and where it takes the encoder's place."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from scvae.inference.posterior import posterior_moments
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.refinement import DAMPING, FURTHEST, best_posterior, nearer_mean
from tests.diagnostics.models import NOISE, linear_normal

LOADINGS = np.array([[1.0, 0.0], [0.0, 0.5], [1.0, 0.0], [0.0, 0.5], [0.7, 0.0]], dtype=np.float32)
MISSING = np.array([0, 3])
MEASURED = np.array([1, 2, 4])


def exact(x):
    """Posterior of z given the measured genes alone: each gene speaks of one dimension, so it is diagonal."""
    precision = 1.0 + (LOADINGS[MEASURED] ** 2).sum(0) / NOISE**2
    return x[:, MEASURED] @ LOADINGS[MEASURED] / NOISE**2 / precision, 1.0 / precision


def test_without_an_encoder_the_posterior_is_found():
    model, cells, x = linear_normal(LOADINGS, n_cells=60)
    batch = replace(cells.batch(np.arange(60)), missing=torch.from_numpy(MISSING))
    with torch.no_grad():
        start = model.network.encode(replace(batch, missing=None))
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    found = best_posterior(model.network, batch, start, beta=1.0, seed=0, steps=200)
    mean, variance = exact(x)
    np.testing.assert_allclose(found.mean, mean, atol=0.02)
    np.testing.assert_allclose(found.variance, np.broadcast_to(variance, mean.shape), rtol=0.05)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.network.parameters())


@pytest.mark.parametrize("beta", [1.0, 3.0])
def test_newton_steps_lead_towards_the_best_mean_by_what_the_data_tell_but_not_far(beta):
    model, cells, x = linear_normal(LOADINGS, n_cells=60)
    precision = 1.0 + (LOADINGS**2).sum(0) / NOISE**2 / beta
    best = torch.from_numpy(x @ LOADINGS / NOISE**2 / beta / precision).float()
    log_variance = -torch.from_numpy(precision).float().log().expand(60, 2)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    explained = float((1.0 - 1.0 / precision).mean())
    near, left = torch.tensor([0.3, -0.2]), math.prod(1.0 - explained**2 * damping for damping in DAMPING)
    assert left < 0.7
    for offset, remains in ((near, near * left), (3.0, 3.0 - 2 * FURTHEST)):
        start = DiagonalNormal(best + offset, log_variance)
        found = nearer_mean(model.network, cells.batch(np.arange(60)), start, beta=beta)
        torch.testing.assert_close(found, best + remains, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.network.parameters())


def test_cells_that_lack_genes_are_embedded_by_what_was_measured(monkeypatch):
    model, cells, x = linear_normal(LOADINGS, n_cells=60)
    lacking = replace(cells, missing=MISSING)
    with torch.no_grad():
        encoded = model.network.encode(lacking.batch(np.arange(60))).mean.numpy()
    off = np.abs(encoded - exact(x)[0])
    assert off.max() > 0.2
    mean, variance = posterior_moments(model, lacking)
    assert np.abs(mean - exact(x)[0]).mean() < 0.4 * off.mean()
    np.testing.assert_allclose(variance, np.broadcast_to(exact(x)[1], mean.shape), rtol=0.15)
    # the few steps of the default go most of the way, more steps all of it
    monkeypatch.setattr("scvae.inference.posterior.REFINING_STEPS", 50)
    mean, variance = posterior_moments(model, lacking)
    np.testing.assert_allclose(mean, exact(x)[0], atol=0.05)
    np.testing.assert_allclose(variance, np.broadcast_to(exact(x)[1], mean.shape), rtol=0.1)
    # what is found for a cell depends on it alone
    monkeypatch.setattr("scvae.inference.posterior.REFINED_AT_ONCE", 7 * len(LOADINGS))
    order = np.random.default_rng(0).permutation(60)
    np.testing.assert_allclose(posterior_moments(model, lacking.taken(order))[0], mean[order], atol=1e-4)


def test_all_genes_leave_the_encoder_alone():
    model, cells, _ = linear_normal(LOADINGS, n_cells=20)
    with torch.no_grad():
        encoded = model.network.encode(cells.batch(np.arange(20)))
    mean, variance = posterior_moments(model, cells)
    assert mean == pytest.approx(encoded.mean.numpy())
    assert variance == pytest.approx(encoded.variance.numpy())
