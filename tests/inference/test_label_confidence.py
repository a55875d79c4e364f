"""The promise about names: at most the allowed share of those given is wrong, whatever the classifier."""

import math

import numpy as np
import pytest

from scvae.data.label_tree import flat_tree, tree_of
from scvae.inference.label_confidence import curves, name_cells, threshold_of, wrong_from

TREE = tree_of({"x": ["a", "b"], "y": ["c", "d", "e"]}, "abcde")


ONE_OF = np.eye(5, dtype=bool)


def cells(rng, n, *, noise, boast):
    """Labels, and probabilities of a classifier that is noisy and believes in itself too much."""
    truth = rng.integers(0, 5, n)
    centres = np.array([[0, 0], [0, 1.5], [4, 0], [4, 1.2], [5.5, 0.5]])
    seen = centres[truth] + noise * rng.normal(size=(n, 2))
    logits = -boast * ((seen[:, None] - centres) ** 2).sum(2)
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return truth, odds / odds.sum(1, keepdims=True)


def wrong_and_named(tree, truth, naming):
    named = naming.node >= 0
    return (named & ~tree.members[naming.node, truth]).sum(), named.sum()


@pytest.mark.parametrize("tree", [TREE, flat_tree("abcde")], ids=["tree", "flat"])
@pytest.mark.parametrize(("noise", "boast", "n", "m"), [(0.6, 5.0, 150, 300), (1.0, 2.0, 60, 10), (0.3, 1.0, 400, 40)])
def test_the_share_of_wrong_names_stays_below_what_is_allowed(tree, noise, boast, n, m):
    rng, shares, coverage = np.random.default_rng(3), [], []
    for _ in range(300):
        (known, held_out), (truth, query) = (cells(rng, size, noise=noise, boast=boast) for size in (n, m))
        n_wrong, n_named = wrong_and_named(tree, truth, name_cells(tree, held_out, ONE_OF[known], query, 0.1))
        shares.append(n_wrong / max(n_named, 1))
        coverage.append(n_named / m)
    assert np.mean(shares) < 0.1 + 2.5 * np.std(shares) / math.sqrt(300)
    assert np.mean(coverage) > 0.1  # the promise is not kept by silence


def test_the_allowed_share_is_used_up_where_names_are_hard():
    rng = np.random.default_rng(5)
    (known, held_out), (truth, query) = (cells(rng, 20_000, noise=1.0, boast=1.0) for _ in range(2))
    n_wrong, n_named = wrong_and_named(TREE, truth, name_cells(TREE, held_out, ONE_OF[known], query, 0.05))
    assert 0.035 < n_wrong / n_named < 0.06


def test_less_error_allowed_gives_names_that_are_less_deep():
    rng = np.random.default_rng(5)
    (known, held_out), (_, query) = (cells(rng, 2_000, noise=0.8, boast=2.0) for _ in range(2))
    depth = []
    for allowed in (0.3, 0.1, 0.03, 0.0):
        node = name_cells(TREE, held_out, ONE_OF[known], query, allowed).node
        depth.append(np.where(node >= 0, TREE.depth[node], 0).mean())
    assert depth[0] > depth[1] > depth[2] > depth[3] == 0.0


def test_the_threshold_is_the_smallest_that_keeps_the_rule():
    rng = np.random.default_rng(7)
    for _ in range(200):
        wrong = np.where(rng.random(30) < 0.4, rng.random(30), -math.inf)
        named, allowed = rng.uniform(0.3, 1.0, 20), rng.uniform(0.05, 0.5)
        grid = np.linspace(0.0, 1.0, 20_001)
        keeps = (1 + (wrong[:, None] >= grid).sum(0)) / 31 <= allowed * (named[:, None] >= grid).sum(0) / 20
        found = threshold_of(wrong, named, allowed)
        if keeps.any():
            assert abs(found - grid[keeps][0]) < 1e-4
        else:
            assert found == math.inf or not ((grid >= found) & (named.max() >= grid)).any()


def test_every_cell_is_named_where_no_held_out_cell_is_wrong_though_some_paths_end_early():
    uneven = tree_of({"b": "b or c", "c": "b or c", "b or c": "b or c or d", "d": "b or c or d"}, "abcd")
    truth = np.arange(400) % 4
    sure = np.full((400, 4), 0.01)
    sure[np.arange(400), truth] = 0.97
    naming = name_cells(uneven, sure, ONE_OF[truth, :4], sure, 0.05)
    assert [uneven.names[node] for node in naming.node[:4]] == ["a", "b", "c", "d"]
    assert (naming.node >= 0).all()


def test_a_warning_says_that_held_out_cells_are_too_few_for_any_name():
    sure = np.full((20, 5), 0.001)
    sure[np.arange(20), np.arange(20) % 5] = 0.996
    truth = ONE_OF[np.arange(20) % 5]
    with pytest.warns(UserWarning, match=r"18 cells with a label .* at least 19"):
        assert (name_cells(TREE, sure[:18], truth[:18], sure, 0.05).node < 0).all()
    assert (name_cells(TREE, sure[:19], truth[:19], sure, 0.05).node >= 0).all()


def test_a_name_that_agrees_with_a_coarser_one_is_right():
    sure = np.array([[0.1, 0.8, 0.05, 0.05, 0], [0.1, 0.2, 0.6, 0.1, 0], [0.9, 0.1, 0, 0, 0]])
    is_x, is_y = TREE.members[[TREE.names.index("x"), TREE.names.index("y")]]
    assert wrong_from(TREE, sure, np.array([is_x, is_y, ONE_OF[1]])).tolist() == [-math.inf, -math.inf, 0.9]
    assert wrong_from(TREE, sure, np.array([is_y, is_x, is_y])).tolist() == [0.9, 0.7, 1.0]


def test_curves_end_with_all_cells_named_and_errors_of_the_plain_guess():
    rng = np.random.default_rng(9)
    truth, held_out = cells(rng, 500, noise=0.8, boast=2.0)
    coarse, fine = curves(TREE, held_out, ONE_OF[truth])
    assert coarse.level == 1
    assert coarse.coverage[-1] == fine.coverage[-1] == 1.0
    path, _ = TREE.paths(held_out)
    for curve, level in ((coarse, 0), (fine, 1)):
        assert curve.error[-1] == pytest.approx(1 - TREE.members[path[:, level], truth].mean())
    assert coarse.error[-1] < fine.error[-1]
    assert (np.diff(fine.threshold) <= 0).all()
    assert curves(TREE, np.empty((0, 5)), ONE_OF[:0]) == []
