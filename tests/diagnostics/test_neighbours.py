"""Neighbours and graphs are scanpy's, and Leiden leaves the global random state alone."""

import random
import warnings

import anndata as ad
import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.metrics import adjusted_rand_score

from scvae.diagnostics.neighbours import as_igraph, graph_of, leiden, nearest


def groups(n_each=40, n_groups=3, n_latent=4, *, apart=8.0, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(n_groups), n_each)
    centres = apart * rng.normal(size=(n_groups, n_latent))
    return (centres[labels] + rng.normal(size=(len(labels), n_latent))).astype(np.float32), labels


def test_neighbours_are_those_of_the_distance_matrix():
    z = np.random.default_rng(0).normal(size=(50, 3))
    found = nearest(z, 7)
    distance = cdist(z, z)
    order = np.argsort(distance, axis=1)[:, :7]
    assert np.array_equal(found.index, order)
    np.testing.assert_allclose(found.distance, np.take_along_axis(distance, order, axis=1), atol=1e-7)


def test_equal_cells_do_not_take_the_place_of_a_cell_in_its_own_row():
    found = nearest(np.zeros((6, 2)), 4)
    assert np.array_equal(found.index[:, 0], np.arange(6))
    assert all(len(set(row)) == 4 for row in found.index.tolist())


def test_few_cells_have_all_others_as_neighbours():
    assert nearest(np.array([[0.0], [1.0], [2.5]]), 15).index.tolist() == [[0, 1, 2], [1, 0, 2], [2, 1, 0]]


def test_neighbours_among_kept_cells_are_those_found_anew():
    z, _ = groups()
    kept = np.random.default_rng(1).random(len(z)) < 0.9
    among, anew = nearest(z, 30).among(kept, 15), nearest(z[kept], 15)
    assert np.array_equal(among.index, anew.index)
    np.testing.assert_allclose(among.distance, anew.distance, atol=1e-6)


def test_a_kept_cell_with_too_few_known_neighbours_repeats_the_last():
    line = np.array([[0.0], [1.0], [2.1], [3.3], [10.0]])
    among = nearest(line, 3).among(np.array([True, False, False, True, True]), 3)
    assert among.index.tolist() == [[0, 0, 0], [1, 1, 1], [2, 1, 1]]


@pytest.mark.parametrize("n_groups", [1, 3])
def test_the_graph_is_that_of_scanpy(n_groups):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import scanpy as sc

        z, _ = groups(60, n_groups)
        adata = ad.AnnData(obsm={"X_z": z})
        sc.pp.neighbors(adata, use_rep="X_z", random_state=0)
    difference = abs(adata.obsp["connectivities"] - graph_of(nearest(z)))
    assert difference.max() < 1e-4  # scanpy bisects to 1e-5 in float32


def test_equal_cells_give_a_finite_symmetric_graph():
    z, _ = groups(20)
    z[5:25] = z[5]
    graph = graph_of(nearest(z)).toarray()
    assert np.isfinite(graph).all()
    assert np.array_equal(graph, graph.T)
    assert graph.min() >= 0
    assert graph.max() <= 1
    assert np.diag(graph).max() == 0


def test_leiden_finds_planted_groups_and_repeats_itself_for_a_seed():
    z, labels = groups()
    graph = as_igraph(graph_of(nearest(z)))
    found = leiden(graph, resolution=0.3, seed=4)
    assert adjusted_rand_score(labels, found) == 1.0
    assert np.array_equal(found, leiden(graph, resolution=0.3, seed=4))


def test_clustering_leaves_global_random_states_alone():
    z, _ = groups()
    random.seed(3)
    before, state = random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    leiden(as_igraph(graph_of(nearest(z))), resolution=1.0, seed=0)
    assert random.getstate() == before
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_modularity_of_two_joined_pairs_is_the_value_done_by_hand():
    # edges 0-1 and 2-3 of weight 1, 1-2 of weight 0.5: m = 2.5, Q = 2 (1 / 2.5 - (2.5 / 5)^2) = 0.3
    import scipy.sparse as sp

    weights = np.zeros((4, 4))
    for i, j, weight in ((0, 1, 1.0), (2, 3, 1.0), (1, 2, 0.5)):
        weights[i, j] = weights[j, i] = weight
    graph = as_igraph(sp.csr_array(weights))
    assert graph.modularity([0, 0, 1, 1], weights="weight") == pytest.approx(0.3)
