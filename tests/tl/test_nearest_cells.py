"""`tl.nearest_cells` and `tl.place`: the neighbours are those of a plain search, and the reference does not move."""

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

import scvae
from scvae import TrainingConfig
from scvae.inference.nearest import nearest_cells, placed


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A query of a third batch, and a model of the two others that came as a file with its reference."""
    every = scvae.datasets.simulate(
        n_cells=600, n_genes=100, n_batches=3, n_types=4, batch_effect=0.5, type_share=0.9, truth=False, rng=2
    )
    is_new = (every.obs["batch"] == "batch_2").to_numpy()
    reference, query = every[~is_new].copy(), every[is_new].copy()
    short = TrainingConfig(epochs=30)
    model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False, training=short)
    corners = {f"type_{i}": (20.0 * (i % 2), 20.0 * (i // 2)) for i in range(4)}  # an island for each type
    noise = np.random.default_rng(0).normal(size=(reference.n_obs, 2))
    reference.obsm["X_umap"] = (noise + [corners[name] for name in reference.obs["cell_type"]]).astype(np.float32)
    path = tmp_path_factory.mktemp("saved") / "ref.safetensors"
    model.save(path, reference=reference, labels="cell_type", umap=True)
    mapped = scvae.tl.map_query(query, scvae.load(path), verbose=False)
    return reference, query, mapped, corners


def test_the_nearest_cells_are_those_of_all_distances(example):
    reference, query, mapped, _ = example
    query = query.copy()
    scvae.tl.nearest_cells(query, mapped, n_neighbors=7)
    every = cdist(query.obsm["X_scvae"], mapped.reference.mean.astype(float))
    order = np.argsort(every, axis=1)[:, :7]
    found = query.obsm["scvae_nearest"]
    assert isinstance(found, pd.DataFrame)
    assert (found.index == query.obs_names).all()
    np.testing.assert_array_equal(found, reference.obs_names.to_numpy()[order])
    np.testing.assert_allclose(
        query.obsm["scvae_nearest_distance"], np.take_along_axis(every, order, axis=1), rtol=1e-5
    )


def test_a_large_search_gives_what_a_small_one_gives():
    rng = np.random.default_rng(0)
    reference, cells = rng.normal(size=(140_000, 20)).astype(np.float32), rng.normal(size=(513, 20)).astype(np.float32)
    distance, place = nearest_cells(reference, cells, 5)
    for i in (0, 255, 256, 512):
        every = cdist(cells[i : i + 1], reference)[0]
        np.testing.assert_array_equal(place[i], np.argsort(every)[:5])
        np.testing.assert_allclose(distance[i], np.sort(every)[:5], rtol=1e-6)


def test_more_neighbours_than_there_are_cells_are_all_cells():
    distance, place = nearest_cells(np.array([[0.0], [3.0]]), np.array([[1.0]]), 10)
    assert distance.tolist() == [[1.0, 2.0]]
    assert place.tolist() == [[0, 1]]


def test_a_place_has_the_smallest_sum_of_distances_to_the_neighbours():
    rng = np.random.default_rng(0)
    layout = rng.normal(size=(50, 2)) * 5
    places = rng.integers(50, size=(6, 9))
    for here, found in zip(places, placed(layout, places), strict=True):

        def total(point, here=here):
            return np.linalg.norm(layout[here] - point, axis=1).sum()

        best = minimize(total, layout[here].mean(0), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-9})
        assert total(found) < best.fun * (1 + 1e-3)


def test_a_cell_is_placed_on_the_island_of_most_neighbours_and_not_in_the_sea():
    layout = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [100.0, 100.0]], np.float32)
    assert np.abs(placed(layout, np.array([[0, 1, 2, 3]]))).max() < 2
    np.testing.assert_allclose(placed(layout, np.array([[3, 3, 3, 3]])), [[100, 100]])


def test_cells_of_a_new_batch_land_on_the_island_of_their_type_and_the_reference_does_not_move(example):
    reference, query, mapped, corners = example
    query = query.copy()
    before = mapped.reference.umap.copy()
    scvae.tl.place(query, mapped)
    position = query.obsm["X_scvae_umap"]
    assert position.dtype == np.float32
    islands = np.array(list(corners.values()))
    landed = np.array(list(corners))[cdist(position, islands).argmin(1)]
    assert (landed == query.obs["cell_type"]).mean() > 0.9
    assert cdist(position, islands).min(1).max() < 5
    assert mapped.reference.umap.tobytes() == before.tobytes() == reference.obsm["X_umap"].tobytes()


@pytest.mark.parametrize(
    ("tool", "slots"),
    [("place", ["X_scvae_umap"]), ("nearest_cells", ["scvae_nearest", "scvae_nearest_distance"])],
)
def test_only_its_slots_are_written_and_go_with_the_model(example, digest, tool, slots):
    _, query, mapped, _ = example
    query = query.copy()
    before = digest(query)
    copied = getattr(scvae.tl, tool)(query, mapped, copy=True)
    assert digest(query) == before
    assert set(copied.obsm) - set(query.obsm) == set(slots)
    assert {name for name, value in digest(copied).items() if before.get(name) != value} == {
        f"obsm[{slot}]" for slot in slots
    }
    scvae.fit(copied, n_latent=2, rng=0, verbose=False, training=TrainingConfig(epochs=1))
    assert not set(slots) & set(copied.obsm)


def test_what_is_missing_is_said_in_one_line(example, tmp_path):
    reference, query, mapped, _ = example
    short = {"n_latent": 2, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=1)}
    bare = scvae.fit(reference.copy(), **short)
    without_umap = scvae.load(bare.save(tmp_path / "bare", reference=reference, ids=False))
    for tool, model, message in (
        (
            scvae.tl.place,
            bare,
            r"\.place needs a reference in the model's file.*model\.save\(path, reference=",
        ),
        (scvae.tl.nearest_cells, bare, "scvae.tl.nearest_cells needs a reference in the model's file"),
        (scvae.tl.place, without_umap, "needs a UMAP, and the model's reference has none; save it again"),
    ):
        with pytest.raises(ValueError, match=message):
            tool(query.copy(), model)
    with pytest.raises(ValueError, match="n_neighbors is 0"):
        scvae.tl.place(query.copy(), mapped, n_neighbors=0)
    there = reference[:5].copy()
    scvae.tl.nearest_cells(there, without_umap, n_neighbors=1)
    assert there.obsm["scvae_nearest"]["1"].tolist() == ["0", "1", "2", "3", "4"]  # positions stand for names


def test_slots_can_be_written_and_read(example, tmp_path):
    import anndata as ad

    query = example[1].copy()
    scvae.tl.nearest_cells(query, example[2])
    scvae.tl.place(query, example[2])
    query.write_h5ad(tmp_path / "query.h5ad")
    read = ad.read_h5ad(tmp_path / "query.h5ad")
    pd.testing.assert_frame_equal(read.obsm["scvae_nearest"], query.obsm["scvae_nearest"])
    assert read.obsm["X_scvae_umap"].tobytes() == query.obsm["X_scvae_umap"].tobytes()


def test_a_reference_of_several_measurements_is_found_by_all_that_a_cell_has(tmp_path):
    adata = scvae.datasets.simulate(n_cells=120, n_genes=30, n_proteins=6, truth=False, rng=0)
    short = {"n_latent": 3, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=3)}
    model = scvae.fit(adata, protein_key="protein", **short)
    model = scvae.load(model.save(tmp_path / "ref", reference=adata, labels="cell_type"))
    query = adata[:30].copy()
    scvae.tl.nearest_cells(query, model, n_neighbors=1)
    assert (query.obsm["scvae_nearest"]["1"] == query.obs_names).mean() > 0.9
    del query.obsm["protein"]
    for tool in (scvae.tl.nearest_cells, scvae.tl.transfer_labels):
        with pytest.warns(UserWarning, match=r"adata\.obsm has no 'protein'"):
            tool(query, model)
