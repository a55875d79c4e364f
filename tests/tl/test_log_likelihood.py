"""`tl.log_likelihood`: lower bounds on log p(x), cell by cell."""

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import nbinom

import scvae
import scvae.model.objective
from scvae import NetworkConfig, TrainingConfig


@pytest.fixture(scope="module")
def fitted():
    adata = scvae.datasets.simulate(n_cells=70, n_genes=30, n_batches=2, truth=False, rng=0)
    training = TrainingConfig(epochs=15, batch_size=32)
    model = scvae.fit(
        adata, batch_key="batch", rng=0, n_latent=3, verbose=False, network=NetworkConfig(width=16), training=training
    )
    return adata, model


@pytest.mark.parametrize("kind", ["iw", "elbo"])
def test_a_series_with_one_number_per_cell_comes_back_and_nothing_is_written(fitted, digest, kind):
    adata, model = fitted
    before = digest(adata)
    bound = scvae.tl.log_likelihood(adata, model, kind=kind, n_samples=5)
    assert isinstance(bound, pd.Series)
    assert bound.index.equals(adata.obs_names)
    assert bound.dtype == np.float64
    assert np.isfinite(bound).all()
    assert (bound < 0).all()
    assert digest(adata) == before


def test_one_draw_gives_the_density_of_the_counts_under_the_decoder(fitted):
    adata, model = fitted
    z = torch.tensor(adata.obsm["X_scvae"])
    cells = scvae.data.intake.read_query(adata, model.schema)
    batch = cells.batch(np.arange(len(cells)))
    with torch.no_grad():
        found = model.network.log_likelihood(z, batch, torch.zeros(len(z))).per_row.numpy()
        table = model.network.likelihood.distribution(model.network.features(z, batch), batch)
    theta = table.log_inverse_dispersion.double().exp().numpy()
    mean = table.mean.double().numpy()
    expected = nbinom(theta, theta / (theta + mean)).logpmf(adata.X.toarray()).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_elbo_is_that_of_training(fitted):
    adata, model = fitted
    bound = scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=200)
    held_out, history = model.outcome.held_out_elbo, model.history
    assert bound.mean() == pytest.approx(held_out, rel=0.15)
    assert bound.mean() == pytest.approx(history["train_elbo"].iloc[-1], rel=0.05)


def test_the_importance_weighted_bound_is_above_the_elbo_and_rises_with_the_samples(fitted):
    adata, model = fitted
    elbo = scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=400).mean()
    one, ten, many = (scvae.tl.log_likelihood(adata, model, n_samples=n, rng=n).mean() for n in (1, 10, 400))
    assert elbo < ten < many
    assert one < many
    assert one == pytest.approx(elbo, abs=1.0)  # with one sample both have the same expectation


def test_one_importance_sample_has_the_expectation_of_the_elbo(fitted):
    adata, model = fitted
    elbo = scvae.tl.log_likelihood(adata, model, kind="elbo", n_samples=1000).to_numpy()
    draws = np.array([scvae.tl.log_likelihood(adata, model, n_samples=1, rng=seed) for seed in range(60)])
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    z = (draws.mean(0) - elbo) / error
    assert np.abs(z).max() < 5
    assert np.abs(z.mean()) < 0.6


def rows_at_a_time(monkeypatch, model):
    seen, original = [], type(model.network).log_likelihood

    def recorded(self, z, batch, row_weight):
        seen.append(len(z))
        return original(self, z, batch, row_weight)

    monkeypatch.setattr(type(model.network), "log_likelihood", recorded)
    return seen


@pytest.mark.parametrize("kind", ["iw", "elbo"])
def test_memory_does_not_grow_with_the_samples(monkeypatch, fitted, kind):
    adata, model = fitted
    monkeypatch.setattr(scvae.model.objective, "DRAWS_BUDGET", 30 * 64 * 3)  # three draws of a chunk of 64 cells
    seen = rows_at_a_time(monkeypatch, model)
    for n_samples in (3, 10, 100):
        seen.clear()
        scvae.tl.log_likelihood(adata, model, kind=kind, n_samples=n_samples)
        assert sum(seen) == 70 * n_samples
        assert max(seen) == 64 * 3


@pytest.mark.parametrize("kind", ["iw", "elbo"])
def test_the_size_of_the_passes_does_not_matter(monkeypatch, fitted, kind):
    adata, model = fitted
    whole = scvae.tl.log_likelihood(adata, model, kind=kind, n_samples=2000)
    monkeypatch.setattr(scvae.model.objective, "DRAWS_BUDGET", 30 * 64 * 150)
    cut = scvae.tl.log_likelihood(adata, model, kind=kind, n_samples=2000, rng=9)
    assert np.abs(whole - cut).max() < 0.5
    assert whole.mean() == pytest.approx(cut.mean(), abs=0.05)


def test_the_seed_decides_the_draws(fitted):
    adata, model = fitted
    first, again, other = (scvae.tl.log_likelihood(adata, model, n_samples=3, rng=rng) for rng in (1, 1, 2))
    pd.testing.assert_series_equal(first, again, check_exact=True)
    assert not first.equals(other)


def test_genes_are_found_by_their_names(fitted):
    adata, model = fitted
    shuffled = adata[:, ::-1].copy()
    bounds = [scvae.tl.log_likelihood(which, model, n_samples=3) for which in (adata, shuffled)]
    pd.testing.assert_series_equal(*bounds, check_exact=True)


def test_cells_unlike_the_training_cells_are_less_probable(fitted):
    adata, model = fitted
    strange = adata.copy()
    strange.X = adata.X[:, np.random.default_rng(0).permutation(30)]  # each count under the name of another gene
    usual, unusual = (scvae.tl.log_likelihood(which, model, n_samples=20) for which in (adata, strange))
    assert (usual > unusual).mean() > 0.95


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kind": "iwae"}, ValueError, "kind must be one of 'iw', 'elbo', 'density'; found 'iwae'"),
        ({"n_samples": 0}, ValueError, "n_samples"),
        ({"n_samples": 2.5}, TypeError, "n_samples"),
        ({"layer": "nothing"}, ValueError, "nothing"),
        ({"rng": "seed"}, TypeError, "rng must be"),
    ],
)
def test_an_argument_out_of_range_is_refused(fitted, options, error, message):
    with pytest.raises(error, match=message):
        scvae.tl.log_likelihood(*fitted, **options)


def test_an_unknown_batch_is_refused(fitted):
    adata, model = fitted
    other = adata.copy()
    other.obs["batch"] = "new"
    with pytest.raises(ValueError, match="it knows 'batch_0', 'batch_1'"):
        scvae.tl.log_likelihood(other, model)
