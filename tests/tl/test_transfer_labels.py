"""`tl.transfer_labels`: labels, what they are worth, and cells that the reference has no counterpart of."""

import functools
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scvae
from scvae import TrainingConfig
from scvae.common.checks import MissingKeyError

PANCREAS = Path(__file__).parents[3] / "shared" / "data" / "pancreas4.h5ad"


def calibration_error(query, truth, n_bins=10):
    """Expected calibration error (Guo et al. 2017) over cells whose true label the reference has."""
    confidence = 1.0 - query.obs["scvae_label_uncertainty"].to_numpy()
    right = (query.obs["scvae_label"].astype(str) == truth).to_numpy()
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return sum(abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))


@functools.cache
def example(absent=None):
    """A reference of two batches, maybe without one type, and a mapped query of a third batch with all types."""
    adata = scvae.datasets.simulate(
        n_cells=1200, n_genes=150, n_batches=3, n_types=6, batch_effect=0.5, type_share=0.8, truth=False, rng=2
    )
    adata = ad.AnnData(adata.X, obs=adata.obs.astype(str), var=adata.var)
    is_new = (adata.obs["batch"] == "batch_2").to_numpy()
    reference, query = adata[~is_new & (adata.obs["cell_type"] != absent).to_numpy()].copy(), adata[is_new].copy()
    model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False, training=TrainingConfig(epochs=40))
    return reference, query, scvae.tl.map_query(query, model, verbose=False)


def test_labels_are_right_and_their_uncertainty_is_calibrated():
    reference, query, mapped = example()
    query = query.copy()
    scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", unknown_above=1.0)
    assert (query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).mean() > 0.85
    assert calibration_error(query, query.obs["cell_type"]) < 0.08
    assert query.obs["scvae_label_uncertainty"].between(0, 1).all()


def test_most_cells_of_a_type_that_the_reference_lacks_are_called_unknown_and_few_others():
    reference, query, mapped = example(absent="type_3")
    query = query.copy()
    scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type")
    unknown, absent = query.obs["scvae_label"] == "unknown", query.obs["cell_type"] == "type_3"
    assert unknown[absent].mean() > 0.5
    assert unknown[~absent].mean() < 0.15


def test_only_three_columns_are_written_and_a_copy_leaves_adata_alone(digest):
    reference, query, mapped = example()
    query = query.copy()
    before = digest(query)
    copied = scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", copy=True)
    assert digest(query) == before
    scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", key_added="there")
    written = set(query.obs) - set(copied.obs)
    assert written == {"there_label", "there_label_uncertainty", "there_outlier"}
    assert (query.obs["there_label"].astype(str) == copied.obs["scvae_label"].astype(str)).all()
    changed = {name for name, value in digest(query).items() if value != before[name]}
    assert changed == {"obs", "uns"}  # uns records the model
    assert set(query.uns["there"]) == {"models", "checksums"}


def test_the_reference_in_the_file_gives_the_labels_that_its_cells_give(tmp_path):
    reference, query, mapped = example(absent="type_3")
    some = reference.copy()
    some.obs["cell_type"] = some.obs["cell_type"].astype(object).where(np.arange(some.n_obs) % 5 > 0)
    loaded = scvae.load(mapped.save(tmp_path / "ref.safetensors", reference=some, labels=["batch", "cell_type"]))
    there, here = query.copy(), query.copy()
    scvae.tl.transfer_labels(there, mapped, reference=some, labels_key="cell_type")
    scvae.tl.transfer_labels(here, loaded, labels_key="cell_type")
    assert (here.obs["scvae_label"].astype(str) == there.obs["scvae_label"].astype(str)).mean() > 0.995
    for column in ("scvae_label_uncertainty", "scvae_outlier"):  # but for the rounding of the latents
        assert np.abs(here.obs[column] - there.obs[column]).mean() < 0.002


def test_a_query_is_mapped_and_labelled_with_the_file_alone(tmp_path):
    reference, query, _ = example()
    model = scvae.fit(reference.copy(), batch_key="batch", rng=0, verbose=False, training=TrainingConfig(epochs=40))
    path, query = model.save(tmp_path / "ref.safetensors", reference=reference, labels="cell_type"), query.copy()
    mapped = scvae.tl.map_query(query, scvae.load(path), verbose=False)
    scvae.tl.transfer_labels(query, mapped, unknown_above=1.0)  # of the only column of labels
    assert (query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).mean() > 0.85
    again = scvae.load(mapped.save(tmp_path / "mapped.safetensors"))  # the reference goes on with the model
    assert again.reference.mean.tobytes() == mapped.reference.mean.tobytes()


