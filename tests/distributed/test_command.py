"""`scvae fit` under torchrun, as users type it."""

from __future__ import annotations

import anndata
import numpy as np
import pytest

import scvae
from tests.distributed.launch import torchrun
from tests.distributed.scenarios import data

pytestmark = pytest.mark.slow


def test_the_command_runs_under_torchrun_and_writes_each_file_once(tmp_path):
    data().write_h5ad(tmp_path / "in.h5ad")
    output, model = tmp_path / "out.h5ad", tmp_path / "model"
    arguments = ["--batch-key", "batch", "--epochs", "3", "--n-latent", "3", "--seed", "0"]
    run = torchrun("-m", "scvae", "fit", tmp_path / "in.h5ad", "-o", output, "--model", model, *arguments)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("held-out ELBO") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"in.h5ad", "out.h5ad", "model"}
    embedding = anndata.read_h5ad(output).obsm["X_scvae"]
    adata = data()
    scvae.tl.embed(adata, scvae.load(model))
    np.testing.assert_allclose(embedding, adata.obsm["X_scvae"], atol=1e-5)
    again = torchrun("-m", "scvae", "fit", tmp_path / "in.h5ad", "-o", output)
    assert again.returncode != 0
    assert again.stderr.count(f"scvae: error: the output {output} exists") == 1
