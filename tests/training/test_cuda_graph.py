"""The step that a CUDA graph replays: on the CPU its eager twin, which differs in the filling up and in the dials."""

from __future__ import annotations

import logging
from contextlib import contextmanager

import numpy as np
import pytest
import torch

import scvae
import scvae.training.cuda_graph
from scvae import NetworkConfig, TrainingConfig
from scvae.common.interrupt import Interrupt
from scvae.common.rng import torch_generators
from scvae.data.batches import epoch_plan
from scvae.data.beta_range import BetaRange
from scvae.data.feeds import Host, Streamed, store_on
from scvae.data.summary import summarize
from scvae.likelihoods import KIND
from scvae.model.vae import make_model
from scvae.training.cuda_graph import CapturedStep, padded
from scvae.training.fused_step import FusedStep
from scvae.training.step import Dials, EagerStep, make_optimizer
from scvae.training.train import is_capturable, make_step
from tests.data.reading import read_fit

CPU = torch.device("cpu")
CUDA = torch.device("cuda")
HEADS = ["nb", "zinb", "poisson", "bernoulli", "gaussian"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class Bench:
    """A model with its optimizer and cells, always the same at the start."""

    def __init__(self, likelihood="nb", device=CPU, config=None, betas=None, **network):
        adata = scvae.datasets.simulate(n_cells=49, n_genes=30, likelihood=likelihood, truth=False, rng=0)
        keys = {"layer": None, "mask_var": None, "batch_key": "batch", "covariate_keys": (), "size_factor_key": None}
        schema, self.cells = read_fit(adata, **keys, kind=KIND[likelihood])
        network = NetworkConfig(**{"width": 16} | network)
        self.model = make_model(schema, likelihood, 3, network, seed=1, betas=betas).to(device).train()
        self.model.likelihood.start_from(summarize(self.cells, np.arange(49)))
        self.optimizer = make_optimizer(self.model, 49)
        self.config, self.device = config or TrainingConfig(), device

    def eager(self, feed=None):
        return EagerStep(self.model, self.optimizer, feed or Host(self.cells, self.device), self.config)

    def captured(self):
        return CapturedStep(self.model, self.optimizer, store_on(self.cells, self.device), self.config)

    def run(self, step, epochs=1, batch_size=16, learning_rate=1e-3):
        """Statistics of all steps, in batches of 17, 16 and 16 cells."""
        said = []
        for epoch in range(epochs):
            plan = epoch_plan(np.arange(49), batch_size, seed=3, epoch=epoch)
            capacity = 2.0 if self.config.capacity is not None else None
            dials = [Dials(0.5 + 0.1 * i, capacity, learning_rate * (i + 1)) for i in range(len(plan))]
            said += step.run(plan, dials, torch_generators(len(plan), 5, epoch, device=self.device))
        return torch.stack(said).cpu()

    def gradients(self):
        return {name: p.grad.cpu() for name, p in self.model.named_parameters() if p.grad is not None}


def assert_gradients_agree(found, expected):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=2e-5 * largest + 1e-7, msg=name)


CASES = [
    *[({"likelihood": head}, TrainingConfig()) for head in HEADS],
    *[({"likelihood": head, "betas": BetaRange(0.1, 10.0)}, TrainingConfig()) for head in HEADS],
    ({"dispersion": "gene-batch"}, TrainingConfig()),
    ({}, TrainingConfig(capacity=3.0)),
    ({}, TrainingConfig(free_bits=0.3)),
    ({"prior": "mixture", "prior_components": 4}, TrainingConfig()),
    ({"prior": "flow"}, TrainingConfig()),
    ({"norm": "none", "encoder_layers": 2, "encode_conditions": True}, TrainingConfig()),
    *[({"skip": skip, "z_to": "every"}, TrainingConfig(consistency=0.0)) for skip in ("plain", "gated")],
]


