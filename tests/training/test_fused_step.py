"""Steps by the compiled kernel against plain steps: the same gradients, moments and parameters, for every network."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import scvae
from scvae import NetworkConfig, TrainingConfig, View
from scvae.common.rng import torch_generators
from scvae.data.batches import epoch_plan
from scvae.data.feeds import Host
from scvae.data.intake import DataKeys, read_fit
from scvae.data.joint import learn_views
from scvae.kernels import threads
from scvae.model.vae import make_model
from scvae.training.fused_step import FusedStep, can_be_fused
from scvae.training.measurements import kinds_of
from scvae.training.start import start_heads
from scvae.training.step import Dials, EagerStep, make_optimizer

SMALL = NetworkConfig(width=16)
CASES = {
    "nb": ("nb", SMALL, {}),
    "zinb": ("zinb", SMALL, {}),
    "poisson": ("poisson", SMALL, {}),
    "no norm, no batches": ("nb", replace(SMALL, norm="none"), {"batch_key": None}),
    "deep": ("nb", replace(SMALL, encoder_layers=3, decoder_layers=3), {}),
    "linear": ("nb", replace(SMALL, decoder="linear"), {}),
    "encoded conditions, dispersions by batch": (
        "nb",
        replace(SMALL, encode_conditions=True, dispersion="gene-batch"),
        {"covariate_keys": ["age"]},
    ),
    "zinb by batch": ("zinb", replace(SMALL, encode_conditions=True, dispersion="gene-batch"), {}),
    "labels": ("nb", SMALL, {"labels_key": "known", "label_weight": 20.0}),
    "zinb, labels of many cells": ("zinb", replace(SMALL, width=5), {"labels_key": "cell_type", "batch_key": None}),
    "labels of different depth": (
        "nb",
        SMALL,
        {"labels_key": "mixed", "label_hierarchy": {"rest": {"pair": ["type_0", "type_1"], "type_2": []}}},
    ),
    "poisson, two layers": ("poisson", replace(SMALL, encoder_layers=2, decoder_layers=2), {}),
    "two views": ("nb", SMALL, {}, {"protein": View(obsm="protein", weight=0.5)}),
    "two views, dispersions by batch": (
        "nb",
        replace(SMALL, encode_conditions=True, dispersion="gene-batch"),
        {},
        {"again": View(obsm="again", weight=3.0)},
    ),
    "mixture": ("nb", replace(SMALL, prior="mixture", prior_components=4), {"labels_key": "known"}),
    "real values beside counts": (
        "nb",
        SMALL,
        {},
        {"real": View(obsm="real", likelihood="gaussian", weight=0.5), "again": View(obsm="again")},
    ),
}


class Bench:
    """A network, cells and an optimizer, twice."""

    def __init__(
        self, likelihood="nb", network=SMALL, keys=None, views=None, *, n_cells=203, n_genes=300, mean_library=100.0
    ):
        adata = scvae.datasets.simulate(
            n_cells=n_cells, n_genes=n_genes, n_batches=3, mean_library=mean_library, truth=False, rng=0
        )
        adata.obs["age"] = np.random.default_rng(0).uniform(20.0, 60.0, n_cells)
        adata.obs["known"] = adata.obs["cell_type"].astype(object).where(np.arange(n_cells) % 3 > 0)
        coarse = {"type_0": "pair", "type_1": "pair", "type_2": "rest"}
        even = np.arange(n_cells) % 2 == 0
        adata.obs["mixed"] = adata.obs["known"].where(even, adata.obs["known"].replace(coarse))
        adata.obs.loc[adata.obs_names[::20], "mixed"] = "rest"
        views = views or {}
        if views:
            self.measure(adata)
        schema, self.cells = read_fit(
            adata, DataKeys(**{"batch_key": "batch"} | (keys or {})), kind="counts", matrix=None, memory=1e9
        )
        schema, self.cells = learn_views(adata, views, kinds_of(views), schema, self.cells)
        self.network = make_model(schema, likelihood, 5, network, seed=3)
        start_heads(self.network, self.cells, np.arange(n_cells))
        with torch.no_grad():  # so that no gradient is 0 because something begins at 0 or 1
            generator = torch.Generator().manual_seed(7)
            for parameter in self.network.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            if self.network.classifier is not None and schema.labels.coarse:
                self.network.classifier.bias[:2] -= 200.0  # a sum of probabilities that is 0 in single precision
            if network.prior == "mixture":
                self.network.prior.log_variance[0, 0] = 5.0  # more than it may be
        self.feed = Host(self.cells, torch.device("cpu"))

    @staticmethod
    def measure(adata):
        """Two further measurements, which some cells lack; others lack the first."""
        counts = adata.X.toarray() if hasattr(adata.X, "toarray") else np.array(adata.X)
        number = np.arange(len(counts))
        for name, some, missing in (("protein", counts[:, ::8], 5), ("again", counts[:, 1::90], 3)):
            adata.obsm[name] = np.where(number[:, None] % missing == 0, np.nan, 3.0 * some + 1.0)
        adata.obsm["real"] = np.log1p(adata.obsm["protein"]) - 0.5
        counts[number % 15 == 1] = 0.0
        adata.X = sp.csr_array(counts)

    def steps(self, kind, n_steps, batch_size=72, **config):
        """The network and the optimizer after some steps, and the statistics of these."""
        network = copy.deepcopy(self.network).train()
        optimizer = make_optimizer(network, len(self.cells))
        step = kind(network, optimizer, self.feed, TrainingConfig(**config))
        plan = list(epoch_plan(np.arange(len(self.cells)), batch_size, seed=0, epoch=0))[:n_steps]
        dials = [Dials(0.7, None, 1e-3 * (1 + i)) for i in range(n_steps)]
        statistics = step.run(plan, dials, torch_generators(n_steps, 5, device="cpu"))
        return network, optimizer, torch.stack(list(statistics))


def assert_close(a, b, share):
    """Whether two tensors agree, relative to the largest number in them."""
    assert not b.numel() or (a - b).abs().max() <= share * b.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("mean_library", [60.0, 1500.0])  # sparse rows, and rows that become a dense block
def test_gradients_and_moments_are_those_of_torch(case, mean_library):
    bench = Bench(*CASES[case], mean_library=mean_library)
    assert can_be_fused(bench.network, TrainingConfig())
    (_, plain, expected), (_, fused, found) = (bench.steps(kind, 1) for kind in (EagerStep, FusedStep))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    names = [name for name, _ in bench.network.named_parameters()]
    moved = 0
    for of_plain, of_fused in zip(plain.means, fused.means, strict=True):
        for a, b in zip(of_fused, of_plain, strict=True):
            assert_close(a, b, 2e-5)
            moved += bool(b.any()) or not b.numel()
    assert moved == len(names)


@pytest.mark.parametrize("case", ["nb", "zinb by batch", "linear", "two views", "real values beside counts", "mixture"])
def test_several_steps_end_at_the_same_parameters(case):
    bench = Bench(*CASES[case])
    (plain, _, expected), (fused, optimizer, found) = (bench.steps(kind, 3) for kind in (EagerStep, FusedStep))
    assert float(optimizer.steps) == 3.0
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    for a, b in zip(fused.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=2e-4)


def test_without_the_consistency_term_batches_cost_nothing_else():
    bench = Bench()
    (_, plain, _), (_, fused, _) = (bench.steps(kind, 1, consistency=0.0) for kind in (EagerStep, FusedStep))
    _, priced, _ = bench.steps(FusedStep, 1)
    assert_close(fused.means[0][0], plain.means[0][0], 2e-5)
    assert (priced.means[0][0] - fused.means[0][0]).abs().max() > 1e-3 * fused.means[0][0].abs().max()


@pytest.mark.parametrize("n_threads", [2, 7])
def test_the_number_of_threads_has_no_influence_on_the_bits(n_threads, monkeypatch):
    monkeypatch.setattr("scvae.training.fused_step.rows_per_block", lambda _: 32)  # what it depends on besides
    monkeypatch.setattr(threads, "usable_cores", lambda: n_threads)
    bench = Bench(n_genes=700)
    results = []
    for n in (1, n_threads):
        threads.set_of_call(n)
        try:
            network, _, statistics = bench.steps(FusedStep, 2)
        finally:
            threads.set_of_call(0)
        results.append([statistics, *network.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_the_network_stays_whole_after_training(tmp_path):
    adata = scvae.datasets.simulate(n_cells=60, n_genes=30, truth=False, rng=0)
    model = scvae.fit(adata, rng=0, verbose=False, training=TrainingConfig(epochs=2), network=SMALL)
    loaded = scvae.load(model.save(tmp_path / "model.safetensors"))
    twin = copy.deepcopy(model.network)
    for a, b, c in zip(model.network.parameters(), loaded.network.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


@pytest.mark.parametrize(
    ("network", "config"),
    [
        ({"norm": "batch"}, {}),
        ({"dropout": 0.1}, {}),
        ({"input_dropout": 0.1}, {}),
        ({}, {"free_bits": 0.1}),
        ({}, {"capacity": 3.0}),
    ],
)
def test_what_the_kernel_does_not_know_takes_plain_steps(network, config):
    assert not can_be_fused(Bench(network=replace(SMALL, **network)).network, TrainingConfig(**config))
