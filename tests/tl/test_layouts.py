"""Aligned layouts: cells move little between neighbouring embeddings, and each layout still shows its own."""

import itertools

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from scvae.tl._layouts import aligned_layouts

N_NEIGHBORS = 10
PER_TYPE, N_TYPES, N_STEPS = 40, 4, 5


def path(rng=0):
    """Embeddings in which the first type of cells walks from the second to the third; and the types."""
    generator = np.random.default_rng(rng)
    types = np.repeat(np.arange(N_TYPES), PER_TYPE)
    centres = 8 * np.eye(N_TYPES, 6)
    noise = generator.normal(size=(len(types), 6))
    steps = []
    for share in np.linspace(0.05, 0.95, N_STEPS):
        moved = centres.copy()
        moved[0] = centres[1] + share * (centres[2] - centres[1]) + [4, 0, 0, 0, 0, 0]
        steps.append(moved[types] + noise + 0.2 * generator.normal(size=noise.shape))
    return np.stack(steps).astype(np.float32), types


def lay_out(embeddings, seed=0, done=lambda: None):
    return aligned_layouts(embeddings, n_neighbors=N_NEIGHBORS, seed=seed, done=done)


@pytest.fixture(scope="module")
def laid_out():
    embeddings, types = path()
    return embeddings, types, lay_out(embeddings)


def onto(layout, target):
    """The layout, turned, mirrored and shifted onto the target as well as it can be."""
    centred = layout - layout.mean(0)
    left, _, right = np.linalg.svd(centred.T @ (target - target.mean(0)))
    return centred @ (left @ right) + target.mean(0)


def displacement(layouts):
    """Mean way of a cell from one layout to the next, over the radius of the layout."""
    ways = [np.linalg.norm(onto(one, other) - other, axis=1).mean() for other, one in itertools.pairwise(layouts)]
    return np.mean(ways) / np.sqrt(np.square(layouts - layouts.mean(1, keepdims=True)).sum(2).mean())


def kept(embedding, layout):
    """Share of the neighbours in the embedding that are neighbours in the layout."""
    first, second = (NearestNeighbors(n_neighbors=N_NEIGHBORS).fit(x).kneighbors()[1] for x in (embedding, layout))
    return np.mean([len(set(a) & set(b)) / N_NEIGHBORS for a, b in zip(first, second, strict=True)])


def independent(embeddings):
    from umap.umap_ import find_ab_params, simplicial_set_embedding

    from scvae.diagnostics.neighbours import graph_of, nearest

    a, b = find_ab_params(1.0, 0.5)
    result = []
    for i, embedding in enumerate(embeddings):
        graph = graph_of(nearest(embedding, N_NEIGHBORS)).tocoo()
        start = np.random.RandomState(i)
        layout, _ = simplicial_set_embedding(
            embedding, graph, 2, 1.0, a, b, 1.0, 5, 300, "random", start, "euclidean", {}, False, {}, False
        )
        result.append(layout)
    return np.stack(result)


def test_cells_move_half_as_far_as_between_independent_layouts_which_keep_no_more_neighbours(laid_out):
    embeddings, _, layouts = laid_out
    alone = independent(embeddings)
    assert displacement(layouts) < displacement(alone) / 2
    of_aligned = np.mean([kept(*pair) for pair in zip(embeddings, layouts, strict=True)])
    of_alone = np.mean([kept(*pair) for pair in zip(embeddings, alone, strict=True)])
    assert of_aligned > of_alone - 0.03


def test_a_layout_shows_its_own_embedding(laid_out):
    _, types, layouts = laid_out
    middles = np.stack([layouts[:, types == i].mean(1) for i in range(N_TYPES)])
    walker, start, end = middles[:3]
    nearer = np.linalg.norm(walker - start, axis=1) - np.linalg.norm(walker - end, axis=1)
    assert nearer[0] < 0 < nearer[-1]  # beside the second type at first, beside the third in the end


def test_layouts_lie_around_zero_wider_than_high_in_single_precision(laid_out):
    _, _, layouts = laid_out
    assert layouts.dtype == np.float32
    assert layouts.shape == (N_STEPS, N_TYPES * PER_TYPE, 2)
    assert np.abs(layouts.mean(1)).max() < 1e-3
    variance = layouts.reshape(-1, 2).var(0)
    assert variance[0] > variance[1]


def test_the_seed_alone_decides(laid_out):
    embeddings, _, layouts = laid_out
    np.testing.assert_array_equal(lay_out(embeddings), layouts)
    assert not np.allclose(lay_out(embeddings, seed=1), layouts, atol=0.1)


def test_global_random_state_is_left_alone_and_each_layout_is_told_of():
    embeddings, _ = path()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    calls = []
    lay_out(embeddings[:2], done=lambda: calls.append(None))
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    assert len(calls) == 3


@pytest.mark.parametrize("kind", ["one dimension", "collapsed", "equal cells"])
def test_embeddings_without_two_dimensions_have_layouts(kind):
    generator = np.random.default_rng(0)
    embeddings = {
        "one dimension": generator.normal(size=(2, 30, 1)),
        "collapsed": np.zeros((2, 30, 3)),
        "equal cells": np.repeat(generator.normal(size=(2, 3, 3)), 10, axis=1),
    }[kind].astype(np.float32)
    layouts = lay_out(embeddings)
    assert np.isfinite(layouts).all()
    assert layouts.std(axis=1).min() > 0
