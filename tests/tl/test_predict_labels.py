"""`tl.predict_labels`: names, what they are worth, cells without a counterpart, and names as deep as is sure."""

import functools

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvae
from scvae import TrainingConfig
from scvae.common.checks import MissingKeyError


@functools.cache
def example(absent=None):
    """A model of two labelled batches and one without labels, maybe without labels of one type, and all its cells."""
    adata = scvae.datasets.simulate(
        n_cells=1200, n_genes=150, n_batches=3, n_types=6, batch_effect=0.5, type_share=0.8, truth=False, rng=2
    )
    adata = ad.AnnData(adata.X, obs=adata.obs.astype(str), var=adata.var)
    known = (adata.obs["batch"] != "batch_2") & (adata.obs["cell_type"] != absent)
    adata.obs["known"] = adata.obs["cell_type"].where(known, "none yet")
    kept = adata[(adata.obs["cell_type"] != absent) | (adata.obs["batch"] == "batch_2")].copy()
    options = {"batch_key": "batch", "labels_key": "known", "unlabelled": "none yet", "rng": 0, "verbose": False}
    return kept, scvae.fit(kept, training=TrainingConfig(epochs=40), **options)


def hidden(absent=None):
    """A copy of the cells without labels, and the model."""
    adata, model = example(absent)
    return adata[adata.obs["batch"] == "batch_2"].copy(), model


def calibration_error(query, n_bins=10):
    """Expected calibration error (Guo et al. 2017)."""
    confidence = 1.0 - query.obs["scvae_label_uncertainty"].to_numpy()
    right = (query.obs["scvae_label"].astype(str) == query.obs["cell_type"].astype(str)).to_numpy()
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    return sum(abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))


