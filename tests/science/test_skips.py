"""Decoders that need no latent space: collapse that a skip provokes, is named with its cause, and a gate undoes."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae import NetworkConfig, TrainingConfig
from tests.science.toys import equidistant_types

LADDER = [1, 3]  # hidden layers of the decoder


def of_toy(skip, decoder_layers, z_to="first"):
    adata = equidistant_types(600, rng=np.random.default_rng(0))
    network = NetworkConfig(skip=skip, decoder_layers=decoder_layers, z_to=z_to)
    training = TrainingConfig(warmup=0.5, patience=None, epochs=60)
    options = {"likelihood": "gaussian", "n_latent": 2, "network": network, "training": training, "metric": "latent"}
    return adata, scvae.fit(adata, rng=0, verbose=False, **options)


def accuracy(adata, label):
    """Of the labels of every second cell, from its neighbours among the others."""
    z, types = adata.obsm["X_scvae"], adata.obs[label].to_numpy()
    return KNeighborsClassifier(15).fit(z[::2], types[::2]).score(z[1::2], types[1::2])


@pytest.mark.parametrize("decoder_layers", LADDER)
def test_a_plain_skip_empties_the_latent_and_the_diagnosis_names_it(decoder_layers):
    adata, model = of_toy("plain", decoder_layers)
    assert model.outcome.active_dimensions == 0
    assert accuracy(adata, "type") < 0.3  # an eighth is chance
    diagnosis = scvae.tl.diagnose(adata, model)
    assert diagnosis.verdict == "total collapse"
    (disease, *remarks) = diagnosis.findings
    assert disease.cause.startswith("the decoder sees the input past z (NetworkConfig.skip='plain')")
    assert "'gated'" in disease.remedy
    assert "no densities of x" in next(f for f in remarks if f.name == "likelihood of seen data").sentence


@pytest.mark.parametrize("decoder_layers", LADDER)
def test_a_gate_brings_the_latent_back(decoder_layers):
    adata, model = of_toy("gated", decoder_layers)
    assert model.outcome.active_dimensions == 2
    assert accuracy(adata, "type") > 0.5
    assert "collapse" not in scvae.tl.diagnose(adata, model).verdict


def test_z_in_every_layer_does_not_mend_a_plain_skip_and_needs_no_mending_itself():
    adata, model = of_toy("none", 3, "every")
    assert model.outcome.active_dimensions == 2
    assert accuracy(adata, "type") > 0.9
    _, model = of_toy("plain", 3, "every")
    assert model.outcome.active_dimensions == 0


@pytest.mark.slow
def test_cells_collapse_and_come_back_in_the_same_way():
    adata = scvae.datasets.simulate(n_cells=1000, n_genes=200, rng=0, truth=False)
    found = {}
    for skip in ("none", "plain", "gated"):
        model = scvae.fit(adata, n_latent=5, network=NetworkConfig(skip=skip), rng=0, verbose=False)
        found[skip] = model.outcome.active_dimensions, accuracy(adata, "cell_type")
    assert found["plain"][0] == 0
    assert found["plain"][1] < 0.35  # a fifth is chance
    assert found["gated"][0] == 5
    assert found["plain"][1] + 0.15 < found["gated"][1]  # most of the way back, not all of it
