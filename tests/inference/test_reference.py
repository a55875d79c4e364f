"""The reference in a model's file: what it keeps, what it takes, and that a foreign or cut one is refused."""

import dataclasses
import zlib

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import NetworkConfig, TrainingConfig
from scvae.common.checks import MissingKeyError

TRAINING = TrainingConfig(epochs=4, batch_size=64)


def barcodes(n, seed=0):
    letters = np.random.default_rng(seed).choice(list("ACGT"), size=(n, 16))
    return ["".join(row) + "-1" for row in letters]


@pytest.fixture(scope="module")
def fitted():
    """Cells with labels of two depths and a UMAP, and a model of them."""
    adata = scvae.datasets.simulate(n_cells=300, n_genes=40, n_types=4, truth=False, rng=0)
    adata.obs_names = barcodes(300)
    adata.obs["group"] = adata.obs["cell_type"].isin(["type_0", "type_1"]).map({True: "A", False: "B"})
    adata.obs["some"] = adata.obs["cell_type"].astype(object).where(np.arange(300) % 3 > 0)
    adata.obsm["X_umap"] = np.random.default_rng(1).normal(size=(300, 2)).astype(np.float32)
    network = NetworkConfig(width=16)
    return adata, scvae.fit(adata, n_latent=20, network=network, training=TRAINING, rng=0, verbose=False)


@pytest.fixture(scope="module")
def saved(fitted, tmp_path_factory):
    """The file, with the model as it comes back."""
    adata, model = fitted
    path = tmp_path_factory.mktemp("saved") / "ref.safetensors"
    model.save(path, reference=adata, labels=["group", "some"], umap=True)
    return path, scvae.load(path)


def test_latents_come_back_to_half_precision_and_the_rest_to_the_bit(fitted, saved):
    adata, reference = fitted[0], saved[1].reference
    there = reference.to_adata()
    for slot in ("X_scvae", "X_scvae_var"):
        np.testing.assert_allclose(there.obsm[slot], adata.obsm[slot], rtol=2.0**-11, atol=2.0**-24)
    assert reference.umap.tobytes() == adata.obsm["X_umap"].tobytes()
    assert there.obsm["X_scvae_umap"].tobytes() == adata.obsm["X_umap"].tobytes()
    assert there.obs_names.tolist() == adata.obs_names.tolist()
    assert there.n_vars == 0
    assert there.obs["group"].tolist() == adata.obs["group"].tolist()
    labels = adata.obs["some"]
    assert there.obs["some"].isna().tolist() == labels.isna().tolist()
    assert there.obs["some"].dropna().tolist() == labels.dropna().tolist()


def test_the_file_has_no_counts_and_takes_at_most_100_bytes_a_cell(fitted, saved, tmp_path):
    path, loaded = saved
    tensors = {name: tensor for name, tensor in load_file(path).items() if name.startswith("reference.")}
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items() if name != "reference.ids"} == {
        "reference.mean": (300, 20), "reference.variance": (300, 20), "reference.umap": (300, 2),
        "reference.label.0": (300,), "reference.label.1": (300,),
    }  # fmt: skip
    assert {str(tensor.dtype) for tensor in tensors.values()} == {
        "torch.float16", "torch.float32", "torch.int8", "torch.uint8",
    }  # fmt: skip
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert loaded.reference.bytes_per_cell == n_bytes / 300
    assert 90 + 4 < n_bytes / 300 <= 100  # 80 of latents, 8 of the UMAP, 2 of labels, and 16 letters of 2 bits
    grown = path.stat().st_size - fitted[1].save(tmp_path / "alone").stat().st_size
    assert grown / 300 < 100 + 2000 / 300  # the head of the file


def test_names_that_do_not_fit_are_kept_only_if_asked_for(fitted, tmp_path):
    adata, model = fitted
    adata = adata.copy()
    adata.obs_names = ["".join(row) for row in np.random.default_rng(0).choice(list("0123456789abcdef"), (300, 36))]
    for ids, kept in ((None, False), (True, True), (False, False)):
        reference = scvae.load(model.save(tmp_path / "ref", reference=adata, umap=True, ids=ids)).reference
        assert (reference.packed is not None) == kept
        assert reference.ids.tolist() == (list(adata.obs_names) if kept else [str(i) for i in range(300)])


