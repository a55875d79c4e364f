"""Names that a user chose (of groups, genes, batches, columns) become no key that h5ad or zarr files refuse."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import scvae
from scvae.common.keys import as_keys, can_be_key

ENDINGS = ["h5ad", "zarr"]


@pytest.fixture(scope="module")
def fitted():
    """Cells of which every name that can have a slash has one, and a model of them."""
    cells = scvae.datasets.simulate(n_cells=100, n_genes=40, n_types=3, n_batches=2, truth=False, rng=0)
    cells.var_names = ["IGH/A", "../up", *cells.var_names[2:]]
    cells.obs["type"] = cells.obs["cell_type"].cat.rename_categories(["DC/mono", "CD4+/CD8-", "NK"])
    cells.obs["site"] = cells.obs["batch"].cat.rename_categories(["d/1", "d_1"])
    cells.obs = cells.obs[["type", "site"]]
    short = {"n_latent": 3, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
    return cells, scvae.fit(cells.copy(), batch_key="site", **short)


def reread(adata, path):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Writing zarr v2 data will no longer be the default")
        getattr(adata, f"write_{path.suffix[1:]}")(path)  # a warning, as of h5ad on slashes, is an error
    return getattr(ad, f"read_{path.suffix[1:]}")(path)


def assert_same(found, expected, place):
    if isinstance(expected, dict):
        assert set(found) == set(expected), place
        for key, value in expected.items():
            assert_same(found[key], value, f"{place}[{key!r}]")
    elif isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected, check_index_type=False, obj=place)
    elif getattr(getattr(expected, "dtype", None), "names", None):
        assert found.dtype.names == expected.dtype.names, place
        assert found.tolist() == expected.tolist(), place
    else:
        np.testing.assert_array_equal(np.asarray(found), np.asarray(expected), err_msg=place)


def assert_written(adata, path):
    found = reread(adata, path)
    for slot in ("obs", "layers", "obsm", "varm", "uns"):
        value = getattr(adata, slot)
        frame = isinstance(value, pd.DataFrame)
        assert_same(getattr(found, slot), value if frame else dict(value), slot)
    return found


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_ranking_of_groups_with_slashes_is_read_back_as_it_was(tmp_path, fitted, ending):
    cells, model = fitted
    cells = cells.copy()
    scvae.tl.rank_genes(cells, model, groupby="type")
    found = assert_written(cells, tmp_path / f"cells.{ending}")
    tables = [sc.get.rank_genes_groups_df(each, None) for each in (cells, found)]
    pd.testing.assert_frame_equal(*tables)
    assert set(tables[0]["group"]) == {"DC/mono", "CD4+/CD8-", "NK"}
    without = cells[cells.obs["type"] != "DC/mono"].copy()
    scvae.tl.rank_genes(without, model, groupby="type", groups=["NK"])
    assert sc.get.rank_genes_groups_df(without, "NK")["pct_nz_group"].notna().all()  # where its name can be a column


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("options", [{}, {"threshold": 1e-4}])
def test_denoised_genes_with_slashes_are_read_back_as_they_were(tmp_path, fitted, ending, options):
    cells, model = fitted
    cells = cells.copy()
    scvae.tl.denoise(cells, model, genes=["gene_5", "IGH/A"], **options)
    if options:
        found = reread(cells, tmp_path / f"cells.{ending}")
    else:
        found = assert_written(cells, tmp_path / f"cells.{ending}")
    table = found.obsm["scvae_denoised"]
    table = table.toarray() if options.get("threshold") else table
    assert list(found.uns["scvae"]["denoised"]["genes"]) == ["gene_5", "IGH/A"]
    scvae.tl.denoise(cells, model)
    expected = cells[:, ["gene_5", "IGH/A"]].layers["scvae_denoised"]
    np.testing.assert_allclose(table, np.where(expected > options.get("threshold", 0), expected, 0), rtol=1e-5)
    scvae.tl.denoise(cells, model, genes=["gene_5"])
    assert list(cells.obsm["scvae_denoised"]) == ["gene_5"]  # a table with names, where files can hold them


@pytest.mark.parametrize("ending", ENDINGS)
def test_records_of_mapped_and_generated_cells_are_read_back_as_they_were(tmp_path, fitted, ending):
    cells, model = fitted
    drawn = scvae.tl.generate(model, n=40, like=cells)
    assert assert_written(drawn, tmp_path / f"drawn.{ending}").uns["scvae"]["drawn"]["components"] >= 1
    chips = ad.AnnData(cells.X, obs=cells.obs.rename(columns={"site": "donor/chip"}), var=cells.var)
    short = {"n_latent": 3, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
    of_chips = scvae.fit(chips, batch_key="donor/chip", **short)
    query = cells.copy()
    query.obs["site"] = query.obs["site"].cat.rename_categories(["e/1", "e_1"])
    scvae.tl.map_query(query, of_chips, batch_key="site", epochs=1, verbose=False)
    assert_written(query, tmp_path / f"query.{ending}")


@pytest.mark.filterwarnings("ignore:Transforming to str index")
@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "a\\b", ".zarray", ".zgroup", "_index", "a" * 300])
def test_a_name_that_files_cannot_hold_is_told_from_one_that_they_can(tmp_path, name):
    assert not can_be_key(name)
    keys = as_keys([name, "T.cell", name, "γδ T", "CD4+:naive", " x"])
    assert len(set(keys)) == 6
    assert [keys[1], *keys[3:]] == ["T.cell", "γδ T", "CD4+:naive", " x"]
    cells = ad.AnnData(np.ones((2, 1), np.float32))
    cells.obsm["table"] = pd.DataFrame({key: [1.0, 2.0] for key in keys}, cells.obs_names)
    cells.uns["record"] = {key: np.arange(2) for key in keys}
    for ending in ENDINGS:
        assert_written(cells, tmp_path / f"cells.{ending}")