def test_with_the_tree_in_the_file_names_are_less_deep_where_types_look_alike(tmp_path):
    reference, query, mapped = example()
    some, query = reference.copy(), query.copy()
    rng = np.random.default_rng(0)
    blurred = rng.permutation(["type_0", "type_1"] * 400)  # no classifier tells these two apart
    for cells in (some, query):
        alike = cells.obs["cell_type"].isin(["type_0", "type_1"]).to_numpy()
        cells.obs["fine"] = np.where(alike, blurred[: cells.n_obs], cells.obs["cell_type"])
        cells.obs["coarse"] = np.where(alike, "either", cells.obs["fine"])
    loaded = scvae.load(mapped.save(tmp_path / "ref", reference=some, labels=["coarse", "fine"]))
    given = {"labels_key": "fine", "hierarchy": ["coarse", "fine"], "unknown_above": 1.0, "max_error": 0.1}
    truth = query.obs[["coarse", "fine"]]
    del query.obs["coarse"], query.obs["fine"]
    scvae.tl.transfer_labels(query, loaded, **given)
    names = query.obs["scvae_label"].astype(str)
    right = (names == truth["fine"]) | (names == truth["coarse"])
    named, alike = names != "unknown", truth["coarse"] == "either"
    assert named.mean() > 0.9
    assert (~right[named]).mean() < 0.15
    assert (names[alike & named] == "either").mean() > 0.7
    assert (names[~alike] != "either").mean() > 0.9
    assert query.uns["scvae"]["label_confidence"]["max_error"] == 0.1
    flat = scvae.tl.transfer_labels(query, loaded, labels_key="fine", unknown_above=1.0, copy=True)
    assert (flat.obs["scvae_label"].astype(str) != truth["fine"])[alike].mean() > 0.35  # half, if names are guessed
    scvae.tl.transfer_labels(query, mapped, reference=some, key_added="there", **given)  # as the cells themselves
    assert (query.obs["there_label"].astype(str) == names).mean() > 0.97


def test_what_a_file_lacks_is_said_in_one_line(tmp_path, digest):
    reference, query, mapped = example()
    query = query.copy()
    two = scvae.load(mapped.save(tmp_path / "two", reference=reference, labels=["batch", "cell_type"]))
    none = scvae.load(mapped.save(tmp_path / "none", reference=reference))
    before = digest(query)
    for model, options, error, message in (
        (mapped, {}, ValueError, "without reference= needs a reference in the model's file, and it has none; add it"),
        (none, {}, ValueError, r"has 0 columns of labels \(none\); save it again with labels="),
        (two, {}, ValueError, r"has 2 columns of labels \('batch', 'cell_type'\); pass one as labels_key"),
        (two, {"labels_key": "celltype"}, MissingKeyError, "no 'celltype'.*did you mean 'cell_type'"),
        (two, {"labels_key": "batch", "reference_layer": "X"}, ValueError, "reference_layer is of an AnnData"),
        (two, {"reference": reference}, ValueError, "labels_key is missing"),
        (two, {"labels_key": "batch", "hierarchy": ["lineage", "batch"]}, MissingKeyError, "no 'lineage'"),
    ):
        with pytest.raises(error, match=message):
            scvae.tl.transfer_labels(query, model, **options)
    assert digest(query) == before


def test_reference_cells_without_a_label_are_left_out():
    reference, query, mapped = example()
    query, some = query.copy(), reference.copy()
    some.obs["cell_type"] = some.obs["cell_type"].where(some.obs["cell_type"] != "type_0")
    scvae.tl.transfer_labels(query, mapped, reference=some, labels_key="cell_type", unknown_above=1.0)
    assert "type_0" not in query.obs["scvae_label"].cat.categories
    assert isinstance(query.obs["scvae_label"].dtype, pd.CategoricalDtype)


def test_wrong_input_is_refused_and_nothing_is_written(digest):
    reference, query, mapped = example()
    query, named, one = query.copy(), reference.copy(), reference.copy()
    named.obs["cell_type"] = ["unknown", *named.obs["cell_type"][1:]]
    one.obs["cell_type"] = ["a", *[None] * (one.n_obs - 1)]
    one.obs["depth"] = np.linspace(0.0, 1.0, one.n_obs)
    before = digest(query)
    with pytest.raises(MissingKeyError, match="has no 'type'"):
        scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="type")
    with pytest.raises(ValueError, match="has the label 'unknown'"):
        scvae.tl.transfer_labels(query, mapped, reference=named, labels_key="cell_type")
    with pytest.raises(ValueError, match="labels 1 cells"):
        scvae.tl.transfer_labels(query, mapped, reference=one, labels_key="cell_type")
    with pytest.raises(ValueError, match=r"reference.obs\['depth'\] has .* different values .* labels that many cells"):
        scvae.tl.transfer_labels(query, mapped, reference=one, labels_key="depth")
    with pytest.raises(ValueError, match="unknown_above is 2"):
        scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", unknown_above=2)
    assert digest(query) == before


