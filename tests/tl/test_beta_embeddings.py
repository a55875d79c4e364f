"""`beta_embeddings` stores UMAPs of the embeddings at many β, with rate and distortion, and nothing on an error."""

import anndata as ad
import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import NetworkConfig, TrainingConfig

BETAS = [0.2, 1.0, 5.0]
RANGE = (0.1, 10.0)
UMAPS = "X_scvae_umap_betas"


def simulated(n_cells=120):
    return scvae.datasets.simulate(n_cells=n_cells, n_genes=40, n_types=3, truth=False, rng=0)


def fitted(adata, beta):
    training = TrainingConfig(epochs=10, batch_size=32)
    return scvae.fit(
        adata, beta=beta, n_latent=3, rng=0, verbose=False, network=NetworkConfig(width=16), training=training
    )


def embeddings(adata, model, **options):
    return scvae.tl.beta_embeddings(adata, model, **{"betas": BETAS, "n_neighbors": 8, "verbose": False} | options)


@pytest.fixture(scope="module")
def path():
    """Cells and a model of many β; not to be changed."""
    adata = simulated()
    return adata, fitted(adata, RANGE)


@pytest.fixture(scope="module")
def stored(path):
    """The same cells with what was computed; not to be changed."""
    return embeddings(*path, copy=True)


def test_slots_are_written_and_nothing_else_changes(path, digest):
    adata, model = path
    mine = adata.copy()
    before = digest(mine)
    assert embeddings(mine, model) is None
    after = digest(mine)
    assert {slot for slot in after if after[slot] != before.get(slot)} == {f"obsm[{UMAPS}]"}
    assert mine.obsm[UMAPS].shape == (120, 2 * len(BETAS))
    assert mine.obsm[UMAPS].dtype == np.float32
    assert np.isfinite(mine.obsm[UMAPS]).all()
    assert set(mine.uns["scvae"]) == {*adata.uns["scvae"], "beta_embeddings"}
    assert set(adata.uns["scvae"]) == set(mine.uns["scvae"]) - {"beta_embeddings"}


def test_rate_and_distortion_are_those_of_the_table_of_tune_beta(path, stored):
    adata, model = path
    table = scvae.tune_beta(adata.copy(), model=model, betas=BETAS, rng=0, verbose=False).table
    record = stored.uns["scvae"]["beta_embeddings"]
    assert record["beta"].tolist() == BETAS
    np.testing.assert_allclose(record["rate"], table["rate"])
    np.testing.assert_allclose(record["distortion"], table["distortion"])
    assert record["judged_on"] == "12 cells held out of the fit"


def test_columns_hold_the_layouts_of_the_embeddings_at_rising_beta(path, stored):
    adata, model = path
    layouts = stored.obsm[UMAPS].reshape(adata.n_obs, -1, 2)
    for i, beta in enumerate(BETAS):
        embedded = scvae.tl.embed(adata, model, beta=beta, copy=True).obsm["X_scvae"]
        first, second = (NearestNeighbors(n_neighbors=8).fit(x).kneighbors()[1] for x in (embedded, layouts[:, i]))
        kept = np.mean([len(set(a) & set(b)) / 8 for a, b in zip(first, second, strict=True)])
        assert kept > 0.3  # by chance 8 of 119


def test_the_same_seed_gives_the_same_and_the_file_holds_it(path, stored, tmp_path):
    again = embeddings(*path, betas=BETAS[::-1], copy=True)
    np.testing.assert_array_equal(again.obsm[UMAPS], stored.obsm[UMAPS])
    again.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad")
    np.testing.assert_array_equal(read.obsm[UMAPS], stored.obsm[UMAPS])
    record, expected = (cells.uns["scvae"]["beta_embeddings"] for cells in (read, stored))
    assert set(record) == set(expected)
    np.testing.assert_array_equal(record["rate"], expected["rate"])
    assert record["n_cells"] == 120


def test_by_default_the_betas_span_the_range_evenly_on_a_log_scale(path):
    adata, model = path
    record = embeddings(adata, model, betas=None, max_cells=20, copy=True).uns["scvae"]["beta_embeddings"]
    assert len(record["beta"]) == 17
    assert (record["beta"][0], record["beta"][-1]) == RANGE
    np.testing.assert_allclose(np.diff(np.log(record["beta"])), np.log(100) / 16, rtol=1e-2)


def test_of_too_many_cells_some_are_drawn_and_the_others_have_no_place(path):
    adata, model = path
    first, second, other = (embeddings(adata, model, max_cells=50, rng=rng, copy=True).obsm[UMAPS] for rng in (0, 0, 1))
    placed = np.isfinite(first).all(1)
    assert placed.sum() == 50
    assert np.isnan(first[~placed]).all()
    np.testing.assert_array_equal(first, second)
    assert not np.array_equal(placed, np.isfinite(other).all(1))


def test_a_view_becomes_actual_and_its_parent_stays_as_it_was(path):
    adata, model = path
    view = adata[:60]
    embeddings(view, model)
    assert view.obsm[UMAPS].shape == (60, 6)
    assert UMAPS not in adata.obsm
    assert view.uns["scvae"]["beta_embeddings"]["judged_on"] == "60 cells other cells than those of the fit"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"betas": [0.01, 1]}, r"beta is 0.01, but the model was trained for β from 0.1 to 10"),
        ({"betas": [1]}, r"betas has 1 different value\(s\); pass at least 2"),
        ({"betas": [-1, 1]}, r"each of betas is -1"),
        ({"n_neighbors": 1}, r"n_neighbors is 1; pass at least 2, below the number of cells, 120"),
        ({"n_neighbors": 120}, r"n_neighbors is 120"),
        ({"max_cells": 5}, r"only 5 cells would be laid out; UMAP needs at least 10"),
        ({"max_cells": 8.5}, r"max_cells is 8.5"),
        ({"layer": "none"}, r"adata.layers has no 'none'"),
        ({"key_added": "a/b"}, r"key_added is 'a/b'"),
    ],
)
def test_what_cannot_be_done_is_said_and_nothing_is_written(path, digest, options, message):
    adata, model = path
    mine = adata.copy()
    before = digest(mine)
    with pytest.raises((ValueError, TypeError), match=message):
        embeddings(mine, model, **options)
    assert digest(mine) == before
    assert "beta_embeddings" not in mine.uns["scvae"]


def test_a_model_of_one_beta_is_refused_with_what_to_do_instead(path):
    adata, _ = path
    model = fitted(adata.copy(), 1.0)
    with pytest.raises(
        ValueError, match=r"trained at β = 1 alone, so .*; pass a model from scvae.fit\(adata, beta=\(low, high\)"
    ):
        scvae.tl.beta_embeddings(adata, model)
