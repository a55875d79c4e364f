"""Further measurements: found where the user says, matched by name, checked as the first one, lacking where NaN."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae
from scvae.data.intake import DataKeys, read_fit, read_query
from scvae.data.joint import learn_views, with_views

NAMES = ["CD3", "CD4", "CD8", "CD19"]


@pytest.fixture
def counts():
    """Proteins of 20 cells; each occurs."""
    return np.random.default_rng(0).poisson(5.0, (20, 4)).astype(np.float32) + 1.0


@pytest.fixture
def adata(counts):
    rng = np.random.default_rng(1)
    cells = [f"cell_{i}" for i in range(20)]
    adata = ad.AnnData(sparse.csr_matrix(rng.poisson(1.0, (20, 30)).astype(np.float32) + np.eye(20, 30)))
    adata.obs_names = cells
    adata.obsm["protein"] = pd.DataFrame(counts, index=cells, columns=NAMES)
    return adata


def learned(adata, kind="counts", name="protein", **view):
    schema, cells = read_fit(adata, DataKeys(), kind="counts")
    likelihood = {"counts": "nb", "real": "gaussian", "binary": "bernoulli"}[kind]
    view = scvae.View(likelihood=likelihood, **(view or {"obsm": "protein"}))
    return learn_views(adata, {name: view}, {name: kind}, schema, cells)


def values(cells):
    return cells.views[0].rows.take(np.arange(len(cells))).to_dense().numpy()


@pytest.mark.parametrize("container", ["frame", "sparse frame", "array", "csr", "csc", "mod", "named in uns"])
def test_the_same_values_are_read_from_every_container(adata, counts, container):
    view = {"obsm": "protein", "names": NAMES}
    if container == "frame":
        view = {"obsm": "protein"}
    elif container == "sparse frame":
        view = {"obsm": "protein"}
        adata.obsm["protein"] = adata.obsm["protein"].astype(pd.SparseDtype("float32", 0.0))
    elif container == "mod":
        order = np.random.default_rng(2).permutation(20)
        mod = ad.AnnData(counts[order], pd.DataFrame(index=adata.obs_names[order]), pd.DataFrame(index=NAMES))
        view = {"mod": mod}
    else:
        adata.obsm["protein"] = {"csr": sparse.csr_matrix, "csc": sparse.csc_matrix}.get(container, np.array)(counts)
        if container == "named in uns":
            adata.uns["proteins"], view = np.array(NAMES), {"obsm": "protein", "names": "proteins"}
    schema, cells = learned(adata, **view)
    assert schema.views[0].features == tuple(NAMES)
    np.testing.assert_array_equal(values(cells), counts)
    np.testing.assert_array_equal(cells.views[0].library, counts.sum(1))
    assert cells.views[0].present.all()


@pytest.mark.parametrize("kind", ["counts", "real"])
def test_cells_lack_a_view_where_it_is_nan_not_measured_or_not_in_mod(adata, counts, kind):
    counts = counts if kind == "counts" else counts / 2
    frame = adata.obsm["protein"] = pd.DataFrame(counts, index=adata.obs_names, columns=NAMES)
    frame.iloc[[3, 7]] = np.nan
    adata.obs["stained"] = [i != 5 for i in range(20)]
    _, cells = learned(adata, kind, obsm="protein", measured="stained")
    lacking = [3, 5, 7]
    assert np.flatnonzero(~cells.views[0].present).tolist() == lacking
    assert not values(cells)[lacking].any()
    others = np.delete(np.arange(20), lacking)
    np.testing.assert_array_equal(values(cells)[others], counts[others])
    if kind == "counts":
        typical = np.exp(np.log(counts[others].sum(1)).mean())
        np.testing.assert_allclose(cells.views[0].library[lacking], typical, rtol=1e-6)
    mod = ad.AnnData(counts[others], pd.DataFrame(index=adata.obs_names[others]), pd.DataFrame(index=NAMES))
    _, of_mod = learned(adata, kind, mod=mod)
    np.testing.assert_array_equal(of_mod.views[0].present, cells.views[0].present)
    np.testing.assert_array_equal(values(of_mod), values(cells))


def test_cells_without_counts_lack_that_measurement(adata):
    adata.X = sparse.csr_matrix(adata.X.toarray() * (np.arange(20) != 2)[:, None])
    adata.obsm["protein"].iloc[4] = 0.0
    _, cells = learned(adata)
    assert np.flatnonzero(~cells.present).tolist() == [2]
    assert np.flatnonzero(~cells.views[0].present).tolist() == [4]
    assert (cells.library > 0).all()
    adata.obsm["protein"].iloc[2] = 0.0
    with pytest.raises(ValueError, match=r"1 cells have no value in any view \('rna', 'protein'\): 'cell_2'; remove"):
        learned(adata)


def test_later_cells_are_matched_by_the_names_of_their_features(adata, counts):
    schema, _ = learned(adata)
    other = adata[[4, 2]].copy()
    other.obsm["protein"] = other.obsm["protein"][["CD19", "CD8", "CD4", "CD3"]].assign(other=9.0)
    cells = with_views(read_query(other, schema), other, schema)
    np.testing.assert_array_equal(values(cells), counts[[4, 2]])
    other.obsm["protein"] = other.obsm["protein"].drop(columns="CD8")
    with pytest.warns(UserWarning, match=r"view 'protein': .*3 of the 4 modelled features .*: 'CD8'"):
        cells = with_views(read_query(other, schema), other, schema)
    assert cells.views[0].missing.tolist() == [2]
    del other.obsm["protein"]
    cells = with_views(read_query(other, schema), other, schema)
    assert not cells.views[0].present.any()


def spoilt(adata, change):
    change(adata)
    return adata


@pytest.mark.parametrize(
    ("change", "view", "error", "message"),
    [
        (
            lambda a: a.obsm["protein"].__setitem__("CD4", [np.nan, *range(1, 20)]),
            {"obsm": "protein"},
            ValueError,
            r"view 'protein': obsm\['protein'\] has missing or infinite values \(nan at cell 'cell_0', feature 'CD4'\)",
        ),
        (
            lambda a: a.obsm.__setitem__("protein", np.log1p(a.obsm["protein"])),
            {"obsm": "protein"},
            ValueError,
            r"view 'protein': obsm\['protein'\] looks log.*pass likelihood='gaussian'",
        ),
        (
            lambda a: a.obsm.__setitem__("protein", -a.obsm["protein"]),
            {"obsm": "protein"},
            ValueError,
            r"view 'protein': obsm\['protein'\] has negative values",
        ),
        (lambda a: None, {"obsm": "proteins"}, KeyError, r"adata.obsm has no 'proteins'.*did you mean 'protein'\?"),
        (
            lambda a: a.obsm.__setitem__("p", np.ones((20, 3))),
            {"obsm": "p", "names": ["a", "b"]},
            ValueError,
            r"view 'protein': names has 2 names for the 3 features of obsm\['p'\]",
        ),
        (
            lambda a: a.obsm["protein"].__setitem__(NAMES, np.nan),
            {"obsm": "protein"},
            ValueError,
            "view 'protein': no cell has it",
        ),
        (
            lambda a: a.obsm.__setitem__("protein", a.obsm["protein"].set_axis(["a", "a", "b", "c"], axis=1)),
            {"obsm": "protein"},
            ValueError,
            r"view 'protein': obsm\['protein'\] has 'a' more than once",
        ),
        (lambda a: a.obs.__setitem__("m", 1.0), {"obsm": "protein", "measured": "m"}, ValueError, "pass True or False"),
        (
            lambda a: None,
            {"mod": ad.AnnData(np.ones((2, 2)), pd.DataFrame(index=["a", "b"]))},
            ValueError,
            "mod has none of the cells of adata",
        ),
    ],
)
def test_errors_name_the_view_and_what_is_wrong(adata, change, view, error, message):
    with pytest.raises(error, match=message):
        learned(spoilt(adata, change), **view)


@pytest.mark.parametrize(
    ("also", "error", "message"),
    [
        ({"protein": "protein"}, TypeError, "pass a dict of views by name"),
        ({"rna": scvae.View(obsm="protein")}, ValueError, "the name of the values of adata"),
        ({".protein": scvae.View(obsm="protein")}, ValueError, "the name of a view in also is '.protein'"),
    ],
)
def test_fit_refuses_views_that_cannot_be_used_and_changes_nothing(adata, digest, also, error, message):
    before = digest(adata)
    with pytest.raises(error, match=message):
        scvae.fit(adata, also=also, verbose=False)
    assert digest(adata) == before


def test_later_cells_may_all_lack_a_view_that_they_have_a_slot_for(adata, tmp_path):
    options = {"n_latent": 2, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
    model = scvae.fit(adata, protein_key="protein", **options)
    without = adata.copy()
    del without.obsm["protein"]
    with pytest.warns(UserWarning, match="has no 'protein'"):
        scvae.tl.embed(without, model)
    for empty in (np.nan, 0.0):
        adata.obsm["protein"].iloc[:] = empty
        scvae.tl.embed(adata, model)
        np.testing.assert_array_equal(adata.obsm["X_scvae"], without.obsm["X_scvae"])
    adata.obsm["protein"] = adata.obsm["protein"].to_numpy()[:, :3]
    with pytest.raises(ValueError, match=r"has 3 features without names, but the model has 4; pass a DataFrame"):
        scvae.tl.embed(adata, model)


def test_nullable_numbers_are_numbers_and_text_is_named(adata, counts):
    nullable = pd.DataFrame(counts, adata.obs_names, NAMES).astype("Int64")
    nullable.iloc[2] = pd.NA
    adata.obsm["protein"] = nullable
    cells = learned(adata)[1]
    assert cells.views[0].present.tolist() == [i != 2 for i in range(adata.n_obs)]
    adata.obsm["protein"] = pd.DataFrame(counts, adata.obs_names, NAMES).assign(note="good", other="bad")
    with pytest.raises(TypeError, match=r"columns that do not hold numbers: 'note', 'other' \(type (object|str)\)"):
        learned(adata)


def test_a_likelihood_of_proteins_that_does_not_exist_is_named_as_it_was_given(adata):
    with pytest.raises(ValueError, match=r"^protein_likelihood must be one of 'nb'.*found 'normal'"):
        scvae.fit(adata, protein_key="protein", protein_likelihood="normal")


def test_a_view_is_checked_when_it_is_made():
    with pytest.raises(ValueError, match="found neither of them"):
        scvae.View()
    with pytest.raises(ValueError, match="found both of them"):
        scvae.View(obsm="protein", mod=ad.AnnData(np.ones((2, 2))))
    with pytest.raises(ValueError, match=r"View\.likelihood.*'gaussian'"):
        scvae.View(obsm="protein", likelihood="normal")
    with pytest.raises(ValueError, match=r"View\.weight"):
        scvae.View(obsm="protein", weight=0.0)
    with pytest.raises(ValueError, match=r"View\.layer is a layer of mod"):
        scvae.View(obsm="protein", layer="counts")


def test_views_of_cells_in_a_file_are_in_obsm_or_a_second_anndata(adata, counts, tmp_path):
    path = tmp_path / "cells.h5ad"
    adata.write_h5ad(path)
    options = {"n_latent": 2, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
    model = scvae.fit(path, protein_key="protein", **options)
    scvae.fit(adata, protein_key="protein", **options)
    np.testing.assert_array_equal(ad.read_h5ad(path).obsm["X_scvae"], adata.obsm["X_scvae"])
    scvae.tl.embed(path, model, views="rna", key_added="rna")
    scvae.tl.embed(adata, model, views="rna", key_added="rna")
    np.testing.assert_array_equal(ad.read_h5ad(path).obsm["X_rna"], adata.obsm["X_rna"])
    with pytest.raises(ValueError, match=r"names of the view 'protein' are in uns, which is not read from files"):
        scvae.fit(path, also={"protein": scvae.View(obsm="protein", names="key")}, **options)
    mod = ad.AnnData(counts, pd.DataFrame(index=adata.obs_names), pd.DataFrame(index=NAMES))
    streamed = scvae.TrainingConfig(epochs=2, memory=0.0)
    on_disk = scvae.fit(path, also={"protein": scvae.View(mod=mod)}, **options | {"training": streamed})
    scvae.fit(adata, also={"protein": scvae.View(mod=mod)}, **options)
    assert on_disk.schema.view_names == ("rna", "protein")
    np.testing.assert_allclose(ad.read_h5ad(path).obsm["X_scvae"], adata.obsm["X_scvae"], atol=1e-4)


def test_proteins_of_several_files_are_matched_by_name_and_lacking_in_files_without_them(adata, tmp_path):
    options = {"n_latent": 2, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
    n = adata.n_obs // 3
    parts = {name: adata[i * n : (i + 1) * n].copy() for i, name in enumerate("abc")}
    table = parts["b"].obsm["protein"]
    parts["b"].obsm["protein"] = table[table.columns[::-1]].assign(more=1.0)
    del parts["c"].obsm["protein"]
    paths = [tmp_path / f"{name}.h5ad" for name in parts]
    for path, part in zip(paths, parts.values(), strict=True):
        part.write_h5ad(path)
    with pytest.warns(UserWarning, match=r"4 features of obsm\['protein'\] are in all files that have it.*up to 1"):
        model = scvae.fit(paths, protein_key="protein", **options)
    whole = adata[: 3 * n].copy()
    whole.obsm["protein"].iloc[2 * n :] = np.nan
    whole.obs_names = [f"{name}-{'abc'[i // n]}" for i, name in enumerate(whole.obs_names)]
    alone = scvae.fit(whole, protein_key="protein", **options)
    assert model.schema.views == alone.schema.views
    assert model.view_libraries == alone.view_libraries
    found = np.concatenate([ad.read_h5ad(path).obsm["X_scvae"] for path in paths])
    np.testing.assert_allclose(found, whole.obsm["X_scvae"], atol=1e-5)
    parts["b"].obsm["protein"] = table.to_numpy()
    parts["b"].write_h5ad(paths[1])
    with pytest.raises(ValueError, match=r"obsm\['protein'\] differs between the files .*write it as a DataFrame"):
        scvae.fit(paths, protein_key="protein", **options)