@pytest.mark.parametrize(("settings", "config"), CASES)
def test_a_filled_up_step_is_the_step(settings, config):
    """Without a move of the weights, so that all three steps start from the same ones."""
    plain, twin = Bench(config=config, **settings), Bench(config=config, **settings)
    expected = plain.run(plain.eager(), learning_rate=0.0)
    found = twin.run(twin.captured(), learning_rate=0.0)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert_gradients_agree(twin.gradients(), plain.gradients())


def test_dials_on_the_device_turn_as_numbers_do():
    plain, twin = Bench(), Bench()
    expected = plain.run(plain.eager(), epochs=4)
    torch.testing.assert_close(twin.run(twin.captured(), epochs=4), expected, rtol=1e-4, atol=1e-4)
    assert float(expected[0, 0]) != pytest.approx(float(expected[-3, 0]), rel=1e-3)


def test_the_size_of_batches_may_change_between_epochs():
    plain, twin = Bench(), Bench()
    eager, captured = plain.eager(), twin.captured()
    for batch_size in (16, 7):
        expected = plain.run(eager, batch_size=batch_size)
        torch.testing.assert_close(twin.run(captured, batch_size=batch_size), expected, rtol=1e-4, atol=1e-4)


def test_a_step_that_is_not_finite_is_left_out():
    bench = Bench()
    step = bench.captured()
    bench.run(step)
    with torch.no_grad():
        bench.model.likelihood.output.bias[3] = float("nan")
    before = {name: t.clone() for name, t in bench.optimizer.state().items()}
    assert bench.run(step)[:, 2].tolist() == [1.0, 1.0, 1.0]
    assert all(torch.equal(before[name], t) for name, t in bench.optimizer.state().items())


def test_smaller_batches_are_filled_up_by_their_own_last_cell_with_weight_zero():
    positions, weights = padded([np.array([4, 2]), np.array([7, 5, 1])], 3)
    assert positions.tolist() == [[4, 2, 2], [7, 5, 1]]
    np.testing.assert_allclose(weights, [[0.5, 0.5, 0.0], [1 / 3] * 3], rtol=1e-6)


# what is captured, and what happens where that fails


def test_stores_get_the_captured_step_and_other_feeds_the_fused_one(caplog):
    bench = Bench()
    parts = bench.model, bench.optimizer
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_step(*parts, store_on(bench.cells, CPU), bench.config, Interrupt()), CapturedStep)
        for feed in (Host(bench.cells, CPU), Streamed(bench.cells, CPU)):
            assert isinstance(make_step(*parts, feed, bench.config, Interrupt()), FusedStep)
    assert not caplog.records


@pytest.mark.parametrize("settings", [{"norm": "batch"}, {"dropout": 0.1}, {"input_dropout": 0.1}])
def test_networks_that_no_graph_can_hold_run_eagerly_on_the_store_with_one_log_line(caplog, settings):
    plain, twin = Bench(**settings), Bench(**settings)
    assert not is_capturable(twin.model)
    with caplog.at_level(logging.WARNING):
        step = make_step(twin.model, twin.optimizer, store_on(twin.cells, CPU), twin.config, Interrupt())
    assert isinstance(step, EagerStep)
    assert len(caplog.records) == 1
    assert "so steps run one by one" in caplog.records[0].message
    if "input_dropout" not in settings:  # masks over stored values and over dense rows are different draws
        torch.testing.assert_close(twin.run(step), plain.run(plain.eager()), rtol=1e-4, atol=1e-4)


class FakeStream:
    def wait_stream(self, other):
        pass


@pytest.fixture
def failing_capture(monkeypatch):
    """torch.cuda as far as a capture needs it, which fails with the given error."""

    def with_error(error):
        @contextmanager
        def graph(_):
            raise error
            yield

        monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
        monkeypatch.setattr(torch.cuda, "graph", graph)
        monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "current_stream", FakeStream)
        monkeypatch.setattr(torch.cuda, "stream", contextmanager(lambda _: iter([None])))
        monkeypatch.setattr(torch.Tensor, "record_stream", lambda *_: None)

    return with_error