def test_names_are_right_and_their_probability_is_calibrated():
    query, model = hidden()
    scvae.tl.predict_labels(query, model, unknown_above=1.0, probabilities=True)
    assert (query.obs["scvae_label"].astype(str) == query.obs["cell_type"]).mean() > 0.85
    assert calibration_error(query) < 0.08
    table = query.obsm["scvae_label_probability"]
    assert list(table.columns) == list(model.schema.labels.names)
    np.testing.assert_allclose(table.sum(axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(1.0 - table.max(axis=1), query.obs["scvae_label_uncertainty"], atol=1e-6)


def test_most_cells_of_a_type_without_labels_are_called_unknown_and_few_others():
    query, model = hidden(absent="type_3")
    scvae.tl.predict_labels(query, model)
    unknown, absent = query.obs["scvae_label"] == "unknown", query.obs["cell_type"] == "type_3"
    assert unknown[absent].mean() > 0.5
    assert unknown[~absent].mean() < 0.2


def test_the_slots_are_those_of_transfer_labels_and_nothing_else_changes(digest):
    query, model = hidden()
    before = digest(query)
    copied = scvae.tl.predict_labels(query, model, copy=True)
    assert digest(query) == before
    scvae.tl.predict_labels(query, model, key_added="there")
    written = set(query.obs) - set(copied.obs)
    assert written == {"there_label", "there_label_uncertainty", "there_outlier"}
    changed = {name for name, value in digest(query).items() if value != before[name]}
    assert changed == {"obs", "uns"}
    assert set(query.uns["there"]) == {"models", "checksums", "label_confidence"}


def test_with_a_tree_names_are_less_deep_where_types_look_alike_and_few_are_wrong():
    query, model = hidden()
    tree = {f"type_{i}": f"group {i // 3}" for i in range(6)}
    scvae.tl.predict_labels(query, model, hierarchy=tree, unknown_above=1.0)
    name, truth = query.obs["scvae_label"].astype(str), query.obs["cell_type"].astype(str)
    right = (name == truth) | (name == truth.map(tree))
    named = name != "unknown"
    assert named.mean() > 0.5
    assert right[named].mean() > 0.9
    share = query.uns["scvae"]["label_confidence"]["depth"]
    assert share[0] == pytest.approx(1 - named.mean())
    assert share[1] == pytest.approx(name.str.startswith("group").mean())
    assert (
        query.obs["scvae_label_uncertainty"][named]
        <= 1 - query.uns["scvae"]["label_confidence"]["least_probability"] + 1e-9
    ).all()


def test_a_tree_can_be_columns_of_obs_or_learnt():
    query, model = hidden()
    query.obs["coarse"] = "group " + (query.obs["cell_type"].str[-1].astype(int) // 3).astype(str)
    scvae.tl.predict_labels(query, model, hierarchy=["coarse", "cell_type"], max_error=0.2)
    assert {"group 0", "group 1", "unknown", "type_5"} <= set(query.obs["scvae_label"].cat.categories)
    scvae.tl.predict_labels(query, model, hierarchy="learnt", max_error=0.2, unknown_above=1.0)
    assert set(query.obs["scvae_label"].cat.categories) > set(model.schema.labels.names)


def test_a_tree_can_come_with_the_reference_in_the_models_file(tmp_path):
    adata, model = example()
    adata = adata.copy()
    adata.obs["group"] = np.where(adata.obs["cell_type"].isin(["type_0", "type_1"]), "low", "high")
    loaded = scvae.load(model.save(tmp_path / "ref", reference=adata, labels=["group", "cell_type"]))
    columns = {key: adata.obs[key].to_numpy() for key in ("group", "cell_type")}
    query, here = hidden()[0], hidden()[0]
    del here.obs["cell_type"]
    for cells, which in ((query, model), (here, loaded)):
        if which is model:
            cells.obs["group"] = pd.DataFrame(columns, index=adata.obs_names)["group"]
        scvae.tl.predict_labels(cells, which, hierarchy=["group", "cell_type"], max_error=0.02)
    assert here.obs["scvae_label"].tolist() == query.obs["scvae_label"].tolist()
    assert set(here.obs["scvae_label"].cat.categories) >= {"low", "high"}


def test_results_can_be_written_to_a_file(tmp_path):
    query, model = hidden()
    scvae.tl.predict_labels(query, model, hierarchy="learnt", probabilities=True)
    query.write_h5ad(tmp_path / "labelled.h5ad")
    found = ad.read_h5ad(tmp_path / "labelled.h5ad")
    pd.testing.assert_frame_equal(found.obsm["scvae_label_probability"], query.obsm["scvae_label_probability"])


def test_a_mapped_batch_can_be_named():
    adata, model = example()
    new = adata[adata.obs["batch"] == "batch_2"].copy()
    new.obs["batch"] = "another"
    mapped = scvae.tl.map_query(new, model, verbose=False)
    scvae.tl.predict_labels(new, mapped, unknown_above=1.0)
    assert (new.obs["scvae_label"].astype(str) == new.obs["cell_type"]).mean() > 0.75


def test_a_pruned_model_names_cells_too():
    adata = scvae.datasets.simulate(n_cells=400, n_genes=60, n_latent=2, n_types=3, truth=False, rng=0)
    model = scvae.fit(adata, n_latent=12, labels_key="cell_type", rng=0, verbose=False)
    pruned = scvae.tl.prune(adata, model, epochs=1, verbose=False)
    assert pruned.labels.place.shape[1] == pruned.n_latent < 12
    right = []
    for each in (model, pruned):
        scvae.tl.predict_labels(adata, each, unknown_above=1.0)
        right.append((adata.obs["scvae_label"].astype(str) == adata.obs["cell_type"].astype(str)).mean())
    assert right[1] > right[0] - 0.05


def test_what_cannot_be_done_gets_one_line_and_leaves_adata_as_it_was(digest):
    query, model = hidden()
    before = digest(query)
    bare = scvae.fit(query.copy(), rng=0, verbose=False, training=TrainingConfig(epochs=1))
    with pytest.raises(ValueError, match=r"fitted without labels.*transfer_labels"):
        scvae.tl.predict_labels(query, bare)
    with pytest.raises(MissingKeyError, match="coarse"):
        scvae.tl.predict_labels(query, model, hierarchy=["coarse"])
    with pytest.raises(ValueError, match="max_error"):
        scvae.tl.predict_labels(query, model, max_error=1.5)
    unsplit = TrainingConfig(epochs=1, validation_fraction=0.0)
    other = scvae.fit(query.copy(), labels_key="cell_type", rng=0, verbose=False, training=unsplit)
    with pytest.raises(ValueError, match="validation_fraction above 0"):
        scvae.tl.predict_labels(query, other, hierarchy="learnt")
    assert digest(query) == before
    scvae.tl.predict_labels(query, other)
    assert other.labels.temperature == pytest.approx(1.0, abs=1e-4)
    assert other.labels.uniform == pytest.approx(0.0, abs=1e-4)
