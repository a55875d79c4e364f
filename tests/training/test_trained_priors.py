"""Priors that are trained: fits, files, checkpoints, mapping, pruning, and what they are refused with."""

import anndata as ad
import numpy as np
import pytest
import torch

import scvae
import scvae.training.train
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from scvae.model.latent.flow import Flow
from scvae.model.latent.mixture import TrainedMixture
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.objective import elbo
from scvae.training.fused_step import can_be_fused
from scvae.training.priors import default_components
from scvae.training.run import evaluate_held_out
from scvae.training.settings import settings_of
from scvae.training.step import make_optimizer

NETWORKS = {
    "mixture": NetworkConfig(width=16, prior="mixture", prior_components=4),
    "flow": NetworkConfig(width=16, prior="flow"),
}
SHORT = TrainingConfig(epochs=30, batch_size=16, learning_rate=2e-2, patience=None)
each_prior = pytest.mark.parametrize("name", NETWORKS)


class Killed(BaseException):
    """The process ends here."""


def simulated(**options):
    cells = {"n_cells": 150, "n_genes": 30, "n_latent": 2, "n_types": 3, "n_batches": 3}
    strong = {"mean_library": 1000, "signal": 1.5, "inverse_dispersion": 20.0}
    return scvae.datasets.simulate(**cells | strong | {"truth": False, "rng": 0} | options)


def fit(adata, name, **options):
    defaults = {"rng": 3, "n_latent": 4, "batch_key": "batch", "network": NETWORKS[name], "training": SHORT}
    return scvae.fit(adata, **{"verbose": False} | defaults | options)


@pytest.fixture(scope="module")
def fits():
    """Cells and model of a fit with each prior."""
    cells = {name: simulated() for name in NETWORKS}
    return {name: (adata, fit(adata, name)) for name, adata in cells.items()}


def weights(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.network.state_dict().items()}


@each_prior
def test_a_fit_trains_the_prior_and_is_finite(fits, name):
    _, model = fits[name]
    assert np.isfinite(model.history.drop(columns=["epoch"]).to_numpy()).all()
    kind = {"mixture": TrainedMixture, "flow": Flow}[name]
    assert isinstance(model.network.prior, kind)
    assert can_be_fused(model.network, model.training_config) == (name == "mixture")
    generator = torch.Generator().manual_seed(0)
    started = kind(4, *([4] if name == "mixture" else []), generator=generator)
    moved = zip(model.network.prior.parameters(), started.parameters(), strict=True)
    assert all((now != then).any() for now, then in moved)


def test_the_centres_of_a_mixture_travel_ten_times_as_fast(fits):
    prior = fits["mixture"][1].network.prior
    groups = make_optimizer(fits["mixture"][1].network, 100).groups
    (own,) = (group for group in groups if any(p is prior.centre for p in group.parameters))
    assert {id(p) for p in own.parameters} == {id(p) for p in prior.parameters()}
    assert (own.rate, own.decay) == (10.0, 0.0)


@each_prior
def test_the_kl_of_the_history_is_one_number_and_its_share_of_a_dimension_is_its_usage(fits, name):
    adata, model = fits[name]
    found = evaluate_held_out(model.network, read_cells(adata, model, None), settings_of(model), beta=1.0)
    best = model.history.set_index("epoch").loc[model.outcome.best_epoch]
    assert found.kl == pytest.approx(best["validation_kl"], rel=1e-4)
    assert found.summands.shape == (1,)
    cells = read_cells(adata, model, None)
    mean, variance = (torch.from_numpy(values) for values in posterior_moments(model, cells))
    with torch.no_grad():
        usage = model.network.prior.usage(DiagonalNormal(mean, variance.log())).mean(0)
    # of all cells, not of those held out
    assert model.outcome.kl_per_dimension == pytest.approx(usage.tolist(), rel=0.5, abs=0.2)


def test_a_mixture_writes_soft_clusters_and_a_flow_does_not(fits):
    adata, model = fits["mixture"]
    shares = adata.obsm["X_scvae_components"]
    assert shares.dtype == np.float32
    assert shares.shape == (150, 4)
    np.testing.assert_allclose(shares.sum(1), 1.0, rtol=1e-6)
    mean, _ = posterior_moments(model, read_cells(adata, model, None))  # in coordinates of the network
    with torch.no_grad():
        at_mean = torch.softmax(model.network.prior.joint(torch.from_numpy(mean)), 1).numpy()
    assert np.corrcoef(shares.ravel(), at_mean.ravel())[0, 1] > 0.9
    assert "X_scvae_components" not in fits["flow"][0].obsm


