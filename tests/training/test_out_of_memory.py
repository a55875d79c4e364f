"""A device without memory enough: smaller batches, and at last an error that says what to do."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import scvae
import scvae.training.cuda_graph
from scvae import NetworkConfig, TrainingConfig
from scvae.data.feeds import store_on
from scvae.training.cuda_graph import CapturedStep
from scvae.training.step import EagerStep

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def fit(device="cpu", **training):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, truth=False, rng=0)
    training = TrainingConfig(**{"epochs": 4, "batch_size": 32, "validation_fraction": 0.2} | training)
    options = {"n_latent": 2, "network": NetworkConfig(width=8), "training": training, "verbose": False}
    return scvae.fit(adata, rng=0, device=device, **options), adata


@pytest.fixture(autouse=True)
def _plain_steps(monkeypatch):
    """The CPU takes steps as a GPU does, one by one."""
    monkeypatch.setattr(scvae.training.train, "can_be_fused", lambda *_: False)


@pytest.fixture
def room_for(monkeypatch):
    """Room for so many cells in a step; returns the sizes of the steps that were done."""

    def limit(most):
        done, original = [], scvae.training.step.update

        def update(model, optimizer, batch, *arguments):
            if len(batch) > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            done.append(len(batch))
            return original(model, optimizer, batch, *arguments)

        monkeypatch.setattr(scvae.training.step, "update", update)
        monkeypatch.setattr(scvae.training.cuda_graph, "update", update)
        return done

    return limit


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_halved_until_they_fit_with_a_log_line_each_time(room_for, caplog, device):
    room_for(7)
    with caplog.at_level(logging.WARNING):
        model, adata = fit(device)
    assert [record.message for record in caplog.records] == [
        "out of memory with 24 cells in a batch; training continues with 12",
        "out of memory with 12 cells in a batch; training continues with 6",
    ]
    assert model.history["epoch"].tolist() == [1, 2, 3, 4]
    assert model.outcome.beta_attained == 1.0
    assert np.isfinite(adata.obsm["X_scvae"]).all()


def test_each_epoch_sees_every_cell_in_the_smaller_batches(room_for):
    done = room_for(7)
    fit()
    assert max(done) == 6
    assert sum(done) == 4 * 48


def test_memory_that_runs_out_in_the_middle_of_an_epoch_starts_it_again(monkeypatch, caplog):
    steps, original = [], EagerStep.__call__

    def step(self, batch, generator, dials):
        steps.append(len(batch))
        if len(steps) == 4:  # the second step of the second epoch
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(self, batch, generator, dials)

    monkeypatch.setattr(EagerStep, "__call__", step)
    with caplog.at_level(logging.WARNING):
        model, _ = fit()
    assert len(caplog.records) == 1
    assert steps == [24, 24, 24, 24, *[12] * 12]
    assert model.outcome.epochs == 4


def test_without_room_for_one_cell_the_error_says_what_to_do(room_for):
    room_for(0)
    with pytest.raises(MemoryError, match=r"one cell at a time; model fewer genes.*device='cpu'") as raised:
        fit()
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)


def test_steps_of_one_size_take_the_smaller_size_too(room_for, monkeypatch):
    """The step that fills batches up, as on a CUDA device."""
    device = torch.device("cpu")
    monkeypatch.setattr(scvae.training.train, "make_feed", lambda cells, *_, **options: store_on(cells, device))
    kinds, original = [], CapturedStep.run
    monkeypatch.setattr(CapturedStep, "run", lambda self, *a: kinds.append(type(self)) or original(self, *a))
    done = room_for(7)
    model, _ = fit()
    assert set(kinds) == {CapturedStep}
    assert set(done) == {6}
    assert model.outcome.epochs == 4
