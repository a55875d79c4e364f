"""The demonstration, on a small data set in place of the bundled one."""

import struct

import anndata
import numpy as np
import pandas as pd
import pytest

import scvae
from scvae.cli import main


def adjusted_rand_index(left, right):
    """Hubert & Arabie 1985, from the table of both."""

    def pairs(counts):
        return (counts * (counts - 1) / 2).sum()

    table = pd.crosstab(left, right).to_numpy()
    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected = rows * columns / pairs(np.array([table.sum()]))
    return (both - expected) / ((rows + columns) / 2 - expected)


@pytest.mark.slow
def test_the_demo_prints_one_table_and_writes_data_and_drawing(tmp_path, capsys, monkeypatch):
    cells = scvae.datasets.simulate(n_cells=160, n_genes=80, n_types=3, rng=0)
    cells.obs["cell_type"] = cells.obs["cell_type"].cat.add_categories("unlabelled")
    cells.obs.iloc[:20, cells.obs.columns.get_loc("cell_type")] = "unlabelled"
    monkeypatch.setattr("scvae.datasets.pbmc3k", lambda: cells.copy())
    assert main(["demo", "--out-dir", str(tmp_path / "a" / "b")]) == 0

    out, err = capsys.readouterr()
    names, values, where = out.splitlines()
    assert names.split() == ["cells", "genes", "seconds", "held-out", "ELBO", "active", "dimensions", "ARI"]
    assert values.split()[0] == "160"
    assert "umap.png" in where
    assert "warning" not in err
    assert sorted(path.name for path in (tmp_path / "a" / "b").iterdir()) == ["pbmc3k_scvae.h5ad", "umap.png"]

    adata = anndata.read_h5ad(tmp_path / "a" / "b" / "pbmc3k_scvae.h5ad")
    assert {"X_scvae", "X_scvae_var", "X_umap"} <= set(adata.obsm)
    assert (adata.X != cells[:, adata.var_names].X).nnz == 0
    known = adata.obs[adata.obs["cell_type"] != "unlabelled"]
    assert float(values.split()[-1]) == pytest.approx(
        adjusted_rand_index(known["cell_type"], known["leiden"]), abs=5.1e-4
    )
    png = (tmp_path / "a" / "b" / "umap.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    assert width > 1000
    assert height > 500
