"""Whole fits on a CUDA device, against the CPU."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import scvae
import scvae.data.feeds
import scvae.training.train
from scvae import NetworkConfig, TrainingConfig
from scvae.data.feeds import Streamed
from scvae.training.cuda_graph import CapturedStep

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
NATS = 0.1  # with other noise, the same fit on the CPU moves by 0.03 nats


@pytest.fixture(scope="module")
def cells():
    """Training and held-out cells of one population."""
    adata = scvae.datasets.simulate(n_cells=6_000, n_genes=100, truth=False, rng=0)
    return adata[:5_000].copy(), adata[5_000:].copy()


def fit(adata, device, likelihood="nb", **options):
    options = {"training": TrainingConfig(epochs=60, patience=None), "network": NetworkConfig(width=64)} | options
    return scvae.fit(adata, likelihood=likelihood, n_latent=5, rng=0, device=device, verbose=False, **options)


def held_out_elbo(model, adata, tmp_path):
    on_cpu = scvae.load(model.save(tmp_path / "model"), device="cpu")
    return scvae.tl.log_likelihood(adata, on_cpu, kind="elbo", n_samples=30).mean()


@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson"])
def test_fits_on_cuda_and_on_the_cpu_reach_the_same_held_out_elbo(cells, tmp_path, caplog, likelihood):
    training, held_out = cells
    with caplog.at_level(logging.WARNING):
        elbo = [held_out_elbo(fit(training, device, likelihood), held_out, tmp_path) for device in ("cuda", "cpu")]
    assert elbo[0] == pytest.approx(elbo[1], abs=NATS)
    assert not caplog.records  # stored, captured and computed by triton's kernels, or a line would say so


def test_tf32_in_training_leaves_the_held_out_elbo_as_it_is(cells, tmp_path, monkeypatch):
    training, held_out = cells
    rounded = held_out_elbo(fit(training, "cuda"), held_out, tmp_path)
    working_on = scvae.training.train.working_on
    monkeypatch.setattr(scvae.training.train, "working_on", lambda device, **_: working_on(device))
    assert rounded == pytest.approx(held_out_elbo(fit(training, "cuda"), held_out, tmp_path), abs=NATS)


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_embedding_of_one_model_is_that_of_the_cpu_whatever_precision_the_caller_has_set(cells, tmp_path, before):
    training, held_out = cells
    model = fit(training, "cuda")
    again = scvae.load(model.save(tmp_path / "model"), device="cuda")
    on_cpu = scvae.load(tmp_path / "model", device="cpu")
    torch.set_float32_matmul_precision(before)
    try:
        for name, one in {"fitted": model, "loaded": again, "cpu": on_cpu}.items():
            scvae.tl.embed(held_out, one, key_added=name)
    finally:
        torch.set_float32_matmul_precision("highest")
    for name in ("fitted", "loaded"):
        np.testing.assert_allclose(held_out.obsm[f"X_{name}"], held_out.obsm["X_cpu"], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(held_out.obsm[f"X_{name}_var"], held_out.obsm["X_cpu_var"], rtol=1e-4, atol=1e-4)


def test_a_fit_whose_cells_do_not_fit_is_streamed_and_reaches_the_same_elbo(cells, tmp_path, monkeypatch, caplog):
    training, held_out = cells
    stored = held_out_elbo(fit(training, "cuda"), held_out, tmp_path)
    monkeypatch.setattr(scvae.data.feeds, "_free_memory", lambda _: 1000)
    used, original = [], Streamed.batches
    monkeypatch.setattr(Streamed, "batches", lambda self, plan: used.append(len(plan)) or original(self, plan))
    with caplog.at_level(logging.WARNING):
        model = fit(training, "cuda")
    assert len(used) > 60
    assert [record.message for record in caplog.records] == [
        "the cells do not fit into the memory of cuda; they are streamed to it batch by batch"
    ]
    assert held_out_elbo(model, held_out, tmp_path) == pytest.approx(stored, abs=NATS)


@pytest.mark.parametrize(
    "network",
    [NetworkConfig(width=16, norm="batch"), NetworkConfig(width=16, dropout=0.1), NetworkConfig(width=16)],
)
@pytest.mark.parametrize("likelihood", ["nb", "zinb", "poisson", "bernoulli", "gaussian"])
def test_every_head_and_network_can_be_fitted(likelihood, network):
    adata = scvae.datasets.simulate(n_cells=300, n_genes=40, likelihood=likelihood, truth=False, rng=0)
    training = TrainingConfig(epochs=8, batch_size=64)
    model = fit(adata, "cuda", likelihood, network=network, batch_key="batch", training=training)
    assert model.outcome.skipped_steps == 0
    assert np.isfinite(adata.obsm["X_scvae"]).all()
    assert model.history["train_elbo"].iloc[-1] > model.history["train_elbo"].iloc[0]


def test_a_run_that_was_stopped_goes_on_from_its_checkpoint(cells, tmp_path):
    training, held_out = cells
    place = tmp_path / "run.ckpt"
    options = {"training": TrainingConfig(epochs=60, patience=None), "checkpoint": place}
    run, calls = CapturedStep.run, []

    def interrupted(self, *arguments):
        calls.append(1)
        if len(calls) == 20:
            raise KeyboardInterrupt
        return run(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CapturedStep, "run", interrupted)
        with pytest.warns(UserWarning, match="interrupted after 19 epochs"):
            fit(training, "cuda", **options)
    resumed = fit(training, "cuda", **options)
    assert resumed.outcome.epochs == 60
    whole = held_out_elbo(fit(training, "cuda"), held_out, tmp_path)
    assert held_out_elbo(resumed, held_out, tmp_path) == pytest.approx(whole, abs=NATS)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA device")
def test_a_second_device_can_be_named(cells):
    training, _ = cells
    model = fit(training, "cuda:1", training=TrainingConfig(epochs=3))
    assert model.device == torch.device("cuda:1")
    assert torch.cuda.current_device() == 0
