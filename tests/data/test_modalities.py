"""A MuData is fitted by its modalities, and the results are where its users look."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae

mudata = pytest.importorskip("mudata", reason="mudata is optional")
SHORT = {"n_latent": 3, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=5)}
MODALITIES = {"rna": "nb", "prot": "gaussian"}


@pytest.fixture(autouse=True)
def _as_in_mudata_4():
    with mudata.set_options(pull_on_update=False):
        yield


@pytest.fixture
def joint():
    """80 cells with RNA and log proteins as one AnnData; the first ten lack RNA, the last ten proteins."""
    adata = scvae.datasets.simulate(n_cells=80, n_genes=30, n_proteins=5, n_batches=2, truth=False, rng=0)
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(80) >= 10)[:, None])
    adata.obsm["prot"] = np.log1p(adata.obsm["protein"])
    adata.obsm["prot"].iloc[-10:] = np.nan
    return adata


@pytest.fixture
def mdata(joint):
    rna = joint[10:].copy()
    rna.obsm.clear()
    table = joint.obsm["prot"].iloc[:70].sample(frac=1.0, random_state=0)
    prot = ad.AnnData(table.to_numpy(), pd.DataFrame(index=table.index), pd.DataFrame(index=table.columns))
    mdata = mudata.MuData({"rna": rna, "prot": prot})
    mdata.obs["batch"] = joint.obs["batch"].reindex(mdata.obs_names)
    return mdata


def test_a_mudata_is_fitted_as_an_anndata_with_the_same_cells(joint, mdata, tmp_path):
    order = joint[mdata.obs_names].copy()
    view = scvae.View(obsm="prot", likelihood="gaussian")
    scvae.fit(order, also={"prot": view}, batch_key="batch", **SHORT)
    model = scvae.fit(mdata, modalities=MODALITIES, batch_key="batch", **SHORT)
    assert model.schema.view_names == ("rna", "prot")
    np.testing.assert_allclose(mdata.obsm["X_scvae"], order.obsm["X_scvae"], atol=1e-5)
    assert mdata.uns["scvae"]["params"]["views"] == {"prot": "gaussian"}
    assert "X_scvae" not in mdata["rna"].obsm
    before = mdata.obsm["X_scvae"].copy()
    loaded = scvae.load(model.save(tmp_path / "model.safetensors", reference=mdata, labels="batch"))
    np.testing.assert_allclose(loaded.reference.mean, before, rtol=2.0**-10, atol=2.0**-20)
    assert list(loaded.reference.labels["batch"]) == list(mdata.obs["batch"])
    scvae.tl.embed(mdata, loaded)
    np.testing.assert_array_equal(mdata.obsm["X_scvae"], before)
    scvae.tl.impute(mdata, model, view="prot", n_samples=20)
    assert mdata.obsm["scvae_prot"].shape == (80, 5)
    assert mdata.uns["scvae"]["imputed_prot"]["n_cells"] == 10
    scvae.tl.denoise(mdata, model, view="prot", n_samples=0)
    assert mdata.obsm["scvae_prot_denoised"].shape == (80, 5)
    assert len(scvae.tl.log_likelihood(mdata, model, n_samples=2)) == 80
    mdata.write_h5mu(tmp_path / "cells.h5mu")
    more = scvae.fit(mdata, init=model, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=1))
    assert more.schema.view_names == ("rna", "prot")
    assert "scvae_prot" not in mdata.obsm  # it was the earlier model's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "modalities must name at least two and their likelihoods, e.g. {'rna': 'nb', 'prot': 'nb'}"),
        ({"modalities": {"rna": "nb", "adt": "nb"}}, "modalities has 'adt', but the MuData has 'rna', 'prot'"),
        ({"modalities": {"rna": "nb", "prot": "normal"}}, "the likelihood of the modality 'prot' must be one of"),
        ({"modalities": MODALITIES, "likelihood": "zinb"}, "leave out also, protein_key and likelihood"),
        ({"modalities": {"prot": "gaussian", "rna": "nb"}}, "the first modality, 'prot', lacks 10 cells"),
    ],
)
def test_what_cannot_be_fitted_is_refused_and_nothing_is_written(mdata, options, message):
    with pytest.raises(ValueError, match=message):
        scvae.fit(mdata, **SHORT, **options)
    assert "scvae" not in mdata.uns
    assert "X_scvae" not in mdata.obsm


def test_other_data_has_no_modalities(joint):
    with pytest.raises(ValueError, match="modalities are those of a MuData, but adata is a AnnData"):
        scvae.fit(joint, modalities=MODALITIES)


def test_tools_and_plots_take_the_mudata_as_they_take_an_anndata(joint, mdata):
    model = scvae.fit(mdata, modalities=MODALITIES, batch_key="batch", **SHORT)
    order = joint[mdata.obs_names].copy()
    order.uns.clear()
    scvae.tl.embed(order, model)
    mdata.mod["hto"] = ad.AnnData(np.ones((80, 2), np.float32), pd.DataFrame(index=mdata.obs_names))  # not modelled
    for cells in (order, mdata):
        scvae.tl.neighbors(cells, model, n_neighbors=5, n_samples=2)
        scvae.tl.diagnose(cells, model, n_cells=30)
        scvae.tl.denoise(cells, model, n_samples=0)
        scvae.tl.latent_genes(cells, model)
    assert (mdata.obsp["connectivities"] != order.obsp["connectivities"]).nnz == 0
    found, expected = (cells.uns["scvae"]["diagnosis"]["views"]["prot"] for cells in (mdata, order))
    assert found["added"] == pytest.approx(expected["added"], rel=1e-4)
    rna = mdata["rna"]
    np.testing.assert_allclose(
        rna.layers["scvae_denoised"], order[rna.obs_names].layers["scvae_denoised"], rtol=1e-4, atol=1e-7
    )
    np.testing.assert_allclose(rna.varm["scvae_effects"], order.varm["scvae_effects"], rtol=1e-3, atol=1e-6)
    assert len(scvae.pl.views(mdata, show=False).patches) == 2 * 3
    scvae.pl.latent(mdata, color="batch", show=False)
    mdata["prot"].obs["stain"] = np.arange(70.0)
    for color, owner in (("gene_3", "rna"), ("stain", "prot")):
        _, panel, *_ = scvae.pl.latent(mdata, color=color, dimensions=[0, 1], show=False)
        lacking, having = (points.get_offsets() for points in panel.collections[:2])
        assert {len(lacking), len(having)} == {10, 70}, color
        by_name = pd.Series(mdata[owner].obs_vector(color), mdata[owner].obs_names)
        assert sorted(panel.collections[1].get_array()) == pytest.approx(sorted(by_name))
    drawn = scvae.tl.generate(model, n=5, like=mdata, rng=0)
    assert drawn.obsm["prot"].shape == (5, 5)
    mapped = scvae.tl.map_query(mdata, model, new_batches=True, epochs=1, verbose=False)
    assert len(mapped.schema.batch.categories) == 4
    assert set(mdata.obs["batch"]) == set(mapped.schema.batch.categories[2:])


@pytest.mark.slow
def test_genes_are_marked_in_the_modality_by_its_own_cells(joint, mdata):
    alone = mdata["rna"].copy()
    alone.obs["batch"] = mdata.obs["batch"].loc[alone.obs_names]
    scvae.tl.highly_variable_genes(alone, n_top_genes=9, batch_key="batch")
    del mdata["rna"].obs["batch"]
    scvae.tl.highly_variable_genes(mdata, n_top_genes=9, batch_key="batch")
    pd.testing.assert_frame_equal(mdata["rna"].var, alone.var)
    model = scvae.fit(mdata, modalities=MODALITIES, **SHORT)
    assert set(model.genes) == set(alone.var_names[alone.var["highly_variable"]])
    with pytest.raises(ValueError, match="the MuData has no modality 'atac'; it has 'rna', 'prot'"):
        scvae.tl.highly_variable_genes(mdata, modality="atac")
    with pytest.raises(ValueError, match="modality is 'rna', but adata is no MuData"):
        scvae.tl.highly_variable_genes(joint, modality="rna")


def test_beta_is_chosen_for_all_modalities(joint, mdata):
    options = SHORT | {"betas": [0.5, 2.0]}
    path = scvae.tune_beta(mdata, modalities=MODALITIES, labels_key="batch", **options)
    order = joint[mdata.obs_names].copy()
    view = scvae.View(obsm="prot", likelihood="gaussian")
    expected = scvae.tune_beta(order, also={"prot": view}, labels_key="batch", **options)
    pd.testing.assert_frame_equal(path.table, expected.table, rtol=1e-4)
    np.testing.assert_allclose(mdata.obsm["X_scvae"], order.obsm["X_scvae"], atol=1e-5)
    pd.testing.assert_frame_equal(mdata.uns["scvae"]["beta_path"], path.table)
    again = scvae.tune_beta(mdata, model=path.model, betas=[0.5, 2.0], labels_key="batch", verbose=False)
    pd.testing.assert_frame_equal(again.table, path.table)


def test_counts_are_read_where_they_are_whatever_x_holds(mdata):
    expected = scvae.fit(mdata, modalities=MODALITIES, **SHORT)
    rna = mdata["rna"]
    rna.layers["counts"] = rna.X.copy()
    rna.raw = rna
    rna.X = rna.X.copy()
    rna.X.data = np.log1p(rna.X.data)  # 10 cells lack them
    for layer in ("counts", "raw"):
        model = scvae.fit(mdata, modalities=MODALITIES, layer=layer, **SHORT)
        assert model.digest == expected.digest
        scvae.tl.embed(mdata, model)


def test_features_of_each_modality_are_drawn_along_dimensions(mdata):
    model = scvae.fit(mdata, modalities=MODALITIES, **SHORT)
    table = scvae.tl.latent_genes(mdata, model)
    of_view = scvae.tl.latent_genes(mdata, model, view="prot")
    for view, found, what in (
        (None, table, "log proportion"),
        ("rna", table, "log proportion"),
        ("prot", of_view, "value"),
    ):
        panel, *_ = scvae.pl.loadings(mdata, dimensions=[1], n_genes=2, view=view, show=False)
        ends = found[(found["dimension"] == 1) & (found["rank"] == 1)].sort_values("effect")
        assert [label.get_text() for label in panel.get_yticklabels()] == ends["gene"].tolist()
        assert panel.get_xlabel() == f"change of {what} per SD"