@pytest.mark.slow
@pytest.mark.skipif(not PANCREAS.exists(), reason="the set is not part of the package")
def test_a_study_of_the_pancreas_is_labelled_with_calibrated_uncertainty():
    adata = ad.read_h5ad(PANCREAS)
    adata = ad.AnnData(adata.X, obs=adata.obs[["batch", "cell_type"]].astype(str), var=adata.var[[]])
    is_new = adata.obs["batch"].str.startswith("Fasolino").to_numpy()
    reference, query = adata[~is_new].copy(), adata[is_new].copy()
    # chosen as users do, on the reference alone
    logged = sc.pp.log1p(sc.pp.normalize_total(reference, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(logged, n_top_genes=1000, batch_key="batch")
    reference.var["highly_variable"] = logged.var["highly_variable"]
    right = []
    for seed in (0, 1):  # which moves the share by 0.03
        model = scvae.fit(reference, batch_key="batch", rng=seed, verbose=False)
        mapped = scvae.tl.map_query(query, model, verbose=False)
        scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type", unknown_above=1.0)
        right.append((query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).mean())
        assert calibration_error(query, query.obs["cell_type"]) < 0.1
    assert np.mean(right) > 0.8, right


def test_reference_and_query_that_lack_different_genes_are_compared_by_those_they_share():
    reference, query, mapped = example()
    order = np.argsort(-np.asarray(reference.X.sum(0)).ravel())
    abundant, rare = order[:15], order[-15:]
    lacking, other = reference[:, np.setdiff1d(order, abundant)].copy(), query[:, np.setdiff1d(order, rare)].copy()
    with pytest.warns(UserWarning, match="has 135 of the 150") as seen:
        scvae.tl.transfer_labels(other, mapped, reference=lacking, labels_key="cell_type")
    assert [str(warning.message)[:30] for warning in seen] == [
        "adata has 135 of the 150 model", "reference has 135 of the 150 m",
    ]  # fmt: skip
    shared = np.setdiff1d(order, np.union1d(abundant, rare))
    both = query[:, shared].copy()
    with pytest.warns(UserWarning, match="120 of the 150"):
        scvae.tl.transfer_labels(both, mapped, reference=reference[:, shared].copy(), labels_key="cell_type")
    same = other.obs["scvae_label"].astype(str) == both.obs["scvae_label"].astype(str)
    assert same.mean() > 0.97
    assert (other.obs["scvae_label"].astype(str) == query.obs["cell_type"]).mean() > 0.7


def test_reference_and_query_with_too_few_genes_in_common_are_refused():
    reference, query, mapped = example()
    some, others = query[:, 60:].copy(), reference[:, :100].copy()
    columns = list(some.obs)
    with (
        pytest.warns(UserWarning, match="of the 150 modelled genes"),
        pytest.raises(ValueError, match=r"have 40 of the 150 modelled genes in common.*at least half"),
    ):
        scvae.tl.transfer_labels(some, mapped, reference=others, labels_key="cell_type")
    assert list(some.obs) == columns


def test_what_is_wrong_with_the_reference_is_said_of_it():
    reference, query, mapped = example()
    query, normalised = query.copy(), reference.copy()
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    for wrong, key, error, message in (
        (reference, "celltype", MissingKeyError, r"^reference\.obs has no 'celltype'.*did you mean 'cell_type'"),
        (reference, ["cell_type"], TypeError, r"^reference\.obs: \['cell_type'\] is a list"),
        (normalised, "cell_type", ValueError, r"^reference: X looks log-normalised"),
        ("cells.h5ad", "cell_type", TypeError, r"^reference is a str"),
    ):
        with pytest.raises(error, match=message):
            scvae.tl.transfer_labels(query, mapped, reference=wrong, labels_key=key)


def test_the_counts_of_the_reference_may_lie_elsewhere():
    reference, query, mapped = example()
    query, normalised = query.copy(), reference.copy()
    scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type")
    expected = query.obs.copy()
    normalised.layers["counts"] = normalised.X.copy()
    sc.pp.normalize_total(normalised)
    sc.pp.log1p(normalised)
    with pytest.raises(ValueError, match=r"^reference: X looks .*pass raw counts: reference_layer='counts' looks like"):
        scvae.tl.transfer_labels(query, mapped, reference=normalised, labels_key="cell_type")
    scvae.tl.transfer_labels(
        query, mapped, reference=normalised, labels_key="cell_type", reference_layer="counts", key_added="there"
    )
    np.testing.assert_array_equal(query.obs["there_outlier"], expected["scvae_outlier"])
    assert (query.obs["there_label"] == expected["scvae_label"]).all()


def test_a_query_of_empty_cells_alone_is_called_something_without_a_warning():
    reference, query, mapped = example()
    empty = query[:12].copy()
    empty.X = sparse.csr_matrix(empty.shape, dtype=np.float32)
    scvae.tl.transfer_labels(empty, mapped, reference=reference, labels_key="cell_type")
    assert np.isfinite(empty.obs["scvae_outlier"]).all()


def test_a_backed_query_can_be_copied(tmp_path):
    reference, query, mapped = example()
    query.write_h5ad(tmp_path / "query.h5ad")
    backed = ad.read_h5ad(tmp_path / "query.h5ad", backed="r")
    labelled = scvae.tl.transfer_labels(backed, mapped, reference=reference, labels_key="cell_type", copy=True)
    assert not labelled.isbacked
    assert "scvae_label" in labelled.obs
    assert "scvae_label" not in backed.obs
    backed.file.close()
