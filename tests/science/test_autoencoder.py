"""β = 0 without noise in the latent is a plain autoencoder: it copies better, and cannot make new cells."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

import scvae
import scvae.training.step
from scvae import NetworkConfig, TrainingConfig
from scvae.data.intake import read_query
from scvae.model.vae import make_model

SEED, N_LATENT, NETWORK = 0, 5, NetworkConfig(width=64)


@pytest.fixture(scope="module")
def cells():
    """Cells to train on, and others of the same law."""
    adata = scvae.datasets.simulate(n_cells=1600, n_genes=30, n_types=4, likelihood="gaussian", truth=False, rng=1)
    return adata[:800].copy(), adata[800:].copy()


def fitted(adata, beta):
    training = TrainingConfig(validation_fraction=0.0)
    options = {"n_latent": N_LATENT, "network": NETWORK, "training": training, "rng": SEED, "verbose": False}
    return scvae.fit(adata, likelihood="gaussian", beta=beta, **options)


@pytest.fixture(scope="module")
def models(cells):
    """The autoencoder, trained by the package's own steps with the noise set to 0, and the model at β = 1."""
    original = scvae.training.step.evidence_terms

    def without_noise(model, batch, noise, weight, generator=None):
        return original(model, batch, torch.zeros_like(noise), weight, generator)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scvae.training.step, "evidence_terms", without_noise)
        autoencoder = fitted(cells[0].copy(), 0.0)
    return autoencoder, fitted(cells[0].copy(), 1.0)


def copies(model, adata):
    """Mean of each cell's values given its posterior mean."""
    batch = read_query(adata, model.schema).batch(np.arange(adata.n_obs))
    with torch.no_grad():
        z = model.network.encode(batch).mean
        return model.network.likelihood.distribution(model.network.features(z, batch), batch).mean.numpy()


def samples(model, adata):
    """As many new cells, from z ~ N(0, I)."""
    generator = torch.Generator().manual_seed(3)
    batch = read_query(adata, model.schema).batch(np.arange(adata.n_obs))
    z = torch.randn(adata.n_obs, model.n_latent, generator=generator)
    with torch.no_grad():
        return model.network.likelihood.distribution(model.network.features(z, batch), batch).sample(generator).numpy()


def energy_distance(first, second):
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| (Szekely & Rizzo 2013), unbiased: around 0 for two samples of one law."""
    n, m = len(first), len(second)
    within = cdist(first, first).sum() / (n * (n - 1)) + cdist(second, second).sum() / (m * (m - 1))
    return 2 * cdist(first, second).mean() - within


def test_the_autoencoder_never_learns_a_variance(models):
    autoencoder, regular = models
    fresh = make_model(autoencoder.schema, "gaussian", N_LATENT, NETWORK, SEED)
    for model, same in ((autoencoder, True), (regular, False)):
        assert torch.equal(model.network.encoder.log_variance.weight, fresh.encoder.log_variance.weight) is same
    assert (autoencoder.history["beta"] == 0).all()


def test_the_autoencoder_copies_better_even_cells_it_has_not_seen(models, cells):
    for adata in cells:
        error = [np.mean((copies(model, adata) - adata.X) ** 2) for model in models]
        assert error[0] < 0.99 * error[1]


def test_samples_from_the_prior_are_worse_than_those_of_the_variational_one(models, cells):
    train, other = cells
    autoencoder, regular = (energy_distance(samples(model, other), other.X) for model in models)
    floor = abs(energy_distance(train.X, other.X))
    assert autoencoder > 5 * regular
    assert autoencoder > 20 * floor


def test_with_noise_and_no_kl_the_posterior_narrows_towards_a_point(models, cells):
    noisy, shares = fitted(cells[0].copy(), 0.0), []
    for model in (noisy, models[1]):
        adata = scvae.tl.embed(cells[0], model, copy=True)
        shares.append(np.median(adata.obsm["X_scvae_var"] / adata.obsm["X_scvae"].var(0)))
    assert shares[0] < 0.01 * shares[1]
