"""The gap between training and held-out cells."""

import math

import numpy as np
import pytest

import scvae
from scvae import TrainingConfig
from scvae.diagnostics.generalization import _first_coefficient, generalization
from scvae.inference.cells import read_cells


def simulated(**options):
    return scvae.datasets.simulate(**{"n_cells": 200, "n_genes": 60, "truth": False, "rng": 0} | options)


def fitted(adata, **settings):
    return scvae.fit(adata, n_latent=3, training=TrainingConfig(**settings), rng=0, verbose=False)


def test_the_coefficient_of_trained_on_is_found_among_larger_effects():
    rng = np.random.default_rng(0)
    trained, depth = rng.random(4000) < 0.5, rng.normal(7, 1, 4000)
    outcome = 3.0 * trained - 200 * depth + rng.normal(0, 5, 4000)
    design = np.column_stack([trained, np.ones(4000), depth, np.zeros(4000)]).astype(float)
    design[:, 3] = 1e6 * depth**2
    gap, error = _first_coefficient(design, outcome)
    assert error == pytest.approx(5 / math.sqrt(1000), rel=0.1)
    assert abs(gap - 3.0) < 3 * error


def test_training_cells_are_better_than_held_out_cells_after_many_passes():
    adata = simulated()
    model = fitted(adata, epochs=300, warmup=0.95, patience=None, validation_fraction=0.3)
    found = generalization(model, read_cells(adata, model, None), seed=0)
    assert found.source == "cells"
    assert found.gap > 3 * found.error > 0


def test_for_other_cells_the_gap_is_read_from_the_history():
    adata = simulated()
    model = fitted(adata, epochs=10)
    kept = model.history.iloc[model.outcome.best_epoch - 1]
    found = generalization(model, read_cells(adata[::-1].copy(), model, None), seed=0)
    assert (found.source, math.isnan(found.error)) == ("history", True)
    assert found.gap == kept["train_elbo"] - kept["validation_elbo"]


def test_without_held_out_cells_there_is_no_gap_to_tell():
    adata = simulated()
    model = fitted(adata, epochs=5, validation_fraction=0.0)
    found = generalization(model, read_cells(adata, model, None), seed=0)
    assert (found.source, math.isnan(found.gap)) == ("none", True)