def test_where_the_capture_fails_steps_go_on_one_by_one_with_one_log_line(caplog, failing_capture):
    failing_capture(RuntimeError("operation not permitted when stream is capturing"))
    plain, twin = Bench(), Bench()
    step = twin.captured()
    step.can_capture = True
    with caplog.at_level(logging.WARNING):
        found = twin.run(step, epochs=3)
    assert not step.can_capture
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("a training step cannot be captured in a CUDA graph (operation not permitted")
    torch.testing.assert_close(found, plain.run(plain.eager(), epochs=3), rtol=1e-4, atol=1e-4)


def test_memory_that_runs_out_in_the_capture_is_for_the_loop_to_handle(failing_capture):
    failing_capture(torch.OutOfMemoryError("CUDA out of memory"))
    bench = Bench()
    step = bench.captured()
    step.can_capture = True
    with pytest.raises(torch.OutOfMemoryError):
        bench.run(step, epochs=3)


# on a device


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize(("settings", "config"), CASES)
def test_the_graph_agrees_with_eager_steps(caplog, settings, config):
    plain, twin = (Bench(device=CUDA, config=config, **settings) for _ in range(2))
    captured = twin.captured()
    with caplog.at_level(logging.WARNING):
        found = twin.run(captured, epochs=4)
    assert captured.graph is not None
    assert not caplog.records
    torch.testing.assert_close(found, plain.run(plain.eager(plain_feed(plain)), epochs=4), rtol=1e-3, atol=1e-2)


def plain_feed(bench):
    return store_on(bench.cells, bench.device)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("likelihood", HEADS)
def test_a_step_on_cuda_is_that_of_the_cpu(likelihood):
    benches = [Bench(likelihood, device=device) for device in (CPU, CUDA)]
    steps = [EagerStep(b.model, b.optimizer, plain_feed(b), b.config) for b in benches]
    said = []
    for bench, step in zip(benches, steps, strict=True):
        batch = next(iter(plain_feed(bench).batches([np.arange(17)])))
        noise = torch.linspace(-2, 2, 17 * 3).view(17, 3).to(bench.device)
        weight = torch.full((17,), 1 / 17, device=bench.device)
        dials = Dials(1.0, None, 0.0)
        said.append(
            scvae.training.cuda_graph.update(
                bench.model, step.optimizer, batch, noise, weight, None, dials, bench.config
            ).cpu()
        )
    torch.testing.assert_close(said[1], said[0], rtol=1e-4, atol=1e-4)
    assert_gradients_agree(benches[1].gradients(), benches[0].gradients())


@pytest.mark.gpu
@needs_cuda
def test_streaming_gives_what_the_store_gives():
    stored, streamed = Bench(device=CUDA), Bench(device=CUDA)
    expected = stored.run(stored.eager(plain_feed(stored)), epochs=3)
    found = streamed.run(streamed.eager(Streamed(streamed.cells, CUDA)), epochs=3)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("way", ["graph", "store", "stream"])
@pytest.mark.parametrize("likelihood", HEADS)
def test_no_step_of_an_epoch_waits_for_the_device(way, likelihood):
    bench = Bench(likelihood, device=CUDA)
    if way == "graph":
        step = bench.captured()
    else:
        step = bench.eager(plain_feed(bench) if way == "store" else Streamed(bench.cells, CUDA))
    bench.run(step, epochs=2)  # compiles, and captures
    plan = epoch_plan(np.arange(49), 16, seed=3, epoch=2)
    dials = [Dials(1.0, None, 1e-3)] * len(plan)
    generators = torch_generators(len(plan), 5, 2, device=CUDA)
    torch.cuda.set_sync_debug_mode("error")
    try:
        said = step.run(plan, dials, generators)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    statistics = torch.stack(said).cpu()  # only now is the device waited for
    assert statistics.shape == (len(plan), 3)
    assert torch.isfinite(statistics).all()
    assert (statistics[:, 2] == 0).all()
