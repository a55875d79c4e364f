"""A second model under the same key: what the first one left goes with its embedding, and nothing else does."""

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import scvae
from scvae.cli import main
from scvae.common.checks import MissingKeyError
from tests.pl import records

SHORT = {"n_latent": 3, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
COLUMNS = {"scvae_stability", "scvae_label", "scvae_label_uncertainty", "scvae_outlier"}
EFFECTS = {"scvae_effects", "scvae_traversal"}
TABLES = {"X_scvae_samples", "scvae_denoised"}
ENTRIES = {"diagnosis", "denoised"}


@pytest.fixture(scope="module")
def example():
    """Cells with all that a model can leave in them, what users add, and the models: that one and another."""
    cells = scvae.datasets.simulate(n_cells=100, n_genes=40, n_types=3, n_batches=2, truth=False, rng=0)
    first = scvae.fit(cells, batch_key="batch", rng=0, **SHORT)
    scvae.tl.neighbors(cells, first)
    scvae.tl.embed(cells, first, n_samples=2)
    scvae.tl.latent_genes(cells, first)
    scvae.tl.denoise(cells, first, genes=["gene_1"])
    scvae.tl.transfer_labels(cells, first, reference=cells.copy(), labels_key="cell_type")
    scvae.tl.diagnose(cells, first, n_cells=30)
    cells.obs["scvae_mine"] = np.arange(100.0)
    cells.varm["scvae_mine"] = np.ones((40, 3))
    cells.uns["scvae_mine"] = {"params": {"model": "mine", "use_rep": "X_scvae"}}
    sc.pp.neighbors(cells, use_rep="X_scvae", key_added="theirs", method="gauss")  # nothing to compile
    return cells, first, scvae.fit(cells.copy(), batch_key="batch", rng=7, **SHORT)


def left(cells):
    """What the tools have left in the cells."""
    slots = {*cells.obs, *cells.varm, *cells.obsm, *cells.obsp, *cells.layers, *cells.uns, *cells.uns["scvae"]}
    return slots & (COLUMNS | EFFECTS | TABLES | ENTRIES | {"connectivities", "distances", "neighbors"})


ALL = COLUMNS | EFFECTS | TABLES | ENTRIES | {"connectivities", "distances", "neighbors"}


def assert_of_users_is_there(cells):
    assert cells.obs["scvae_mine"].sum() == 4950
    assert "scvae_mine" in cells.varm
    assert {"scvae_mine", "theirs"} <= set(cells.uns)
    assert "theirs_connectivities" in cells.obsp


def mapped(cells, model):
    cells.obs["batch"] = cells.obs["batch"].cat.rename_categories(["new", "newer"])
    scvae.tl.map_query(cells, model, epochs=1, verbose=False)


WAYS = {
    "fit": lambda cells, _: scvae.fit(cells, batch_key="batch", rng=3, **SHORT),
    "fit of the model": lambda cells, model: scvae.fit(cells, init=model, verbose=False, training=SHORT["training"]),
    "embed": scvae.tl.embed,
    "map_query": mapped,
    "tune_beta": lambda cells, _: scvae.tune_beta(cells, betas=[0.5, 2.0], rng=0, **SHORT),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_another_model_left_goes_with_its_embedding(example, way):
    cells, _, other = example
    cells = cells.copy()
    assert left(cells) == ALL
    WAYS[way](cells, other)
    assert left(cells) == set()
    assert_of_users_is_there(cells)
    with pytest.raises(MissingKeyError, match="neither 'scvae_loadings'"):
        scvae.pl.loadings(cells, show=False)


def test_a_graph_of_another_model_takes_the_place_of_all_that_is_not_written_anew(example):
    cells, _, other = example
    cells = cells.copy()
    before = cells.obsp["connectivities"].copy()
    scvae.tl.neighbors(cells, other)
    assert left(cells) == {"scvae_stability", "connectivities", "distances", "neighbors"}
    assert (cells.obsp["connectivities"] != before).nnz > 0
    assert_of_users_is_there(cells)


@pytest.mark.parametrize("way", ["embed", "same fit", "loaded"])
def test_of_the_same_model_everything_stays(example, tmp_path, way):
    cells, model, _ = example
    cells = cells.copy()
    if way == "same fit":
        scvae.fit(cells, batch_key="batch", rng=0, **SHORT)
        assert left(cells) == ALL
    else:
        scvae.tl.embed(cells, scvae.load(model.save(tmp_path / "model")) if way == "loaded" else model)
        assert left(cells) == ALL - {"X_scvae_samples"}  # of draws, there are as many as were asked for last
    assert_of_users_is_there(cells)
    scvae.pl.loadings(cells, show=False)


def test_a_column_that_the_user_edited_stays_and_that_of_a_subset_goes(example):
    cells, _, other = example
    edited = cells.copy()
    edited.obs["scvae_label"] = edited.obs["scvae_label"].astype(str)  # the same values still
    edited.obs.loc[edited.obs_names[0], "scvae_outlier"] = 0.123
    scvae.tl.embed(edited, other)
    assert left(edited) == {"scvae_outlier"}
    some = cells[40:10:-1].copy()
    scvae.tl.embed(some, other)
    assert left(some) == set()
    unknown = cells.copy()
    del unknown.uns["scvae"]  # as by anndata.concat: who wrote the columns is not known
    scvae.tl.embed(unknown, other)
    assert left(unknown) == COLUMNS


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("ending", ["h5ad", "zarr", "backed"])
def test_in_a_file_the_same_goes_and_the_same_stays(example, tmp_path, ending):
    cells, model, other = example
    cells = cells.copy()
    record = cells.uns["scvae"]
    cells.uns["scvae"] = {name: record[name] for name in ("models", "checksums", "denoised")} | {"diagnosis": "short"}
    path = tmp_path / f"cells.{'zarr' if ending == 'zarr' else 'h5ad'}"
    cells.write_zarr(path) if ending == "zarr" else cells.write_h5ad(path)
    if ending == "backed":
        found = ad.read_h5ad(path, backed="r")
        scvae.tl.embed(found, other)
        assert left(found) == set()
        found.file.close()
        return

    def reread():
        return ad.read_zarr(path) if ending == "zarr" else ad.read_h5ad(path)

    scvae.tl.embed(path, model)
    found = reread()
    assert left(found) == ALL - {"X_scvae_samples"}
    assert_of_users_is_there(found)
    assert list(found.obs) == list(cells.obs)
    scvae.pl.loadings(found, show=False)
    scvae.tl.embed(path, other)
    found = reread()
    assert left(found) == set()
    assert_of_users_is_there(found)
    assert list(found.obs) == [name for name in cells.obs if name not in COLUMNS]
    np.testing.assert_array_equal(found.obsm["X_scvae"], scvae.tl.embed(cells, other, copy=True).obsm["X_scvae"])


def test_of_a_model_of_many_betas_what_is_of_the_embedding_goes_with_its_beta():
    cells = scvae.datasets.simulate(n_cells=60, n_genes=20, truth=False, rng=0)
    model = scvae.fit(cells, beta=(0.5, 2.0), rng=0, **SHORT)
    scvae.tl.neighbors(cells, model, beta=0.5)
    scvae.tl.latent_genes(cells, model, beta=0.5)
    scvae.tl.denoise(cells, model)
    scvae.tl.diagnose(cells, model, n_cells=30)
    of_embedding = EFFECTS | {"scvae_stability", "connectivities", "distances", "neighbors"}
    of_model = ENTRIES | {"scvae_denoised"}
    scvae.tl.embed(cells, model, beta=0.5)
    assert left(cells) == of_embedding | of_model
    scvae.tl.embed(cells, model, beta=2.0)
    assert left(cells) == of_model
    scvae.tl.latent_genes(cells, model)  # at β = 1
    with pytest.raises(ValueError, match=r"'scvae_effects'\] is not of the model, or not of the β, of .*'X_scvae'"):
        scvae.pl.loadings(cells, show=False)
    scvae.tl.latent_genes(cells, model, beta=2.0)
    scvae.pl.loadings(cells, show=False)


def test_a_plot_of_two_models_is_refused(example):
    cells, _, other = example
    cells = cells.copy()
    theirs = scvae.tl.embed(cells, other, copy=True)
    by_hand = cells.copy()
    by_hand.obsm["X_scvae"] = theirs.obsm["X_scvae"]
    with pytest.raises(ValueError, match=r"'X_scvae'\] was replaced, or has more cells"):
        scvae.pl.loadings(by_hand, show=False)
    joined = ad.concat([cells, theirs], index_unique="-", merge="first", uns_merge="first")
    with pytest.raises(ValueError, match="has more cells"):
        scvae.pl.loadings(joined, show=False)
    theirs.varm["scvae_effects"] = cells.varm["scvae_effects"]
    with pytest.raises(ValueError, match="not of the model"):
        scvae.pl.loadings(theirs, show=False)
    scvae.tl.latent_genes(cells, other)
    with pytest.raises(
        ValueError, match=r"not of the model.*run scvae\.tl\.embed and scvae\.tl\.latent_genes\(adata, model\) with"
    ):
        scvae.pl.loadings(cells, show=False)
    theirs.obsm["X_scvae"] = theirs.obsm["X_scvae"][:, :2]
    with pytest.raises(ValueError, match=r"has the shape \(100, 2\) and .*'X_scvae_var'\] \(100, 3\)"):
        scvae.pl.latent(theirs, show=False)


def test_plots_draw_subsets_and_what_earlier_versions_left(example):
    cells, *_ = example
    scvae.pl.loadings(cells[::-2].copy(), show=False)
    scvae.pl.loadings(cells[:, ::2].copy(), show=False)
    old = records.with_effects()
    assert "models" not in old.uns["scvae"]
    scvae.pl.loadings(old, show=False)


@pytest.mark.filterwarnings("ignore:Writing zarr v2 data will no longer be the default:UserWarning")
@pytest.mark.parametrize("ending", ["h5ad", pytest.param("zarr", marks=pytest.mark.slow)])
def test_in_the_output_of_the_command_line_nothing_is_left_of_another_model(example, tmp_path, monkeypatch, ending):
    cells, _, other = example
    monkeypatch.chdir(tmp_path)
    cells.write_h5ad("in.h5ad")
    other.save("model")
    assert main(["embed", "in.h5ad", "-o", f"out.{ending}", "--model", "model"]) == 0
    found = ad.read_zarr("out.zarr") if ending == "zarr" else ad.read_h5ad("out.h5ad")
    assert left(found) == set()
    assert_of_users_is_there(found)
    assert found.uns["scvae"]["seed"] == 7


@pytest.mark.parametrize("entry", [{"mine": 1}, 3, np.arange(3)], ids=["dict", "number", "array"])
@pytest.mark.parametrize("by_path", [False, True])
def test_an_entry_of_uns_that_is_no_record_is_not_replaced(tmp_path, digest, entry, by_path):
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0)
    short = {"n_latent": 2, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=1)}
    model = scvae.fit(adata.copy(), **short)
    adata.uns["run"] = entry
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    before = digest(adata), path.read_bytes()
    for call in (
        lambda cells: scvae.fit(cells, key_added="run", **short),
        lambda cells: scvae.tl.embed(cells, model, key_added="run"),
    ):
        with pytest.raises(ValueError, match=r"uns\['run'\] is a \w+ in .* that scvae did not write"):
            call(path if by_path else adata)
    assert (digest(adata), path.read_bytes()) == before
