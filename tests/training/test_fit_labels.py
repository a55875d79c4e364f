"""`fit` with labels: what it does to the embedding and the classifier, and with what other options it works."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae import TrainingConfig
from scvae.inference.cells import read_cells
from scvae.inference.label_prediction import logits_at
from scvae.inference.posterior import posterior_moments

SHORT = TrainingConfig(epochs=12)
TREE = {"type_0": ["type_1", "type_2"]}  # cells of type 0 have a coarser name


def data(n_cells=500, type_share=0.8):
    """Cells of five types in two batches; `known` has the labels of a third of the cells of the first batch."""
    adata = scvae.datasets.simulate(
        n_cells=n_cells, n_genes=150, n_batches=2, n_types=5, type_share=type_share, truth=False, rng=4
    )
    known = (adata.obs["batch"] == "batch_0").to_numpy() & (np.arange(n_cells) % 3 == 0)
    adata.obs["known"] = adata.obs["cell_type"].astype(object).where(known)
    return adata


def guesses(adata, model):
    """The most probable label of each cell."""
    mean, _ = posterior_moments(model, read_cells(adata, model, None))
    return np.array(model.schema.labels.names)[logits_at(model, mean).argmax(1)]


@pytest.fixture(scope="module")
def fitted():
    adata = data()
    return adata, scvae.fit(adata, batch_key="batch", labels_key="known", rng=0, verbose=False)


def test_labels_of_few_cells_of_one_batch_name_those_of_the_other(fitted):
    adata, model = fitted
    hidden = (adata.obs["batch"] == "batch_1").to_numpy()
    right = guesses(adata, model) == adata.obs["cell_type"].to_numpy()
    assert right[hidden].mean() > 0.75


def test_the_objective_has_the_label_term_and_the_history_its_value(fitted):
    adata, model = fitted
    plain = scvae.fit(adata.copy(), batch_key="batch", rng=0, verbose=False)
    assert "validation_label_log_likelihood" not in plain.history
    column = model.history["validation_label_log_likelihood"]
    assert column.iloc[-1] > column.iloc[0]
    assert column.iloc[-1] < 0


def test_with_weight_0_the_network_is_that_of_a_fit_without_labels():
    adata = data(n_cells=300)
    model = scvae.fit(
        adata, labels_key="known", label_weight=0.0, rng=0, verbose=False, training=SHORT, batch_key="batch"
    )
    plain = scvae.fit(adata, rng=0, verbose=False, training=SHORT, batch_key="batch")
    for name, tensor in plain.network.state_dict().items():
        torch.testing.assert_close(model.network.state_dict()[name], tensor, rtol=0, atol=0)


def test_more_weight_brings_cells_of_one_label_together():
    adata = data(type_share=0.5)
    truth = adata.obs["cell_type"].to_numpy()
    accuracy = []
    for weight in (0.0, 30.0):
        scvae.fit(adata, labels_key="cell_type", label_weight=weight, rng=0, verbose=False)
        neighbours = KNeighborsClassifier(15).fit(adata.obsm["X_scvae"], truth)
        accuracy.append(neighbours.score(adata.obsm["X_scvae"], truth))
    assert accuracy[1] > accuracy[0] + 0.1


def test_the_file_of_a_model_has_labels_and_classifier(fitted, tmp_path):
    adata, model = fitted
    found = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert found.schema.labels == model.schema.labels
    assert found.labels.temperature == model.labels.temperature
    np.testing.assert_array_equal(found.labels.place, model.labels.place)
    assert (guesses(adata, found) == guesses(adata, model)).all()


@pytest.mark.parametrize(
    "options",
    [
        {"beta": (0.5, 2.0)},
        {"likelihood": "poisson", "training": TrainingConfig(epochs=12, free_bits=0.1)},
        {"training": TrainingConfig(epochs=12, capacity=5.0)},
        {"network": scvae.NetworkConfig(decoder="linear")},
        {"network": scvae.NetworkConfig(dropout=0.1, norm="batch")},
        {"n_latent": "auto"},
    ],
    ids=["range of β", "free bits", "capacity", "linear decoder", "dropout", "auto"],
)
def test_labels_work_with_other_options(options):
    adata = data(n_cells=300)
    model = scvae.fit(
        adata, batch_key="batch", labels_key="known", rng=0, verbose=False, **({"training": SHORT} | options)
    )
    assert model.labels.place.shape[1] == model.n_latent == model.network.classifier.weight.shape[0]
    assert model.network.classifier.weight.abs().max() > 0.05


def test_training_goes_on_from_a_model_with_or_without_labels(fitted):
    adata, model = fitted
    more = scvae.fit(adata.copy(), init=model, rng=1, verbose=False, training=TrainingConfig(epochs=2))
    assert more.schema.labels == model.schema.labels
    assert not torch.equal(more.network.classifier.weight, model.network.classifier.weight)
    plain = scvae.fit(adata.copy(), batch_key="batch", rng=0, verbose=False, training=SHORT)
    taught = scvae.fit(adata.copy(), init=plain, labels_key="known", rng=0, verbose=False, training=SHORT)
    assert taught.schema.labels.names == model.schema.labels.names
    assert taught.labels is not None


def test_labels_that_appear_later_are_added_and_the_others_keep_their_weights(fitted):
    adata, model = fitted
    adata = adata.copy()
    adata.obs["known"] = adata.obs["known"].astype(object)
    adata.obs.loc[adata.obs["cell_type"] == "type_0", "known"] = "new"
    more = scvae.fit(
        adata, init=model, labels_key="known", rng=1, verbose=False, training=TrainingConfig(epochs=1, learning_rate=0)
    )
    assert more.schema.labels.names == (*model.schema.labels.names, "new")
    torch.testing.assert_close(more.network.classifier.weight[:, :5], model.network.classifier.weight)
    assert (more.network.classifier.weight[:, 5] == 0).all()
    with pytest.raises(ValueError, match="labels_key='cell_type' \\(the model has 'known'\\)"):
        scvae.fit(adata, init=model, labels_key="cell_type", verbose=False)


def test_a_run_resumed_from_a_checkpoint_ends_alike_and_needs_the_same_labels(tmp_path):
    adata, path = data(n_cells=300), tmp_path / "run.checkpoint"
    options = {"batch_key": "batch", "labels_key": "known", "label_hierarchy": TREE, "rng": 0, "verbose": False}
    whole = scvae.fit(adata.copy(), training=TrainingConfig(epochs=4), **options)
    from scvae.training import train

    class Stop(Exception):
        pass

    saved = train.save_checkpoint

    def save_and_stop(*arguments):
        saved(*arguments)
        raise Stop

    train.save_checkpoint = save_and_stop
    try:
        with pytest.raises(Stop):
            scvae.fit(adata.copy(), training=TrainingConfig(epochs=4), checkpoint=path, **options)
    finally:
        train.save_checkpoint = saved
    other = adata.copy()
    other.obs["known"] = other.obs["known"].to_numpy()[::-1]
    with pytest.raises(ValueError, match="data differ"):
        scvae.fit(other, training=TrainingConfig(epochs=4), checkpoint=path, **options)
    resumed = scvae.fit(adata.copy(), training=TrainingConfig(epochs=4), checkpoint=path, **options)
    assert resumed.digest == whole.digest


def test_files_on_disk_give_the_same_labels(tmp_path):
    adata = data(n_cells=300)
    options = {"batch_key": "batch", "labels_key": "known", "label_hierarchy": TREE, "rng": 0, "verbose": False}
    adata.write_h5ad(tmp_path / "cells.h5ad")
    on_disk = TrainingConfig(epochs=12, memory=1e-5)
    model = scvae.fit(tmp_path / "cells.h5ad", training=on_disk, **options)
    inside = scvae.fit(adata, training=SHORT, **options)
    assert model.schema.labels == inside.schema.labels
    assert abs(model.labels.held_out - inside.labels.held_out).max() < 5.0
    assert (model.labels.truth == inside.labels.truth).all()
    assert model.labels.truth.max() == 4  # four names, and the coarser one
    assert model.network.classifier.weight.abs().max() > 0.05


@pytest.fixture(scope="module")
def coarse():
    """Cells of three batches: types 1 and 3 have one name in the second batch, and the third has no labels."""
    adata = scvae.datasets.simulate(
        n_cells=900, n_genes=150, n_batches=3, n_types=5, type_share=0.8, truth=False, rng=7
    )
    batch, known = adata.obs["batch"], adata.obs["cell_type"].astype(object)
    known = known.where(batch != "batch_1", known.replace({"type_1": "odd", "type_3": "odd"}))
    adata.obs["known"] = known.where(batch != "batch_2")
    options = {"batch_key": "batch", "labels_key": "known", "label_hierarchy": {"odd": ["type_1", "type_3"]}}
    return adata, scvae.fit(adata, rng=0, verbose=False, **options)


def test_fine_names_are_found_where_labels_are_coarse(coarse):
    adata, model = coarse
    assert model.schema.labels.names == tuple(f"type_{i}" for i in range(5))
    right = guesses(adata, model) == adata.obs["cell_type"].to_numpy()
    odd = adata.obs["cell_type"].isin(["type_1", "type_3"]).to_numpy()
    for batch, least in (("batch_1", 0.95), ("batch_2", 0.87)):  # 0.88 and 0.83 without the coarse labels
        assert right[odd & (adata.obs["batch"] == batch)].mean() > least
    assert right[~odd].mean() > 0.9
    column = model.history["validation_label_log_likelihood"]
    assert column.iloc[0] < column.iloc[-1] < 0
    assert (model.labels.truth == 5).any()  # coarse, as it was given
    assert model.labels.label.max() == 4


def test_a_file_keeps_coarse_labels_and_training_goes_on_with_them(coarse, tmp_path):
    adata, model = coarse
    found = scvae.load(model.save(tmp_path / "model.safetensors"))
    assert found.schema.labels == model.schema.labels
    assert torch.equal(found.network.classifier.members, model.network.classifier.members)
    assert "odd (over 2)" in found.card()
    names = []
    for each in (model, found):
        scvae.tl.predict_labels(adata, each, hierarchy={"odd": ["type_1", "type_3"]}, max_error=0.05)
        names.append(adata.obs["scvae_label"].astype(str).tolist())
    assert names[0] == names[1]
    assert {"odd", "type_1"} <= set(names[0])
    more = scvae.fit(adata.copy(), init=found, rng=1, verbose=False, training=TrainingConfig(epochs=1))
    assert more.schema.labels == model.schema.labels


def test_a_refused_label_leaves_adata_as_it_was(digest):
    adata = data(n_cells=100)
    before = digest(adata)
    alone = ({"unlabelled": "type_0"}, {"label_hierarchy": {"type_0": "odd"}})  # without the column
    tree = {"labels_key": "known", "label_hierarchy": {"type": "odd"}}
    for wrong in (
        {"labels_key": "known", "unlabelled": "?"},
        {"labels_key": "none"},
        {"label_weight": -1.0},
        tree,
        *alone,
    ):
        with pytest.raises(ValueError):  # noqa: PT011
            scvae.fit(adata, verbose=False, **wrong)
    assert digest(adata) == before
