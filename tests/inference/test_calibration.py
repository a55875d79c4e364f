"""Intervals of a predicted measurement, and how often they hold."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

import scvae
from scvae.data.batches import split
from scvae.inference.calibration import coverages
from scvae.inference.cells import read_cells
from scvae.inference.coverage import LEVELS, Coverage
from scvae.inference.imputation import central


@pytest.mark.parametrize("n", [19, 199])
def test_a_further_draw_is_in_the_interval_as_often_as_its_level_says(n):
    draws = torch.from_numpy(np.random.default_rng(0).permutation(np.arange(1.0, n + 1)))[:, None, None]
    ((lower, upper),) = central(draws, torch.tensor([0.9]))
    # a further draw is equally likely to be between any two of the n, or beyond them
    assert (float(lower), float(upper)) == pytest.approx((0.05 * (n + 1), 0.95 * (n + 1)), rel=1e-4)
    ((lower, upper),) = central(draws, torch.tensor([1.0]))
    assert (float(lower), float(upper)) == (1.0, n)


def test_the_level_is_the_one_that_held_as_often_as_asked():
    found = Coverage(99, tuple(LEVELS**2))  # intervals too narrow
    assert found.level(0.9) == pytest.approx(np.sqrt(0.9 / 0.99), abs=1e-3)
    assert Coverage(99, tuple(0.8 * LEVELS)).level(0.9) == 1.0
    assert Coverage(99, tuple(np.maximum(0.95, LEVELS))).level(0.9) == 0.0  # 0 in most cells


@pytest.mark.parametrize("likelihood", ["gaussian", "nb"])
def test_intervals_of_a_model_that_is_too_sure_of_itself_are_widened_until_they_hold(likelihood):
    adata = scvae.datasets.simulate(n_cells=500, n_genes=40, n_proteins=12, inverse_dispersion=2.0, rng=0)
    adata.obsm["clr"] = np.log1p(adata.obsm["protein"].to_numpy())
    slot = {"nb": "protein", "gaussian": "clr"}[likelihood]
    late, early = adata[350:].copy(), adata[:350].copy()
    options = {"training": scvae.TrainingConfig(epochs=20, validation_fraction=0.3), "n_latent": 3, "verbose": False}
    model = scvae.fit(early, protein_key=slot, protein_likelihood=likelihood, rng=0, **options)
    network = copy.deepcopy(model.network)
    head = network.views[0].head
    with torch.no_grad():
        if likelihood == "gaussian":
            head.log_free_scale.sub_(np.log(1.6))
        else:
            head.log_inverse_dispersion.add_(np.log(3.0))
    sure = replace(model, network=network, coverages=())
    truth = np.asarray(late.obsm[slot])

    def held(model):
        scvae.tl.impute(late, model, all_cells=True, n_samples=100)
        lower, upper = (np.asarray(late.obsm[f"scvae_protein_{end}"]) for end in ("lower", "upper"))
        return ((lower <= truth) & (truth <= upper)).mean()

    assert held(sure) < 0.85
    assert late.uns["scvae"]["imputed_protein"]["calibrated_on"] == 0
    found = coverages(sure, read_cells(early, sure, None), split(350, 0.3, sure.seed)[1])
    assert found[0].n_cells == 105
    assert 0.87 < held(replace(sure, coverages=found)) < 0.94
    assert late.uns["scvae"]["imputed_protein"]["level"] == pytest.approx(found[0].level(0.9))
    with pytest.warns(UserWarning, match=r"the range of all draws held 50 % of the values"):
        scvae.tl.impute(late, replace(sure, coverages=(Coverage(50, tuple(0.5 * LEVELS)),)), all_cells=True)


def test_few_held_out_cells_leave_the_intervals_of_the_model(tmp_path):
    adata = scvae.datasets.simulate(n_cells=90, n_genes=30, n_proteins=5, rng=0)
    adata.obsm["protein"].iloc[:20] = np.nan
    options = {"training": scvae.TrainingConfig(epochs=2), "n_latent": 2, "verbose": False}
    model = scvae.fit(adata, protein_key="protein", rng=0, **options)
    assert model.coverages == (None,)
    assert scvae.load(model.save(tmp_path / "model.safetensors")).coverages == (None,)