def test_a_model_without_a_reference_is_the_same_file_as_before(fitted, saved, tmp_path):
    assert fitted[1].reference is None
    with safe_open(fitted[1].save(tmp_path / "alone"), framework="pt") as file:
        assert not [name for name in file.keys() if name.startswith("reference")]  # noqa: SIM118
        assert "reference" not in file.metadata()["record"]
    again = load_file(saved[1].save(tmp_path / "again"))  # what was loaded with one keeps it
    assert {name: tensor.numpy().tobytes() for name, tensor in again.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in load_file(saved[0]).items()
    }


def test_it_says_what_is_in_it(saved):
    model = saved[1]
    assert model.summary()["reference"] == "300 cells, group, some, UMAP"
    for text in (repr(model.reference), model.reference._repr_html_()):
        assert "4 labels in 200 cells" in text
        assert "bytes per cell" in text


def test_a_umap_may_have_another_name(fitted, tmp_path):
    adata, model = fitted
    bare = adata.copy()
    bare.obsm["other"] = bare.obsm.pop("X_umap")
    named = scvae.load(model.save(tmp_path / "ref", reference=bare, umap="other")).reference
    assert named.umap.tobytes() == adata.obsm["X_umap"].tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("parts", [1, 2])
def test_cells_in_files_make_the_reference_that_they_make_in_memory(fitted, saved, tmp_path, parts):
    adata, model = fitted
    files = [tmp_path / f"{i}.h5ad" for i in range(parts)]
    for i, file in enumerate(files):
        adata[i * 300 // parts : (i + 1) * 300 // parts].copy().write_h5ad(file)
    model.save(tmp_path / "a", reference=files[0] if parts == 1 else files, labels=["group", "some"], umap=True)
    found, expected = scvae.load(tmp_path / "a").reference, saved[1].reference
    assert found.mean.tobytes() == expected.mean.tobytes()
    assert found.umap.tobytes() == expected.umap.tobytes()
    assert [list(labels) for labels in found.labels.values()] == [list(labels) for labels in expected.labels.values()]
    assert [name[:18] for name in found.ids] == adata.obs_names.tolist()
    with pytest.raises(MissingKeyError, match=r"0\.h5ad.*'X_tsne'.*'X_umap'"):
        model.save(tmp_path / "b", reference=files, umap="X_tsne")
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_umap_is_made_where_there_is_none(fitted, tmp_path):
    adata, model = fitted
    bare = adata.copy()
    del bare.obsm["X_umap"]
    made = [scvae.load(model.save(tmp_path / "ref", reference=bare, umap=True)).reference for _ in range(2)]
    assert made[0].umap.tobytes() == made[1].umap.tobytes()
    assert "X_umap" not in bare.obsm
    near = {  # neighbours on the layout are near each other in the latent space
        name: NearestNeighbors(n_neighbors=15).fit(points.astype(float)).kneighbors(return_distance=False)
        for name, points in (("latent", made[0].mean), ("layout", made[0].umap))
    }
    shared = np.mean([len(set(a) & set(b)) / 15 for a, b in zip(near["latent"], near["layout"], strict=True)])
    assert shared > 0.25  # by chance 15 / 299


def test_wrong_input_is_refused_and_the_file_before_stays(fitted, tmp_path, digest):
    adata, model = fitted
    path = model.save(tmp_path / "ref", labels=None)
    before, content = digest(adata), path.read_bytes()
    twice, flat, unknown = adata.copy(), adata.copy(), adata.copy()
    twice.obs_names = ["same", "same", *adata.obs_names[2:]]
    flat.obsm["X_umap"] = np.full((300, 2), np.nan)
    unknown.obs["some"] = "unknown"
    for wrong, options, error, message in (
        (adata, {"labels": "type"}, MissingKeyError, r"^reference\.obs has no 'type'"),
        (adata, {"umap": "X_uma"}, MissingKeyError, r"^reference\.obsm has no 'X_uma'.*did you mean 'X_umap'"),
        (unknown, {"labels": "some"}, ValueError, "has the label 'unknown'"),
        (twice, {}, ValueError, r"^reference\.obs_names has names of more than one cell \('same'\).*ids=False"),
        (flat, {"umap": True}, ValueError, r"^reference\.obsm\['X_umap'\] of shape \(300, 2\) is no UMAP"),
        (adata[:, :10].copy(), {}, ValueError, r"^reference has 10 of the 40 modelled genes"),
        (tmp_path / "cells.h5ad", {}, FileNotFoundError, "cells.h5ad"),
        (adata.X, {}, TypeError, "^reference is a csr_matrix"),
        (None, {"labels": "some"}, ValueError, "labels says how to keep a reference; pass reference=adata"),
        (None, {"umap": True}, ValueError, "umap says how to keep a reference"),
        (adata[:10].copy(), {"umap": "X_pca"}, MissingKeyError, "has no 'X_pca'"),
    ):
        with pytest.raises(error, match=message):
            model.save(path, reference=wrong, **options)
    del twice.obsm["X_umap"]
    with pytest.raises(ValueError, match="has 10 cells, but a UMAP needs more than 15"):
        model.save(path, reference=twice[2:12].copy(), umap=True)
    assert digest(adata) == before
    assert path.read_bytes() == content
    assert [place.name for place in tmp_path.iterdir()] == ["ref"]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("reference.variance"),
        lambda tensors: tensors.update({"reference.umap": tensors["reference.umap"][:-1].clone()}),
        lambda tensors: tensors.update({"reference.label.0": tensors["reference.label.0"] + 9}),
        lambda tensors: tensors.update({"reference.ids": tensors["reference.ids"][:-9].clone()}),
    ],
    ids=["a part is missing", "cells are missing", "a label has no name", "the names are cut"],
)
def test_a_damaged_reference_is_refused_in_one_line(saved, tmp_path, change):
    tensors = load_file(saved[0])
    with safe_open(saved[0], framework="pt") as file:
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, tmp_path / "damaged", metadata)
    with pytest.raises(ValueError, match=r"damaged: its reference is damaged \(.*\); ask for the file again") as caught:
        scvae.load(tmp_path / "damaged")
    assert "\n" not in str(caught.value)


