"""Models and checkpoints of earlier versions: they load, say what they said, and their runs go on."""

import shutil
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import scvae
from scvae import NetworkConfig, TrainingConfig

FIXTURES = Path(__file__).parent / "fixtures"
CALLS = {  # as they were made
    "batches": {
        "batch_key": "batch",
        "covariate_keys": ["age"],
        "likelihood": "zinb",
        "network": NetworkConfig(width=16, dispersion="gene-batch"),
    },
    "path": {"beta": (0.1, 10.0), "network": NetworkConfig(width=16)},
}


@pytest.fixture
def cells():
    return ad.read_h5ad(FIXTURES / "cells.h5ad")


@pytest.mark.parametrize("name", CALLS)
def test_a_model_of_an_earlier_version_embeds_cells_as_it_did(name, cells):
    model, then = scvae.load(FIXTURES / f"{name}.safetensors"), np.load(FIXTURES / f"{name}.npz")
    scvae.tl.embed(cells, model)
    for slot in ("X_scvae", "X_scvae_var"):  # another processor, other last digits
        np.testing.assert_allclose(cells.obsm[slot], then[slot], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(model.history["validation_elbo"], then["validation_elbo"])
    assert model.beta == CALLS[name].get("beta", 1.0)


def test_a_model_of_an_earlier_version_has_no_reference_and_takes_one(cells, tmp_path):
    model = scvae.load(FIXTURES / "batches.safetensors")
    assert model.reference is None
    with pytest.raises(ValueError, match="needs a reference in the model's file, and it has none"):
        scvae.tl.nearest_cells(cells, model)
    model = scvae.load(model.save(tmp_path / "ref", reference=cells))
    scvae.tl.nearest_cells(cells, model, n_neighbors=1)
    assert (cells.obsm["scvae_nearest"]["1"] == cells.obs_names).mean() > 0.95  # but for the rounding of the latents


@pytest.mark.parametrize("name", CALLS)
def test_a_run_of_an_earlier_version_goes_on_from_its_checkpoint(name, cells, tmp_path):
    then = np.load(FIXTURES / f"{name}.npz")
    checkpoint = shutil.copy(FIXTURES / f"{name}.checkpoint", tmp_path / "run")
    training = TrainingConfig(epochs=6, batch_size=32)
    options = {"n_latent": 3, "rng": 0, "verbose": False, "training": training, "metric": "latent"} | CALLS[name]
    model = scvae.fit(cells, checkpoint=checkpoint, **options)
    elbo = model.history["validation_elbo"].to_numpy()
    np.testing.assert_array_equal(elbo[:3], then["validation_elbo"][:3])  # read, not trained anew
    np.testing.assert_allclose(elbo, then["validation_elbo"], rtol=1e-3)
    np.testing.assert_allclose(cells.obsm["X_scvae"], then["X_scvae"], rtol=0.05, atol=0.02)
