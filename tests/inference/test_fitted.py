"""The fitted model: how it reads, and how it comes back from a file."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import scvae
import scvae.common.files
from scvae import NetworkConfig, TrainingConfig

TRAINING = TrainingConfig(epochs=4, batch_size=32)


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 60, "n_genes": 30, "n_batches": 2, "truth": False, "rng": 0} | options)


def fit(adata, **options):
    defaults = {"rng": 0, "n_latent": 3, "verbose": False, "network": NetworkConfig(width=16), "training": TRAINING}
    return scvae.fit(adata, **defaults | options)


@pytest.fixture(scope="module")
def fitted():
    adata = simulated()
    adata.obs["age"] = np.linspace(20, 60, 60)
    return adata, fit(adata, batch_key="batch", covariate_keys=["cell_type", "age"], beta=0.5)


# how it reads


def test_the_summary_says_what_was_fitted_and_how_it_went(fitted):
    _, model = fitted
    summary = model.summary()
    assert isinstance(summary, pd.Series)
    assert summary["likelihood"] == "nb"
    assert summary["genes"] == 30
    assert summary["batches"] == 2
    assert summary["latent dimensions"] == f"3 ({model.outcome.active_dimensions} active)"
    assert summary["β"] == "0.5 (attained 0.5)"
    assert summary["held-out ELBO"] == f"{model.outcome.held_out_elbo:.1f} nats per cell"
    assert summary["epochs"] == f"4 (best: {model.outcome.best_epoch})"
    assert summary["seed"] == 0


@pytest.mark.parametrize("show", [repr, lambda model: model._repr_html_()], ids=["text", "html"])
def test_every_way_of_showing_it_has_the_whole_reason(fitted, show):
    reason = "a sentence that says why training ended, and is longer than the fifty characters of a pandas column"
    _, model = fitted
    model = dataclasses.replace(model, outcome=dataclasses.replace(model.outcome, reason=reason))
    text = show(model)
    for name in model.summary().index:
        assert name in text
    assert reason in text


def test_active_dimensions_are_those_that_carry_information(fitted):
    outcome = dataclasses.replace(fitted[1].outcome, kl_per_dimension=(0.0, 0.049, 0.051, 3.0))
    assert outcome.active_dimensions == 2


def test_the_history_has_one_row_per_epoch(fitted):
    history = fitted[1].history
    assert isinstance(history, pd.DataFrame)
    assert history["epoch"].tolist() == [1, 2, 3, 4]
    for part in ("train", "validation"):
        expected = history[f"{part}_log_likelihood"] - history[f"{part}_kl"]
        np.testing.assert_allclose(history[f"{part}_elbo"], expected)
    assert history["seconds"].is_monotonic_increasing


def test_a_fitted_model_cannot_be_changed_by_accident(fitted):
    with pytest.raises(dataclasses.FrozenInstanceError):
        fitted[1].beta = 2.0


# save and load


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_a_loaded_model_gives_the_same_numbers(tmp_path, likelihood, norm):
    adata = simulated(likelihood=likelihood)
    network = NetworkConfig(width=16, norm=norm, encoder_layers=2, decoder_layers=2)
    model = fit(adata, likelihood=likelihood, network=network, training=TrainingConfig(epochs=2, batch_size=32))
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    scvae.tl.embed(adata, loaded, key_added="loaded")
    assert adata.obsm["X_loaded"].tobytes() == adata.obsm["X_scvae"].tobytes()
    assert adata.obsm["X_loaded_var"].tobytes() == adata.obsm["X_scvae_var"].tobytes()
    bounds = [scvae.tl.log_likelihood(adata, which, n_samples=4, rng=1) for which in (model, loaded)]
    pd.testing.assert_series_equal(*bounds, check_exact=True)


def test_a_loaded_model_remembers_everything(fitted, tmp_path):
    _, model = fitted
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    for name in ("schema", "likelihood", "n_latent", "beta", "network_config", "training_config", "outcome", "seed"):
        assert getattr(loaded, name) == getattr(model, name)
    assert loaded.versions == model.versions
    assert loaded.threads == model.threads == torch.get_num_threads()
    pd.testing.assert_frame_equal(loaded.history, model.history, check_exact=True)
    assert repr(loaded) == repr(model)
    assert not loaded.network.training


def test_gene_dispersions_per_batch_come_back(tmp_path):
    adata = simulated()
    model = fit(adata, batch_key="batch", network=NetworkConfig(width=16, dispersion="gene-batch"))
    loaded = scvae.load(model.save(tmp_path / "model"))
    assert loaded.network.likelihood.log_inverse_dispersion.shape == (2, 30)


def test_the_model_of_one_cell_comes_back_though_it_has_nothing_held_out(tmp_path):
    model = fit(simulated(n_cells=1, n_batches=1))
    loaded = scvae.load(model.save(tmp_path / "model"))
    assert np.isnan(loaded.outcome.held_out_elbo)
    assert loaded.history["validation_elbo"].isna().all()


def test_a_saved_model_is_tensors_and_json_and_nothing_else(fitted, tmp_path):
    path = fitted[1].save(tmp_path / "model.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "scvae model"
    assert json.loads(metadata["record"])["schema"]["genes"][0] == "gene_0"
    assert {str(t.dtype) for name, t in load_file(path).items() if name != "metric"} == {"torch.float32"}


def test_an_existing_file_is_replaced_only_if_allowed(fitted, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        fitted[1].save(path, overwrite=False)
    assert path.read_bytes() == b"precious"
    fitted[1].save(path)
    assert scvae.load(path).seed == 0


@pytest.mark.parametrize(
    ("place", "error", "message"),
    [("missing/model", FileNotFoundError, "does not exist"), (".", IsADirectoryError, "is a folder")],
)
def test_a_place_that_cannot_be_written_is_refused(fitted, tmp_path, place, error, message):
    with pytest.raises(error, match=message):
        fitted[1].save(tmp_path / place)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_save_leaves_the_file_before_and_no_other(fitted, monkeypatch, tmp_path):
    path = fitted[1].save(tmp_path / "model")
    content = path.read_bytes()

    def full_disk(tensors, place, metadata):
        place.write_bytes(content[:50])
        raise OSError("No space left on device")

    monkeypatch.setattr(scvae.common.files, "save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        fitted[1].save(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("kept", [0, 5, 500, -1, -5000])
def test_a_truncated_file_is_refused(fitted, tmp_path, kept):
    path = fitted[1].save(tmp_path / "model")
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model is truncated or not a safetensors file"):
        scvae.load(path)


def test_a_file_of_another_kind_is_refused(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("cell,gene\n" * 1000)
    with pytest.raises(ValueError, match=r"table\.csv is truncated or not a safetensors file"):
        scvae.load(path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors_are_refused(tmp_path, metadata):
    save_file({"weight": torch.zeros(3)}, tmp_path / "foreign", metadata)
    with pytest.raises(
        ValueError, match=r"foreign is a safetensors file, but its format is .*; expected 'scvae model'"
    ):
        scvae.load(tmp_path / "foreign")


def test_a_newer_format_is_refused_with_the_advice_to_update(fitted, monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setattr(scvae.common.files, "FORMAT_VERSION", 99)
        path = fitted[1].save(tmp_path / "model")
    with pytest.raises(
        ValueError,
        match=r"written in format 99 of scvae model; this scvae reads up to 1: update scvae",
    ):
        scvae.load(path)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path):
    for place in (tmp_path / "nothing", tmp_path):
        with pytest.raises(FileNotFoundError, match="there is no file"):
            scvae.load(place)


@pytest.mark.parametrize(("device", "message"), [("abacus", "must be 'auto'"), ("cuda:99", "is not available")])
def test_a_device_that_is_not_there_is_refused(fitted, tmp_path, device, message):
    path = fitted[1].save(tmp_path / "model")
    with pytest.raises(ValueError, match=message):
        scvae.load(path, device=device)


# devices


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_a_model_gives_the_same_numbers_on_cuda_as_on_the_cpu(tmp_path, likelihood):
    adata = simulated(likelihood=likelihood)
    model = fit(adata, likelihood=likelihood, batch_key="batch", device="cpu")
    path = model.save(tmp_path / "model")
    on_cuda = scvae.load(path, device="cuda")
    scvae.tl.embed(adata, on_cuda, key_added="cuda")
    np.testing.assert_allclose(adata.obsm["X_cuda"], adata.obsm["X_scvae"], rtol=1e-4, atol=1e-4)
    for kind in ("iw", "elbo"):  # other draws of the latent on each device, so the means agree to sampling error
        bounds = [scvae.tl.log_likelihood(adata, m, kind=kind, n_samples=500).mean() for m in (model, on_cuda)]
        assert bounds[0] == pytest.approx(bounds[1], abs=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_model_trained_and_saved_on_cuda_loads_on_the_cpu(tmp_path):
    adata = simulated()
    model = fit(adata, device="cuda")
    loaded = scvae.load(model.save(tmp_path / "model"))
    assert loaded.device.type == "cpu"
    scvae.tl.embed(adata, loaded, key_added="cpu")
    np.testing.assert_allclose(adata.obsm["X_cpu"], adata.obsm["X_scvae"], rtol=1e-4, atol=1e-4)