def test_soft_clusters_go_with_their_model(fits):
    adata, _ = fits["mixture"]
    adata = adata.copy()
    scvae.tl.embed(adata, fits["flow"][1])
    assert "X_scvae_components" not in adata.obsm
    scvae.tl.embed(adata, fits["mixture"][1])
    part = adata[20:60].copy()
    scvae.tl.embed(part, fits["mixture"][1])
    np.testing.assert_array_equal(part.obsm["X_scvae_components"], adata.obsm["X_scvae_components"][20:60])


def test_soft_clusters_are_written_into_files(tmp_path, fits):
    simulated().write_h5ad(tmp_path / "cells.h5ad")
    fit(tmp_path / "cells.h5ad", "mixture")
    found = ad.read_h5ad(tmp_path / "cells.h5ad").obsm["X_scvae_components"]
    np.testing.assert_allclose(found, fits["mixture"][0].obsm["X_scvae_components"], atol=1e-5)


@each_prior
def test_a_saved_model_embeds_as_before_to_the_bit(fits, name, tmp_path):
    adata, model = fits[name]
    again, loaded = simulated(), scvae.load(model.save(tmp_path / "model"))
    scvae.tl.embed(again, loaded)
    for slot in (slot for slot in adata.obsm if slot.startswith("X_scvae")):
        assert again.obsm[slot].tobytes() == adata.obsm[slot].tobytes()
    assert weights(loaded) == weights(model)
    for moment in ("mean", "variance"):  # those of a flow are not in the file
        torch.testing.assert_close(getattr(loaded.network.prior, moment), getattr(model.network.prior, moment))
    bounds = [scvae.tl.log_likelihood(adata, each, n_samples=5) for each in (model, loaded)]
    assert bounds[0].equals(bounds[1])


@each_prior
def test_a_killed_run_resumes_to_the_very_same_result(monkeypatch, tmp_path, fits, name):
    calls, original = [], scvae.training.train.evaluate

    def stub(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise Killed
        return original(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(scvae.training.train, "evaluate", stub)
        with pytest.raises(Killed):
            fit(simulated(), name, checkpoint=tmp_path / "run")
    assert weights(fit(simulated(), name, checkpoint=tmp_path / "run")) == weights(fits[name][1])


@each_prior
def test_mapping_leaves_prior_and_reference_as_they_are(fits, name):
    reference, model = fits[name]
    query = simulated(rng=1)[:60].copy()
    query.obs["batch"] = query.obs["batch"].cat.rename_categories(["x", "y", "z"])
    mapped = scvae.tl.map_query(query, model, epochs=1, verbose=False)
    ours, theirs = (each.network.prior.state_dict() for each in (mapped, model))
    assert all(torch.equal(ours[part], theirs[part]) for part in theirs)
    again = simulated()
    scvae.tl.embed(again, mapped)
    assert again.obsm["X_scvae"].tobytes() == reference.obsm["X_scvae"].tobytes()
    assert ("X_scvae_components" in query.obsm) == (name == "mixture")
    assert all(p.requires_grad for p in mapped.network.prior.parameters())


@each_prior
def test_missing_genes_are_filled_in_under_a_trained_prior(fits, name):
    adata, model = fits[name]
    part = adata[:, :25].copy()
    with pytest.warns(UserWarning, match="25 of"):
        scvae.tl.embed(part, model)
    correlation = np.corrcoef(part.obsm["X_scvae"].ravel(), adata.obsm["X_scvae"].ravel())[0, 1]
    assert correlation > 0.8


@each_prior
def test_training_goes_on_from_a_model(fits, name):
    _, model = fits[name]
    adata = simulated()
    network = NetworkConfig(width=16, prior=name)  # components left out: those of the model
    further = scvae.fit(adata, init=model, network=network, training=SHORT, rng=3, verbose=False)
    assert further.network_config == model.network_config
    assert np.isfinite(further.outcome.held_out_elbo)
    with pytest.raises(ValueError, match="contradicts network="):
        scvae.fit(adata, init=model, network=NetworkConfig(width=16), verbose=False)


@pytest.mark.slow
def test_unused_dimensions_of_a_mixture_are_pruned(tmp_path):
    adata = simulated(n_types=1, n_latent=1, n_batches=1, signal=1.0)
    options = {"batch_key": None, "n_latent": 8, "training": TrainingConfig(epochs=40, batch_size=32)}
    model = fit(adata, "mixture", **options)
    pruned = scvae.tl.prune(adata, model, epochs=2, verbose=False)
    assert 1 <= pruned.n_latent < 8
    assert pruned.network.prior.centre.shape == (4, pruned.n_latent)
    assert adata.obsm["X_scvae_components"].shape == (150, 4)
    assert weights(scvae.load(pruned.save(tmp_path / "model"))) == weights(pruned)


def test_the_dimensions_of_a_flow_are_not_pruned(fits, digest):
    adata, model = fits["flow"]
    before = digest(adata)
    with pytest.raises(ValueError, match="prior='flow' has no closed form"):
        scvae.tl.prune(adata, model, verbose=False)
    assert digest(adata) == before


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mixture", {"beta": (0.5, 2.0)}, "prior='mixture' needs a single β"),
        ("flow", {"beta": (0.5, 2.0)}, "prior='flow' needs a single β"),
        ("mixture", {"training": TrainingConfig(free_bits=0.1)}, "free_bits is the KL of each dimension"),
        ("flow", {"training": TrainingConfig(capacity=5.0)}, "capacity needs a fixed prior"),
        ("flow", {"n_latent": "auto"}, "none can be removed by n_latent='auto'"),
        ("flow", {"n_latent": 1}, "n_latent must be at least 2"),
    ],
)
def test_what_a_trained_prior_does_not_go_with_is_refused_by_name(name, options, message, digest):
    adata = simulated()
    before = digest(adata)
    with pytest.raises(ValueError, match=message):
        fit(adata, name, **options)
    assert digest(adata) == before


