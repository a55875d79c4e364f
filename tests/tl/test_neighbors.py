"""`tl.neighbors`: one graph of many draws, and how far it hangs on any one of them."""

import numpy as np
import pytest
from scipy import sparse
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import TrainingConfig

N_SAMPLES, N_NEIGHBORS = 4, 6


@pytest.fixture(scope="module")
def fitted():
    adata = scvae.datasets.simulate(n_cells=150, n_genes=60, truth=False, rng=0)
    model = scvae.fit(adata, n_latent=4, rng=0, training=TrainingConfig(epochs=10), verbose=False)
    return adata, model


@pytest.fixture
def result(fitted):
    """A copy with the graph, and for each draw the sets of neighbours and the distances to them, found otherwise."""
    adata, model = fitted
    with_draws = scvae.tl.embed(adata, model, n_samples=N_SAMPLES, rng=3, copy=True).obsm["X_scvae_samples"]
    search = [NearestNeighbors(n_neighbors=N_NEIGHBORS, algorithm="brute").fit(z) for z in with_draws.swapaxes(0, 1)]
    found = [one.kneighbors_graph(mode="distance").toarray() for one in search]
    # kneighbors_graph leaves the cell itself out and gives as many others as asked for: one too many here
    for graph in found:
        graph[graph == graph.max(1, keepdims=True)] = 0.0
    graph = scvae.tl.neighbors(adata, model, n_samples=N_SAMPLES, n_neighbors=N_NEIGHBORS, rng=3, copy=True)
    return graph, np.array(found)


def test_an_edge_has_the_mean_distance_over_the_draws_that_make_it(result):
    adata, distances = result
    times = (distances > 0).sum(0)
    expected = np.divide(distances.sum(0), times, out=np.zeros(times.shape), where=times > 0)
    np.testing.assert_allclose(adata.obsp["distances"].toarray(), expected, rtol=1e-4)


def test_weights_are_symmetric_and_lie_between_what_nearness_in_the_draws_allows(result):
    adata, distances = result
    weights = adata.obsp["connectivities"]
    assert sparse.issparse(weights)
    np.testing.assert_array_equal(weights.toarray(), weights.T.toarray())
    in_draws = ((distances > 0) | (distances > 0).swapaxes(1, 2)).sum(0)
    np.testing.assert_array_equal(weights.toarray() > 0, in_draws > 0)
    assert (weights.toarray() <= in_draws / N_SAMPLES + 1e-6).all()
    # a cell and its nearest neighbour have the weight 1 in a draw
    nearest = np.where(distances > 0, distances, np.inf).argmin(2)
    for cell, found in enumerate(nearest.T):
        for other in found:
            assert weights[cell, other] >= (found == other).mean() - 1e-6


def test_a_fixed_number_of_neighbours_are_the_most_frequent_and_then_the_nearest(fitted, result):
    adata, model = fitted
    every, distances = result
    options = {"n_samples": N_SAMPLES, "n_neighbors": N_NEIGHBORS, "rng": 3, "copy": True}
    fixed = scvae.tl.neighbors(adata, model, knn=True, **options)
    kept, mean = fixed.obsp["distances"], every.obsp["distances"].toarray()
    assert (np.diff(kept.indptr) == N_NEIGHBORS - 1).all()
    times = (distances > 0).sum(0)
    for cell in range(len(times)):
        order = sorted(np.flatnonzero(times[cell]), key=lambda other: (-times[cell, other], mean[cell, other]))
        assert set(kept[cell].indices) == set(order[: N_NEIGHBORS - 1])
    inside = kept.toarray() > 0
    np.testing.assert_allclose(kept.toarray()[inside], mean[inside], rtol=1e-6)
    np.testing.assert_array_equal(fixed.obsp["connectivities"].toarray(), every.obsp["connectivities"].toarray())


def test_stability_is_the_share_of_neighbours_that_pairs_of_draws_have_in_common(result):
    adata, distances = result
    common = [(distances[i] > 0) & (distances[j] > 0) for i in range(N_SAMPLES) for j in range(N_SAMPLES) if i != j]
    expected = np.mean([both.sum(1) for both in common], axis=0) / (N_NEIGHBORS - 1)
    np.testing.assert_allclose(adata.obs["scvae_stability"], expected, rtol=1e-6)


def test_cells_of_which_little_was_counted_are_less_stable():
    adata = scvae.datasets.simulate(n_cells=400, n_genes=150, truth=False, rng=1)
    shallow = np.arange(400) % 2 == 0
    counts = adata.X.tocsr()
    kept = np.where(np.repeat(shallow, np.diff(counts.indptr)), 0.05, 1.0)
    counts.data = np.random.default_rng(0).binomial(counts.data.astype(int), kept).astype(np.float32)
    counts.eliminate_zeros()
    adata.X = counts
    model = scvae.fit(adata, n_latent=4, rng=0, training=TrainingConfig(epochs=40), verbose=False)
    scvae.tl.neighbors(adata, model)
    stability = adata.obs["scvae_stability"].to_numpy()
    assert stability[shallow].mean() < 0.8 * stability[~shallow].mean()


def test_scanpy_clusters_and_orders_cells_by_the_graph(fitted):
    import scanpy as sc

    adata, model = fitted
    graph = scvae.tl.neighbors(adata, model, copy=True)
    sc.tl.leiden(graph, flavor="igraph", n_iterations=2)
    sc.tl.diffmap(graph)
    graph.uns["iroot"] = 0
    sc.tl.dpt(graph)
    assert graph.obs["leiden"].nunique() > 1
    assert np.isfinite(graph.obs["dpt_pseudotime"]).all()


def test_a_graph_of_another_name_leaves_that_of_scanpy_alone(fitted):
    adata, model = fitted
    graph = adata.copy()
    graph.obsp["connectivities"] = sparse.eye_array(150, format="csr")
    scvae.tl.neighbors(graph, model, neighbors_key="drawn")
    assert graph.obsp["connectivities"].nnz == 150
    assert graph.uns["drawn"]["connectivities_key"] == "drawn_connectivities"
    assert {"drawn_connectivities", "drawn_distances"} <= set(graph.obsp)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_samples": 1}, "n_samples is 1, but stability compares draws; pass at least 2"),
        ({"n_neighbors": 1}, "n_neighbors is 1; pass a number from 2 to the number of cells, 150"),
        ({"n_neighbors": 151}, "n_neighbors is 151; pass a number from 2 to the number of cells, 150"),
        ({"beta": 2.0}, "trained at β = 1 alone"),
    ],
)
def test_wrong_settings_are_refused_and_nothing_is_written(fitted, digest, options, message):
    adata, model = fitted
    before = digest(adata)
    with pytest.raises(ValueError, match=message):
        scvae.tl.neighbors(adata, model, **options)
    assert digest(adata) == before


@pytest.mark.parametrize("key", ["a/b", "", None, 3, "scvae"])
def test_a_key_that_no_file_keeps_or_that_holds_the_fit_is_refused(fitted, key):
    adata, model = fitted
    adata = adata.copy()
    before = set(adata.uns), set(adata.obsp)
    with pytest.raises(ValueError, match="neighbors_key"):
        scvae.tl.neighbors(adata, model, neighbors_key=key)
    assert (set(adata.uns), set(adata.obsp)) == before