def test_names_are_text_in_json_and_nothing_that_runs(saved):
    packed = load_file(saved[0])["reference.ids"].numpy().tobytes()
    assert zlib.decompress(packed).startswith(b'["')


def test_means_that_16_bits_cannot_hold_are_refused(fitted, tmp_path):
    adata, model = fitted
    stretched = dataclasses.replace(model.metric, matrix=model.metric.matrix * 1e6)
    with pytest.raises(ValueError, match=r"reach .*, which 16 bits cannot hold"):
        dataclasses.replace(model, metric=stretched).save(tmp_path / "ref", reference=adata)


def test_a_reference_of_a_range_of_beta_is_at_one(tmp_path):
    adata = scvae.datasets.simulate(n_cells=60, n_genes=30, truth=False, rng=0)
    model = scvae.fit(adata, n_latent=3, beta=(0.5, 2.0), training=TRAINING, rng=0, verbose=False)
    loaded = scvae.load(model.save(tmp_path / "ref", reference=adata, beta=2.0))
    assert loaded.reference.beta == 2.0
    scvae.tl.embed(adata, model, beta=2.0)
    np.testing.assert_allclose(loaded.reference.mean, adata.obsm["X_scvae"], rtol=2.0**-11)
    with pytest.raises(ValueError, match="beta is 1, but the model's reference is at β = 2; pass beta=2"):
        scvae.tl.nearest_cells(adata, loaded)
    scvae.tl.nearest_cells(adata, loaded, beta=2.0, n_neighbors=1)
    assert (adata.obsm["scvae_nearest"]["1"] == adata.obs_names).all()


def test_the_reference_plots_and_joins_the_query(fitted, saved):
    query = fitted[0][:20].copy()
    scvae.tl.place(query, saved[1])
    both = ad.concat({"reference": saved[1].reference.to_adata(), "query": query}, label="from", index_unique="-")
    assert both.obsm["X_scvae_umap"].shape == (320, 2)
    assert isinstance(both.obs["group"].dtype, pd.CategoricalDtype | object)