def test_free_bits_are_refused_where_training_goes_on(fits):
    with pytest.raises(ValueError, match="free_bits is the KL of each dimension"):
        scvae.fit(simulated(), init=fits["flow"][1], training=TrainingConfig(free_bits=0.1), verbose=False)


@pytest.mark.slow
def test_a_sweep_of_betas_trains_a_mixture_at_each():
    adata = simulated(n_batches=1)
    options = {"n_latent": 3, "network": NETWORKS["mixture"], "training": SHORT, "rng": 0, "verbose": False}
    found = scvae.tune_beta(adata, betas=[0.5, 8.0], method="sweep", **options)
    rates = found.table["rate"].tolist()
    assert rates[0] > rates[1] > 0
    assert adata.obsm["X_scvae_components"].shape == (150, 4)


def test_the_number_of_components_follows_from_the_cells():
    adata = simulated()
    model = fit(adata, "mixture", network=NetworkConfig(width=16, prior="mixture"))
    assert model.network_config.prior_components == default_components(135)
    assert adata.obsm["X_scvae_components"].shape[1] == default_components(135)
    assert adata.uns["scvae"]["params"]["network"]["prior_components"] == default_components(135)


@each_prior
def test_the_record_has_the_moments_of_the_prior_in_written_coordinates(fits, name):
    adata, model = fits[name]
    record, prior = adata.uns["scvae"], model.network.prior
    with torch.no_grad():
        expected = prior.mean.numpy().astype(np.float64) @ model.metric.matrix
    scale = record["prior_sd"]
    np.testing.assert_allclose(record["prior_mean"] / scale, expected / scale, atol=0.05)
    latent = fit(simulated(), name, metric="latent")
    again = simulated()
    scvae.tl.embed(again, latent)
    with torch.no_grad():
        np.testing.assert_allclose(again.uns["scvae"]["prior_sd"], latent.network.prior.variance.sqrt(), rtol=0.05)


@each_prior
def test_the_elbo_averages_the_kl_over_all_draws(monkeypatch, fits, name):
    adata, model = fits[name]
    batch, network = read_cells(adata, model, None).batch(np.arange(5)), model.network
    monkeypatch.setattr("scvae.model.objective.DRAWS_BUDGET", 5 * 30)  # one draw at a time
    found = elbo(network, batch, 7, torch.Generator().manual_seed(1))
    generator, expected = torch.Generator().manual_seed(1), 0.0
    with torch.no_grad():
        q = network.encode(batch)
        for _ in range(7):
            z = q.reparameterize(torch.randn(5, 4, generator=generator))
            log_p = network.log_likelihood(z, batch, torch.zeros(5)).per_row + network.prior.log_prob(z)
            expected = expected + (log_p - q.log_prob(z)).double() / 7
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-4)


@each_prior
def test_likelihoods_are_under_the_trained_prior_and_new_cells_come_from_the_density(fits, name):
    adata, model = fits[name]
    own = scvae.tl.log_likelihood(adata, model, n_samples=20)
    assert (own != scvae.tl.log_likelihood(adata, model, n_samples=20, kind="density")).all()
    assert scvae.tl.generate(model, n=5).uns["scvae"]["drawn"]["source"] == "density of the fit"
    assert np.isfinite(scvae.tl.diagnose(adata, model).measured.information.marginal_kl)
