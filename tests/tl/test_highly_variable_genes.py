"""Genes chosen in two passes over the file are those that scanpy chooses in memory."""

from __future__ import annotations

import anndata
import numpy as np
import pytest
import scanpy as sc
from scipy import sparse

import scvae
from scvae.data.gene_variance import local_quadratic


@pytest.fixture(scope="module")
def counts():
    adata = scvae.datasets.pbmc3k()
    adata = adata[:, np.asarray((adata.X > 0).sum(0)).ravel() > 10].copy()
    adata = anndata.AnnData(adata.X, adata.obs[[]], adata.var[[]])
    adata.obs["donor"] = np.where(np.arange(adata.n_obs) % 5 < 2, "a", "b")
    return adata


@pytest.mark.parametrize("batch_key", [None, "donor"])
def test_the_genes_are_those_of_scanpy(counts, batch_key):
    pytest.importorskip("skmisc")
    ours, theirs = counts.copy(), counts.copy()
    assert scvae.tl.highly_variable_genes(ours, n_top_genes=1000, batch_key=batch_key) is None
    sc.pp.highly_variable_genes(theirs, n_top_genes=1000, flavor="seurat_v3", batch_key=batch_key)
    assert ours.var["highly_variable"].sum() == 1000
    assert (ours.var["highly_variable"] & theirs.var["highly_variable"]).sum() >= 980
    both = ours.var["highly_variable"] & theirs.var["highly_variable"]
    ranks = [x.var.loc[both, "highly_variable_rank"].astype(float).rank() for x in (ours, theirs)]
    assert np.corrcoef(*ranks)[0, 1] > 0.99
    assert np.allclose(ours.var["means"], theirs.var["means"], rtol=1e-5)
    assert np.allclose(ours.var["variances"], theirs.var["variances"], rtol=1e-4)
    assert np.corrcoef(ours.var["variances_norm"], theirs.var["variances_norm"])[0, 1] > 0.99


def test_files_get_the_genes_of_all_their_cells_together(counts, tmp_path):
    expected = counts.copy()
    scvae.tl.highly_variable_genes(expected, n_top_genes=500)
    half = counts.n_obs // 2
    order = np.random.default_rng(0).permutation(counts.n_vars)
    counts[:half].copy().write_h5ad(tmp_path / "one.h5ad", compression="gzip")
    counts[half:, order].copy().write_h5ad(tmp_path / "two.h5ad")
    scvae.tl.highly_variable_genes(tmp_path, n_top_genes=500)
    for name in ("one", "two"):
        found = anndata.read_h5ad(tmp_path / f"{name}.h5ad")
        var = found.var.loc[expected.var_names]
        assert var["highly_variable"].dtype == bool
        assert (var["highly_variable"] == expected.var["highly_variable"]).all()
        assert np.allclose(var["variances_norm"], expected.var["variances_norm"])
    model = scvae.fit(tmp_path, training=scvae.TrainingConfig(epochs=1), n_latent=2, rng=0, verbose=False)
    assert len(model.genes) == 500


@pytest.mark.parametrize("container", [sparse.csc_matrix, lambda x: x.toarray()])
def test_any_container_gives_the_same_genes(counts, container):
    some = counts[:200].copy()
    expected, found = some.copy(), anndata.AnnData(container(some.X), some.obs, some.var)
    for adata in (expected, found):
        scvae.tl.highly_variable_genes(adata, n_top_genes=300)
    assert (found.var["highly_variable"] == expected.var["highly_variable"]).all()


def test_a_parabola_is_its_own_smooth_curve():
    x = np.random.default_rng(0).normal(size=300)
    y = 1.0 + 2.0 * x - 3.0 * x**2
    assert np.allclose(local_quadratic(x, y, 0.3), y, atol=1e-6)
    assert np.allclose(local_quadratic(np.array([1.0, 1.0, 2.0]), np.array([3.0, 5.0, 7.0]), 0.5), [4.0, 4.0, 7.0])


def test_what_cannot_be_ranked_is_refused(counts):
    some = counts[:50].copy()
    some.obs["one"] = ["x"] + ["y"] * 49
    for keywords, message in [
        ({"n_top_genes": 0}, "n_top_genes is 0"),
        ({"span": 1.5}, "span is 1.5"),
        ({"batch_key": "one"}, "a single cell of 'x'"),
        ({"batch_key": "none"}, "has no 'none'"),
        ({"layer": "none"}, "has no 'none'"),
    ]:
        with pytest.raises(ValueError, match=message):
            scvae.tl.highly_variable_genes(some, **keywords)
    assert list(some.var.columns) == []
    roots = anndata.AnnData(np.sqrt(some.X), some.obs, some.var)
    with pytest.raises(ValueError, match=r"X looks square-root-transformed: value\^2 is an integer"):
        scvae.tl.highly_variable_genes(roots)
    assert list(roots.var.columns) == []
    some.X = some.X * -1.0
    with pytest.raises(ValueError, match="negative values"):
        scvae.tl.highly_variable_genes(some)
