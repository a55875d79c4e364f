"""Trees of labels: every form a user may give, paths of cells, and trees learnt from what is confused."""

import numpy as np
import pandas as pd
import pytest

from scvae.data.label_tree import flat_tree, learnt_tree, tree_of

LABELS = ("B", "CD4 T", "CD8 T", "mono")
CHILD_TO_PARENT = {"CD4 T": "T", "CD8 T": "T", "T": "lymphoid", "B": "lymphoid", "mono": None}
FORMS = {
    "child to parent": CHILD_TO_PARENT,
    "series": pd.Series(CHILD_TO_PARENT),
    "nested": {"lymphoid": {"T": {"CD4 T": {}, "CD8 T": {}}, "B": {}}, "mono": {}},
    "nested with lists": {"lymphoid": {"T": ["CD4 T", "CD8 T"], "B": []}, "mono": []},
    "table": pd.DataFrame(
        {
            "coarse": ["lymphoid", "lymphoid", "lymphoid", "mono"] * 2,
            "middle": ["T", "T", "B", None] * 2,
            "fine": ["CD4 T", "CD8 T", "B", "mono"] * 2,
        }
    ),
    "without what stands alone": {"T": ["CD4 T", "CD8 T"], "lymphoid": ["T", "B"]},
}


def members(tree):
    return {name: {LABELS[i] for i in np.flatnonzero(row)} for name, row in zip(tree.names, tree.members, strict=True)}


@pytest.mark.parametrize("form", [form for form in FORMS if form != "without what stands alone"])
def test_every_form_gives_the_same_tree(form):
    tree = tree_of(FORMS[form], LABELS)
    assert members(tree) == {
        "lymphoid": {"B", "CD4 T", "CD8 T"}, "mono": {"mono"}, "T": {"CD4 T", "CD8 T"}, "B": {"B"},
        "CD4 T": {"CD4 T"}, "CD8 T": {"CD8 T"},
    }  # fmt: skip
    depth = dict(zip(tree.names, tree.depth.tolist(), strict=True))
    assert depth == {"lymphoid": 1, "mono": 1, "T": 2, "B": 2, "CD4 T": 3, "CD8 T": 3}


def test_labels_that_a_tree_lacks_hang_from_the_root_and_nodes_without_labels_are_left_out():
    tree = tree_of({"CD4 T": "T", "CD8 T": "T", "NK": "innate"}, LABELS)
    assert members(tree) == {"T": {"CD4 T", "CD8 T"}, "B": {"B"}, "mono": {"mono"}} | {
        name: {name} for name in ("CD4 T", "CD8 T")
    }


@pytest.mark.parametrize(
    ("hierarchy", "error", "message"),
    [
        ({"CD4 T": "T", "T": "CD4 T"}, ValueError, "its own ancestor"),
        ({"x": {"B": {}}, "y": {"B": {}}}, ValueError, "'B' has the parents 'x', 'y'"),
        ({"B": "unknown"}, ValueError, "has the name 'unknown'"),
        ({"hepatocyte": "liver"}, ValueError, "none of the labels \\("),
        ({}, ValueError, "hierarchy is empty; pass the parent"),
        (3, TypeError, "hierarchy is a int"),
    ],
)
def test_what_is_no_tree_over_the_labels_gets_one_line(hierarchy, error, message):
    with pytest.raises(error, match=message) as caught:
        tree_of(hierarchy, LABELS)
    assert "\n" not in str(caught.value)


def test_a_path_takes_the_most_probable_child_and_its_probability_is_the_sum_over_labels():
    tree = tree_of(CHILD_TO_PARENT, LABELS)
    path, along = tree.paths(np.array([[0.1, 0.3, 0.25, 0.35], [0.0, 0.1, 0.2, 0.7], [0.4, 0.3, 0.3, 0.0]]))
    names = [[tree.names[node] for node in row if node >= 0] for row in path]
    assert names == [["lymphoid", "T", "CD4 T"], ["mono"], ["lymphoid", "T", "CD4 T"]]
    np.testing.assert_allclose(along, [[0.65, 0.55, 0.3], [0.7, 0, 0], [1.0, 0.6, 0.3]])


def test_a_path_ends_at_a_node_whose_own_label_is_likelier_than_those_below():
    tree = tree_of({"CD4 T": "T", "CD8 T": "T"}, ("CD4 T", "CD8 T", "T"))
    path, along = tree.paths(np.array([[0.2, 0.1, 0.7], [0.6, 0.1, 0.3]]))
    assert [[tree.names[node] for node in row if node >= 0] for row in path] == [["T"], ["T", "CD4 T"]]
    np.testing.assert_allclose(along, [[1.0, 0.0], [1.0, 0.6]])


def test_a_flat_tree_has_the_labels_alone():
    tree = flat_tree(LABELS)
    assert members(tree) == {name: {name} for name in LABELS}
    assert (tree.parent == -1).all()


def test_labels_that_are_taken_for_each_other_are_joined_first():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    confusion = np.array([[0.99, 0, 0, 0.01], [0, 0.7, 0.3, 0], [0, 0.3, 0.7, 0], [0.0, 0.06, 0, 0.94]])
    tree = learnt_tree(confusion[truth], np.eye(4, dtype=bool)[truth], LABELS)
    assert members(tree)["CD4 T or CD8 T"] == {"CD4 T", "CD8 T"}
    assert members(tree)["CD4 T or CD8 T or mono"] == {"CD4 T", "CD8 T", "mono"}
    assert tree.parent[tree.names.index("B")] == -1
