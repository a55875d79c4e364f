"""Collapse that comes from the optimisation, not from the data, and what undoes it: same data, network and final β."""

import numpy as np
import pytest
from anndata import AnnData

import scvae
from scvae import NetworkConfig, TrainingConfig
from tests.science.toys import NOISE, equidistant_types, log_evidence

COLLAPSED = {"warmup": 0.0}
REMEDIES = {
    "linear warm-up": {"warmup": 0.5},
    "cyclic warm-up": {"warmup": 0.7, "warmup_cycles": 4},
    "free bits": {"warmup": 0.0, "free_bits": 0.5},
    "capacity": {"warmup": 0.0, "capacity": 3.0},
}


def trained(adata, rng, **settings):
    training = TrainingConfig(**settings)
    model = scvae.fit(adata, likelihood="gaussian", n_latent=2, training=training, rng=rng, verbose=False)
    assert model.outcome.beta_attained == 1.0
    return model.outcome


def toy(seed):
    return equidistant_types(1000, rng=np.random.default_rng(seed))


def test_the_toy_set_has_no_direction_that_stands_out_but_much_to_say():
    adata = toy(0)
    spectrum = np.linalg.eigvalsh(np.cov(adata.X, rowvar=False))
    assert spectrum.max() / spectrum.min() < 1.2
    independent = -7 * (0.5 + 0.5 * np.log(2 * np.pi * (1 + NOISE**2)))  # all that a collapsed model can say
    assert log_evidence(adata).mean() > independent + 6


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 5))])
def test_a_fixed_beta_from_the_first_step_collapses_and_a_warmup_to_the_same_beta_does_not(seed):
    adata = toy(seed)
    collapsed, rescued = trained(adata, seed, **COLLAPSED), trained(adata, seed, **REMEDIES["linear warm-up"])
    assert collapsed.active_dimensions == 0
    assert rescued.active_dimensions == 2
    assert rescued.held_out_elbo > collapsed.held_out_elbo + 3


@pytest.mark.parametrize("remedy", [name for name in REMEDIES if name != "linear warm-up"])
def test_the_other_remedies_undo_the_same_collapse(remedy):
    rescued = trained(toy(0), 0, **REMEDIES[remedy])
    assert rescued.active_dimensions == 2
    assert rescued.held_out_elbo > -8.0  # the collapsed model is at -10.25


def noise_free_cells():
    """Points of a curved surface in twelve dimensions: a decoder that finds it leaves nothing for the scale to say."""
    rng = np.random.default_rng(0)
    surface = np.tanh(rng.normal(size=(1000, 2)) @ rng.normal(size=(2, 16))) @ rng.normal(size=(16, 12))
    return AnnData(surface.astype(np.float32))


def fit_of_noise_free_cells(minimum_scale, epochs):
    return scvae.fit(
        noise_free_cells(),
        likelihood="gaussian",
        n_latent=2,
        network=NetworkConfig(minimum_scale=minimum_scale),
        training=TrainingConfig(epochs=epochs, learning_rate=1e-2, patience=None),
        rng=0,
        verbose=False,
    )


@pytest.mark.slow
def test_the_scale_bound_ends_the_run_of_a_gaussian_scale_to_zero():
    gain, kl = {}, {}
    for minimum_scale in (0.0, 0.3):
        short, long = (fit_of_noise_free_cells(minimum_scale, epochs) for epochs in (40, 120))
        gain[minimum_scale] = long.outcome.held_out_elbo - short.outcome.held_out_elbo
        kl[minimum_scale] = sum(long.outcome.kl_per_dimension)
        head = long.network.likelihood
        share = (head.log_scale().exp() / head.spread).min().item()
        assert share > minimum_scale
        assert (share < 0.1) is (minimum_scale == 0.0)
    assert gain[0.0] > 10  # nats per cell, and there is no end to it
    assert gain[0.3] < 0.25 * gain[0.0]
    assert kl[0.3] < kl[0.0] - 2
