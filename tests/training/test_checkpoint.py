"""Checkpoints: a run that was stopped ends as if it had not been."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import scvae
import scvae.common.files
import scvae.training.step
from scvae import NetworkConfig, TrainingConfig

NETWORK = NetworkConfig(width=16, norm="batch", dropout=0.2)  # batch norm: running statistics must be resumed too
TRAINING = TrainingConfig(epochs=6, batch_size=32, patience=None)


class Killed(BaseException):
    """The process ends here, without any chance to tidy up in the loop."""


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 80, "n_genes": 30, "n_batches": 2, "truth": False, "rng": 0} | options)


def fit(adata, path=None, **options):
    defaults = {"rng": 3, "n_latent": 3, "batch_key": "batch", "network": NETWORK, "training": TRAINING}
    return scvae.fit(adata, checkpoint=path, **{"verbose": False} | defaults | options)


def fail_in_call(monkeypatch, module, name, call, error=Killed):
    """Raises in the given call (from 1) of a function."""
    original, calls = getattr(module, name), []

    def stub(*args, **options):
        calls.append(name)
        if len(calls) == call:
            raise error
        return original(*args, **options)

    monkeypatch.setattr(module, name, stub)


def assert_same_result(first, second, model, other):
    for key in ("X_scvae", "X_scvae_var"):
        assert first.obsm[key].tobytes() == second.obsm[key].tobytes()
    timeless = [model.history.drop(columns="seconds"), other.history.drop(columns="seconds")]
    assert timeless[0].equals(timeless[1])
    for name in ("converged", "reason", "best_epoch", "epochs", "held_out_elbo", "kl_per_dimension"):
        assert getattr(model.outcome, name) == getattr(other.outcome, name)
    assert model.seed == other.seed


@pytest.fixture
def whole():
    """An uninterrupted run without any checkpoint."""
    adata = simulated()
    return adata, fit(adata)


def test_writing_checkpoints_changes_nothing(whole, tmp_path):
    adata = simulated()
    model = fit(adata, tmp_path / "run")
    assert_same_result(whole[0], adata, whole[1], model)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("killed_in_epoch", [2, 4, 6])
def test_a_killed_run_resumes_to_the_very_same_result(monkeypatch, tmp_path, digest, every, killed_in_epoch):
    training = TrainingConfig(epochs=6, batch_size=32, patience=None, checkpoint_every=every)
    expected = simulated()
    whole = fit(expected, training=training)
    adata, path = simulated(), tmp_path / "run.safetensors"
    before = digest(adata)
    with monkeypatch.context() as patch:
        fail_in_call(patch, scvae.training.train, "evaluate", killed_in_epoch)
        with pytest.raises(Killed):
            fit(adata, path, training=training)
    assert digest(adata) == before
    plans = []
    with monkeypatch.context() as patch:
        original = scvae.training.train.epoch_plan
        patch.setattr(
            scvae.training.train, "epoch_plan", lambda *args, **o: plans.append(o["epoch"]) or original(*args, **o)
        )
        model = fit(adata, path, training=training)
    assert plans == list(range((killed_in_epoch - 1) // every * every, 6))
    assert_same_result(expected, adata, whole, model)


@pytest.mark.parametrize("likelihood", ["zinb", "gaussian"])
def test_every_kind_of_head_is_resumed(monkeypatch, tmp_path, likelihood):
    expected, adata = simulated(likelihood=likelihood), simulated(likelihood=likelihood)
    whole = fit(expected, likelihood=likelihood)
    with monkeypatch.context() as patch:
        fail_in_call(patch, scvae.training.train, "evaluate", 3)
        with pytest.raises(Killed):
            fit(adata, tmp_path / "run", likelihood=likelihood)
    assert_same_result(expected, adata, whole, fit(adata, tmp_path / "run", likelihood=likelihood))


def test_a_run_of_several_measurements_is_resumed_with_the_same_ones_alone(monkeypatch, tmp_path):
    expected, adata = (simulated(n_proteins=5) for _ in range(2))
    for each in (expected, adata):
        each.obsm["protein"].iloc[:20] = np.nan
    options = {"protein_key": "protein", "protein_likelihood": "nb_mixture", "network": NetworkConfig(width=16)}
    whole = fit(expected, **options)
    with monkeypatch.context() as patch:
        fail_in_call(patch, scvae.training.train, "evaluate", 3)
        with pytest.raises(Killed):
            fit(adata, tmp_path / "run", **options)
    other = adata.copy()
    other.obsm["protein"].iloc[-1, 0] += 1.0
    with pytest.raises(ValueError, match="data"):
        fit(other, tmp_path / "run", **options)
    model = fit(adata, tmp_path / "run", **options)
    assert_same_result(expected, adata, whole, model)
    assert model.coverages == whole.coverages


def test_a_run_killed_while_it_writes_leaves_the_checkpoint_before(monkeypatch, whole, tmp_path):
    path, contents = tmp_path / "run.safetensors", []

    def half_written(tensors, place, metadata):
        if len(contents) == 3:
            Path(place).write_bytes(contents[-1][:1000])
            raise Killed
        save_file(tensors, place, metadata)
        contents.append(Path(place).read_bytes())

    adata = simulated()
    with monkeypatch.context() as patch:
        patch.setattr(scvae.common.files, "save_file", half_written)
        with pytest.raises(Killed):
            fit(adata, path)
    assert path.read_bytes() == contents[2]
    assert list(tmp_path.iterdir()) == [path]
    model = fit(adata, path)
    assert_same_result(whole[0], adata, whole[1], model)


def test_an_interrupted_run_goes_on_from_its_last_whole_epoch(monkeypatch, whole, tmp_path):
    adata = simulated()
    with monkeypatch.context() as patch:
        fail_in_call(patch, scvae.training.train, "epoch_plan", 4, KeyboardInterrupt)
        with pytest.warns(UserWarning, match="interrupted after 3 epochs"):
            fit(adata, tmp_path / "run")
    assert_same_result(whole[0], adata, whole[1], fit(adata, tmp_path / "run"))


def test_a_finished_run_is_not_trained_again(monkeypatch, whole, tmp_path):
    fit(simulated(), tmp_path / "run")
    fail_in_call(monkeypatch, scvae.training.train, "epoch_plan", 1)
    adata = simulated()
    assert_same_result(whole[0], adata, whole[1], fit(adata, tmp_path / "run"))


def test_a_run_that_stopped_early_is_not_trained_again(monkeypatch, tmp_path):
    training = TrainingConfig(epochs=200, batch_size=32, learning_rate=3e-2, warmup=0.1, patience=0.02)
    first, second = simulated(), simulated()
    whole = fit(first, tmp_path / "run", training=training)
    assert whole.outcome.epochs < 200
    fail_in_call(monkeypatch, scvae.training.train, "epoch_plan", 1)
    assert_same_result(first, second, whole, fit(second, tmp_path / "run", training=training))


def test_skipped_steps_are_remembered(monkeypatch, tmp_path):
    adata, original, steps = simulated(), scvae.training.step.loss, []

    def sabotaged(*args, **options):
        steps.append(len(steps))
        return original(*args, **options) * (float("nan") if steps[-1] in (0, 1) else 1.0)

    with monkeypatch.context() as patch:
        patch.setattr(scvae.training.step, "loss", sabotaged)
        fail_in_call(patch, scvae.training.train, "evaluate", 4)
        with pytest.raises(Killed):
            fit(adata, tmp_path / "run")
    assert fit(adata, tmp_path / "run").outcome.skipped_steps == 2


def test_without_a_seed_the_checkpoint_gives_its_own(tmp_path):
    first, second = simulated(), simulated()
    whole = fit(first, tmp_path / "run", rng=None)
    model = fit(second, tmp_path / "run", rng=None)
    assert_same_result(first, second, whole, model)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"beta": 2.0}, "beta"),
        ({"n_latent": 4}, "n_latent"),
        ({"rng": 4}, "seed"),
        ({"likelihood": "poisson"}, "likelihood"),
        ({"network": NetworkConfig(width=17)}, "network"),
        ({"training": TrainingConfig(epochs=7)}, "training"),
        ({"batch_key": None}, "data, training"),  # which follows from there being a batch
        ({"beta": 2.0, "rng": 5}, "beta, seed"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused_by_what_differs(tmp_path, digest, change, named):
    path, adata = tmp_path / "run.safetensors", simulated()
    fit(simulated(), path)
    before, content = digest(adata), path.read_bytes()
    with pytest.raises(ValueError, match=rf"run\.safetensors belongs to another run: {named} differ"):
        fit(adata, path, **change)
    assert digest(adata) == before
    assert path.read_bytes() == content


def change_a_value(adata):
    adata.X[5, 7] += 1.0


def swap_two_values(adata):
    """The same depth of every cell and the same genes."""
    adata.X[5, [7, 8]] = adata.X[5, [8, 7]] + [1.0, -1.0]


def rename_a_cell(adata):
    adata.obs_names = ["other", *adata.obs_names[1:]]


@pytest.mark.parametrize("change", [change_a_value, swap_two_values, rename_a_cell])
@pytest.mark.parametrize("likelihood", ["nb", "gaussian"])
def test_the_checkpoint_of_other_data_is_refused(tmp_path, likelihood, change):
    def data():
        adata = simulated()
        adata.X = adata.X.toarray() + (2.0 if likelihood == "nb" else 2.5)
        return adata

    fit(data(), tmp_path / "run", likelihood=likelihood)
    other = data()
    change(other)
    with pytest.raises(ValueError, match="data differ"):
        fit(other, tmp_path / "run", likelihood=likelihood)


def test_a_saved_model_is_no_checkpoint(tmp_path):
    fit(simulated()).save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"its format is 'scvae model'; expected 'scvae checkpoint'"):
        fit(simulated(), tmp_path / "model")


def test_a_checkpoint_is_no_saved_model(tmp_path):
    fit(simulated(), tmp_path / "run")
    with pytest.raises(ValueError, match=r"its format is 'scvae checkpoint'; expected 'scvae model'"):
        scvae.load(tmp_path / "run")


def test_a_broken_checkpoint_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "run"
    fit(simulated(), path)
    path.write_bytes(path.read_bytes()[:-100])
    for rng in (3, None):
        with pytest.raises(ValueError, match="truncated or not a safetensors file"):
            fit(simulated(), path, rng=rng)


@pytest.mark.parametrize("place", ["missing/run", "."])
def test_a_place_that_cannot_be_written_is_refused_before_training(monkeypatch, tmp_path, place):
    fail_in_call(monkeypatch, scvae.training.train, "epoch_plan", 1)
    with pytest.raises((FileNotFoundError, IsADirectoryError), match=r"does not exist|is a folder"):
        fit(simulated(), tmp_path / place)


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path):
    fit(simulated(), tmp_path / "run")
    tensors, record = scvae.common.files.read_tensors(tmp_path / "run", "scvae checkpoint")
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors.values())
    assert json.loads(json.dumps(record))["identity"]["seed"] == 3
    assert np.isfinite(record["progress"]["history"]["train_elbo"]).all()
