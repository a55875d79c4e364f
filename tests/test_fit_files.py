"""`fit` and `embed` of files: the results go into them, and nothing else of them changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata
import h5py
import numpy as np
import pytest

import scvae
from scvae import TrainingConfig, _in_place
from scvae._in_place import InPlace, changed_in_place, restore
from scvae.data.sources import listed

SHORT = {"n_latent": 3, "rng": 0, "verbose": False}
STREAMED = TrainingConfig(epochs=2, memory=0.0)
HELD = TrainingConfig(epochs=2)


def cells(n=60, seed=0, n_genes=30):
    adata = scvae.datasets.simulate(n_cells=n, n_genes=n_genes, rng=seed)
    adata = anndata.AnnData(adata.X, adata.obs[[]], adata.var[[]])
    adata.obs["donor"] = np.where(np.arange(n) % 2 == 0, "a", "b")
    adata.obs["donor"] = adata.obs["donor"].astype("category")
    adata.layers["other"] = adata.X * 2
    adata.uns["kept"] = {"a": 1}
    return adata


def stored(adata, path):
    if path.suffix == ".zarr":
        with (
            anndata.settings.override(auto_shard_zarr_v3=False) if path.stem[0] == "3" else anndata.settings.override()
        ):
            adata.write_zarr(path)
    else:
        adata.write_h5ad(path, compression="gzip")
    return path


def reread(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def without_results(adata):
    adata = adata.copy()
    for key in ("X_scvae", "X_scvae_var"):
        del adata.obsm[key]
    del adata.uns["scvae"]
    return adata


def assert_same(found, expected):
    assert (found.X != expected.X).nnz == 0
    assert list(found.layers) == list(expected.layers)
    for frame in ("obs", "var"):
        assert getattr(found, frame).equals(getattr(expected, frame)), frame
    assert list(found.uns) == list(expected.uns)
    assert list(found.obsm) == list(expected.obsm)


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
@pytest.mark.parametrize("training", [STREAMED, HELD])
def test_a_file_gets_the_results_and_nothing_else(tmp_path, ending, training):
    adata = cells()
    path = stored(adata, tmp_path / f"cells.{ending}")
    model = scvae.fit(path if ending == "zarr" else str(path), training=training, **SHORT)
    found = reread(path)
    assert_same(without_results(found), reread(stored(adata, tmp_path / f"again.{ending}")))
    embedded = scvae.tl.embed(adata, model, copy=True)
    assert np.allclose(found.obsm["X_scvae"], embedded.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    assert found.uns["scvae"]["seed"] == 0
    assert sorted(os.listdir(tmp_path)) == sorted([f"again.{ending}", f"cells.{ending}"])
