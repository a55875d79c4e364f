"""Every disease is provoked on purpose and named; what is healthy is called healthy."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from anndata import AnnData

import scvae
from scvae import NetworkConfig, TrainingConfig
from tests.science.toys import equidistant_types

SHORT = TrainingConfig(epochs=60, batch_size=64)


def simulated(**options):
    return scvae.datasets.simulate(
        **{"n_cells": 300, "n_genes": 120, "signal": 1.0, "truth": False, "rng": 0} | options
    )


def fitted(adata, **options):
    return scvae.fit(adata, **{"rng": 0, "verbose": False, "training": SHORT} | options)


def diseases(adata, model):
    """Names of the diseases, after a look at every sentence."""
    found = scvae.tl.diagnose(adata, model)
    for finding in found.findings:
        assert finding.sentence
        assert finding.cause
        assert finding.remedy
    return {finding.name for finding in found.findings if finding.severity == "disease"}


@pytest.fixture(scope="module")
def sound():
    """Cells, and a model that has nothing wrong with it; copy before damage."""
    adata = simulated()
    return adata, fitted(adata)


def damaged(model, change):
    network = copy.deepcopy(model.network)
    with torch.no_grad():
        change(network)
    return dataclasses.replace(model, network=network)


HEALTHY = {
    "nb": ({}, {}),
    "zinb": ({"likelihood": "zinb"}, {"likelihood": "zinb"}),
    "bernoulli": ({"likelihood": "bernoulli", "mean_library": 60.0}, {"likelihood": "bernoulli", "training": None}),
    "gaussian": ({"likelihood": "gaussian"}, {"likelihood": "gaussian"}),
    "batches": (
        {"n_batches": 2},
        {"batch_key": "batch", "training": TrainingConfig(epochs=90)},
    ),  # takes longer by default
    "many β": ({}, {"beta": (0.1, 10.0)}),
}


@pytest.mark.parametrize(("data", "options"), HEALTHY.values(), ids=HEALTHY)
def test_a_default_fit_is_healthy(data, options):
    adata = simulated(**data)
    assert diseases(adata, fitted(adata, **options)) == set()


@pytest.mark.slow
def test_a_default_fit_of_real_cells_is_healthy():
    adata = scvae.datasets.pbmc3k()[::6].copy()
    detected = np.asarray((adata.X > 0).sum(0)).ravel()
    adata.var["highly_variable"] = detected >= np.sort(detected)[-300]
    assert diseases(adata, fitted(adata, training=None)) == set()


def test_a_latent_space_mostly_unused_is_a_partial_collapse_that_pruning_cures():
    adata = simulated(n_cells=600, n_latent=2, n_types=1)
    model = fitted(adata, n_latent=30, training=None)
    assert diseases(adata, model) == {"partial collapse"}
    assert diseases(adata, scvae.tl.prune(adata, model, verbose=False)) == set()


def test_a_dimension_or_two_unused_are_a_remark_and_no_disease():
    adata = simulated(n_latent=2, n_types=1)
    found = scvae.tl.diagnose(adata, fitted(adata, n_latent=20))
    assert found.healthy
    assert [finding.name for finding in found.findings] == ["unused dimensions"]


@pytest.mark.parametrize(("likelihood", "beta"), [("nb", 30.0), ("gaussian", 100.0)])
def test_a_beta_that_empties_the_latent_space_is_too_large(likelihood, beta):
    adata = simulated(likelihood=likelihood)
    assert diseases(adata, fitted(adata, likelihood=likelihood, beta=beta)) == {"total collapse", "β too large"}


def test_a_beta_that_leaves_next_to_nothing_is_too_large_without_a_total_collapse():
    adata = simulated(n_latent=2, n_types=6, signal=1.5)
    assert diseases(adata, fitted(adata, n_latent=10, beta=8.0)) == {"β too large"}


def test_a_collapse_for_want_of_a_warm_up_is_named_and_is_gone_with_it():
    adata = equidistant_types(600, rng=np.random.default_rng(0))
    options = {"likelihood": "gaussian", "n_latent": 2}
    without = fitted(adata, training=TrainingConfig(warmup=0.0), **options)
    assert diseases(adata, without) == {"total collapse", "warm-up missing"}
    assert diseases(adata, fitted(adata, training=TrainingConfig(warmup=0.5), **options)) == set()


def test_cells_without_structure_leave_the_latent_space_empty_through_no_fault_of_beta():
    rng = np.random.default_rng(0)
    adata = AnnData(rng.poisson(3.0, (300, 60)).astype(np.float32))
    assert diseases(adata, fitted(adata)) == {"total collapse"}


def test_an_encoder_without_weights_ignores_its_input(sound):
    adata, model = sound

    def change(network):
        network.encoder.mean.weight.zero_()
        network.encoder.log_variance.weight.zero_()

    assert diseases(adata, damaged(model, change)) == {"encoder ignores its input"}


def test_an_encoder_that_sees_depth_only_ignores_its_input(sound):
    adata, model = sound
    blind = damaged(model, lambda network: network.encoder.genes.weight.zero_())
    assert diseases(adata, blind) == {"encoder ignores its input"}


def test_a_constant_posterior_away_from_the_prior_ignores_its_input_too(sound):
    adata, model = sound

    def change(network):
        network.encoder.mean.weight.zero_()
        network.encoder.mean.bias.fill_(1.5)
        network.encoder.log_variance.weight.zero_()
        network.encoder.log_variance.bias.fill_(-2.0)

    assert diseases(adata, damaged(model, change)) == {"encoder ignores its input"}


def test_a_decoder_that_ignores_z_is_a_collapse_whatever_the_encoder_says(sound):
    adata, model = sound
    deaf = damaged(model, lambda network: network.decoder.hidden[0].weight[: model.n_latent].zero_())
    assert diseases(adata, deaf) == {"total collapse"}


def test_an_encoder_that_takes_one_gene_for_another_falls_short(sound):
    adata, model = sound
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(model.genes)))
    mixed = damaged(model, lambda network: network.encoder.genes.weight.copy_(network.encoder.genes.weight[order]))
    assert diseases(adata, mixed) == {"encoder falls short"}


@pytest.mark.slow
def test_a_scale_without_a_bound_runs_away():
    rng = np.random.default_rng(0)
    surface = np.tanh(rng.normal(size=(400, 2)) @ rng.normal(size=(2, 16))) @ rng.normal(size=(16, 12))
    adata = AnnData(
        surface.astype(np.float32)
    )  # without noise, a decoder that finds it leaves the scale nothing to say
    options = {"likelihood": "gaussian", "n_latent": 2}
    options["training"] = TrainingConfig(epochs=240, learning_rate=1e-2, patience=None)
    free = fitted(adata, network=NetworkConfig(minimum_scale=0.0), **options)
    assert diseases(adata, free) == {"Gaussian scale run away"}
    bounded = fitted(adata, network=NetworkConfig(minimum_scale=0.3), **options)
    assert diseases(adata, bounded) == {"Gaussian scale run away"}  # it lies at its bound


def test_a_batch_effect_that_the_decoder_cannot_take_up_leaks_into_z():
    adata = simulated(n_batches=3, batch_effect=4.0)
    assert diseases(adata, fitted(adata, batch_key="batch")) == {"batch leaks into z"}


def test_many_passes_over_few_cells_are_over_fitting():
    adata = simulated(n_cells=100, n_genes=80)
    training = TrainingConfig(epochs=300, warmup=0.95, patience=None, validation_fraction=0.3)
    assert diseases(adata, fitted(adata, training=training)) == {"over-fitting"}


@pytest.mark.parametrize("epochs", [1, 8])
def test_a_few_passes_are_not_converged(epochs):
    adata = simulated()
    assert diseases(adata, fitted(adata, training=TrainingConfig(epochs=epochs))) == {"not converged"}


def test_labels_that_are_wrong_in_part_are_named_and_right_ones_are_not():
    adata = simulated(n_cells=900, n_types=4, type_share=0.8)
    types, rng = adata.obs["cell_type"].to_numpy(), np.random.default_rng(0)
    wrong = rng.random(adata.n_obs) < 0.3
    adata.obs["mixed_up"] = np.where(wrong, rng.permutation(types), types)
    training = TrainingConfig(epochs=40, validation_fraction=0.2)
    assert diseases(adata, fitted(adata, labels_key="cell_type", training=training)) == set()
    assert "wrong labels" in diseases(adata, fitted(adata, labels_key="mixed_up", training=training))
