"""A fit in which each cell has a posterior of its own, and no encoder."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from anndata import AnnData
from scipy.stats import multivariate_normal

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.inference.cells import read_cells
from scvae.model.per_cell import PerCell
from tests.training.test_checkpoint import Killed, fail_in_call

LOADINGS, NOISE = np.array([[2.0, 0.0], [0.0, 1.5], [2.0, 0.0], [0.0, 1.5], [1.0, 1.0]]), 0.5
FEW = TrainingConfig(epochs=3, batch_size=32, inference="per_cell", patience=None)


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 80, "n_genes": 30, "truth": False, "rng": 0} | options)


def fit(adata, training=FEW, **options):
    defaults = {"n_latent": 3, "rng": 0, "verbose": False, "network": NetworkConfig(width=16)}
    return scvae.fit(adata, training=training, **defaults | options)


def test_a_linear_model_becomes_the_law_of_the_data_and_new_cells_get_its_posterior():
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((500, 2)) @ LOADINGS.T + NOISE * rng.standard_normal((500, 5))).astype(np.float32)
    training = TrainingConfig(inference="per_cell", epochs=150)
    network = NetworkConfig(decoder="linear", minimum_scale=0.0)
    model = scvae.fit(
        AnnData(x[:400]), likelihood="gaussian", n_latent=2, network=network, training=training, rng=0, verbose=False
    )
    covariance = LOADINGS @ LOADINGS.T + NOISE**2 * np.eye(5)
    evidence = multivariate_normal(np.zeros(5), covariance).logpdf(x[400:]).mean()
    bound = scvae.tl.log_likelihood(AnnData(x[400:]), model, kind="elbo", n_samples=200).mean()
    assert bound == pytest.approx(evidence, abs=0.2)
    assert model.outcome.active_dimensions == 2
    new = AnnData(x[400:])
    scvae.tl.embed(new, model)
    predicted = new.obsm["X_scvae"] @ np.linalg.lstsq(new.obsm["X_scvae"], x[400:], rcond=None)[0]
    assert 1 - (x[400:] - predicted).var() / x[400:].var() > 0.9


@pytest.mark.slow
def test_a_cell_moves_its_own_row_and_no_other():
    network = fit(simulated()).network
    encoder = network.encoder
    assert isinstance(encoder, PerCell)
    encoder.open(10, beta=1.0)
    adata = simulated()
    batch = read_cells(adata, fit(adata), None).batch(np.array([4, 7]))
    own = encoder(network, replace(batch, rows=torch.tensor([4, 7])))
    own.mean.sum().backward()
    assert encoder.mean.grad.abs().sum(1).nonzero().flatten().tolist() == [4, 7]
    np.testing.assert_array_equal(own.mean.detach(), np.zeros((2, 3)))  # the prior's, before the first step


def test_the_model_holds_nothing_of_its_cells_and_gives_any_the_same_posterior_from_a_file(tmp_path):
    adata = simulated()
    model = fit(adata)
    again = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert not list(again.network.encoder.parameters())
    assert all(80 not in tensor.shape for tensor in again.network.state_dict().values())
    same = simulated()
    scvae.tl.embed(same, again)
    assert same.obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()
    part = simulated()[30:50].copy()
    scvae.tl.embed(part, again)
    np.testing.assert_allclose(part.obsm["X_scvae"], adata.obsm["X_scvae"][30:50], atol=1e-3)


def test_held_out_cells_are_measured_once_at_the_end():
    model = fit(simulated())
    assert model.history["validation_elbo"].isna().all()
    assert np.isfinite(model.outcome.held_out_elbo)
    assert model.outcome.best_epoch == 3


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_very_same_result(monkeypatch, tmp_path):
    expected, adata, path = simulated(), simulated(), tmp_path / "run.safetensors"
    whole = fit(expected)
    with monkeypatch.context() as patch:
        fail_in_call(patch, scvae.training.train, "evaluate", 3)
        with pytest.raises(Killed):
            fit(adata, checkpoint=path)
    resumed = fit(adata, checkpoint=path)
    assert resumed.outcome.skipped_steps == whole.outcome.skipped_steps
    for key in ("X_scvae", "X_scvae_var"):
        assert adata.obsm[key].tobytes() == expected.obsm[key].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("settings", [{"free_bits": 0.5}, {"capacity": 3.0}])
def test_other_penalties_shape_the_posteriors_of_cells_too(settings):
    plain, other = fit(simulated()), fit(simulated(), replace(FEW, **settings))
    assert np.isfinite(other.outcome.held_out_elbo)
    assert other.history["train_kl"].iloc[-1] != plain.history["train_kl"].iloc[-1]


@pytest.mark.slow
def test_cells_on_disk_have_their_own_rows_too(tmp_path):
    path = tmp_path / "cells.h5ad"
    simulated().write_h5ad(path)
    in_memory, on_disk = fit(simulated()), fit(path)
    assert on_disk.outcome.held_out_elbo == in_memory.outcome.held_out_elbo
    windows = fit(path, TrainingConfig(epochs=3, batch_size=32, inference="per_cell", memory=0.0))
    assert windows.outcome.held_out_elbo == pytest.approx(in_memory.outcome.held_out_elbo, rel=0.05)


def test_tools_work_without_an_encoder():
    adata = simulated(n_batches=2)
    model = fit(
        adata, TrainingConfig(epochs=3, batch_size=32, inference="per_cell", consistency=0.0), batch_key="batch"
    )
    assert scvae.tl.generate(model, n=5).shape == (5, 30)
    scvae.tl.denoise(adata, model)
    scvae.tl.diagnose(adata, model)
    scvae.tl.embed(adata, model, refine=5)
    with pytest.warns(UserWarning, match="27 of the 30"):
        scvae.tl.embed(adata[:, 3:].copy(), model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": (0.1, 10.0)}, "a range of β"),
        ({"n_latent": "auto"}, "n_latent='auto'"),
        ({"batch_key": "batch"}, "the consistency term"),
        ({"network": NetworkConfig(dropout=0.1)}, "NetworkConfig.dropout"),
        ({"network": NetworkConfig(encode_conditions=True)}, "NetworkConfig.encode_conditions"),
    ],
)
def test_what_needs_an_encoder_in_the_fit_is_refused_by_name(options, message, digest):
    adata = simulated(n_batches=2)
    before = digest(adata)
    with pytest.raises(ValueError, match=rf"inference='per_cell' does not work with {message}"):
        fit(adata, **options)
    assert digest(adata) == before


def test_several_processes_are_refused(monkeypatch):
    monkeypatch.setattr("scvae.training.refusals.ranks", lambda: SimpleNamespace(world=2))
    with pytest.raises(ValueError, match="inference='per_cell' does not work with several processes"):
        fit(simulated())


def test_what_needs_an_encoder_after_the_fit_is_refused_by_name():
    adata = simulated(n_batches=2)
    model = fit(adata, TrainingConfig(epochs=1, inference="per_cell", consistency=0.0), batch_key="batch")
    calls = {
        r"scvae\.tl\.map_query": lambda: scvae.tl.map_query(adata, model, new_batches=True),
        r"scvae\.tl\.prune": lambda: scvae.tl.prune(adata, model),
        "a fit from the model in init": lambda: scvae.fit(adata, init=model, verbose=False),
    }
    for what, call in calls.items():
        with pytest.raises(ValueError, match=rf"{what} needs an encoder"):
            call()
    with pytest.raises(ValueError, match="no encoder for the next β of a sweep"):
        scvae.tune_beta(adata, betas=[1.0, 2.0], method="sweep", training=FEW, verbose=False)
    amortized = fit(adata, TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match="has an encoder, but training has inference='per_cell'"):
        fit(adata, init=amortized, network=None, n_latent=3)
