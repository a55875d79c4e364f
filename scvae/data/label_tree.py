"""Trees of labels: from the forms in which a user gives one, or learnt from labels that are taken for each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ..common.checks import listing
from .categories import spelling
from .labels import UNKNOWN
from .ontology import is_ontology, parents_in_ontology

# the forms in which a user gives a tree
Hierarchy: TypeAlias = Mapping[str, Any] | pd.DataFrame | pd.Series | Sequence[str] | str | os.PathLike[str]
LEARNT = "learnt"  # stands for `learnt_tree`
CONFUSED = 0.01  # share of the cells of two groups that is taken for the other group, above which they are joined


@dataclass(frozen=True, slots=True, eq=False)
class LabelTree:
    """Nodes below a root that stands for any label.

    Parameters
    ----------
    names
        Name of each node. Parents come before their children.
    parent
        int64 position of the parent of each node, -1 for the root.
    members
        Which labels each node stands for, nodes x labels: those below it, and that of its own name.
    own
        int64 label of the same name as each node, -1 without one.
    """

    names: tuple[str, ...]
    parent: Int[np.ndarray, " nodes"]
    members: Bool[np.ndarray, "nodes labels"]
    own: Int[np.ndarray, " nodes"]

    @property
    def depth(self) -> Int[np.ndarray, " nodes"]:
        """1 for the children of the root, and so on."""
        depth = np.ones(len(self.names), np.int64)
        for node, parent in enumerate(self.parent):
            if parent >= 0:
                depth[node] = depth[parent] + 1
        return depth

    def paths(
        self, probability: Float[np.ndarray, "cells labels"]
    ) -> tuple[Int[np.ndarray, "cells levels"], Float[np.ndarray, "cells levels"]]:
        """The path of each cell down the tree, to the most probable child at each node, and the probabilities there.

        A path ends (-1, and probability 0) at a leaf, or where a node's own label is more probable than any child.
        """
        mass = probability @ self.members.T
        path = np.full((len(probability), int(self.depth.max())), -1, np.int64)
        along = np.zeros(path.shape)
        at = np.full(len(probability), -1, np.int64)
        for level in range(path.shape[1]):
            for node in np.unique(at[at >= 0]) if level else [-1]:
                cells, children = np.flatnonzero(at == node), np.flatnonzero(self.parent == node)
                if len(children) == 0:
                    at[cells] = -2
                    continue
                best = children[mass[cells][:, children].argmax(1)]
                if node >= 0 and self.own[node] >= 0:
                    best[probability[cells, self.own[node]] > mass[cells, best]] = -2
                at[cells] = best
            here = at >= 0
            path[here, level], along[here, level] = at[here], mass[here, at[here]]
        return path, along


def flat_tree(labels: Sequence[str]) -> LabelTree:
    """The tree in which every label is a child of the root."""
    return _tree(dict.fromkeys(labels), labels)


def tree_from(hierarchy: object, column: Callable[[str], pd.Series], labels: Sequence[str]) -> LabelTree:
    """The tree in an ontology, in columns, or as `tree_of` takes it.

    Parameters
    ----------
    hierarchy
        The path of an OBO file, a name or names of columns from coarse to fine, or as in `tree_of`.
    column
        Gives the column of a name.
    labels
        As in `tree_of`, whose errors it has besides those of `parents_in_ontology` and `column`.
    """
    if isinstance(hierarchy, str | os.PathLike) and is_ontology(hierarchy):
        return tree_of(parents_in_ontology(hierarchy, labels), labels)
    if isinstance(hierarchy, str):
        hierarchy = [hierarchy]
    if isinstance(hierarchy, list | tuple):
        hierarchy = pd.DataFrame({key: column(key) for key in hierarchy})
    return tree_of(hierarchy, labels)


def tree_of(hierarchy: object, labels: Sequence[str]) -> LabelTree:
    """The tree of a user over the labels of a model.

    Parameters
    ----------
    hierarchy
        A mapping or Series from child to parent; a nested dict, whose innermost values are empty or lists of labels; or
        a table with one column a level, from coarse to fine, and rows for cells or for labels.
    labels
        The labels of the model. One that the tree lacks becomes a child of the root; nodes without labels are left out.

    Raises
    ------
    TypeError
        If it has another form.
    ValueError
        If it is empty or has none of the labels, or if a name has two parents, is its own ancestor or is ``"unknown"``.
    """
    if isinstance(hierarchy, pd.DataFrame):
        pairs = _pairs_of_table(hierarchy)
    elif isinstance(hierarchy, pd.Series):
        pairs = [(str(child), _text(parent)) for child, parent in hierarchy.items()]
    elif isinstance(hierarchy, Mapping):
        pairs = list(_pairs_of_mapping(hierarchy))
    else:
        raise TypeError(
            f"hierarchy is a {type(hierarchy).__name__}; pass a dict or Series from child to parent, a nested dict, a "
            "table or names of columns of adata.obs from coarse to fine, or the path of an OBO file"
        )
    if not pairs:
        raise ValueError("hierarchy is empty; pass the parent of each label, or leave it out")
    parents: dict[str, str | None] = {}
    for child, parent in ((spelling(child), None if parent is None else spelling(parent)) for child, parent in pairs):
        if parent == child:  # a table repeats a label whose finer levels do not exist
            continue
        if parents.setdefault(child, parent) != parent:
            raise ValueError(
                f"in hierarchy, {child!r} has the parents {listing([parents[child], parent])}; give the children of "
                "different parents names of their own"
            )
    for parent in [parent for parent in parents.values() if parent is not None]:
        parents.setdefault(parent, None)
    if UNKNOWN in parents:
        raise ValueError(f"hierarchy has the name {UNKNOWN!r}, which is that of its root; rename it")
    known = [label for label in labels if spelling(label) in parents]
    if not known:
        raise ValueError(
            f"hierarchy has none of the labels ({listing(labels, 5)}), but {listing(parents, 5)}; pass a "
            "tree that ends in these labels"
        )
    return _tree(parents, labels)


def _text(value: object) -> str | None:
    return None if value is None or value is pd.NA or value != value or value == "" else str(value)  # noqa: PLR0124


def _pairs_of_table(table: pd.DataFrame) -> list[tuple[str, str | None]]:
    """Each name in a row, with the last name before it in that row as its parent."""
    pairs: list[tuple[str, str | None]] = []
    for row in table.astype(object).drop_duplicates().itertuples(index=False):
        above = None
        for name in map(_text, row):
            if name is not None and name != above:
                pairs.append((name, above))
                above = name
    return pairs


def _pairs_of_mapping(mapping: Mapping[Any, Any], above: str | None = None) -> list[tuple[str, str | None]]:
    """Pairs of child and parent in a nested dict, or in a dict from child to parent."""
    if above is None and all(not isinstance(value, Mapping | list | tuple | set) for value in mapping.values()):
        return [(str(child), _text(parent)) for child, parent in mapping.items()]
    pairs: list[tuple[str, str | None]] = []
    for name, below in mapping.items():
        pairs.append((str(name), above))
        if isinstance(below, Mapping):
            pairs += _pairs_of_mapping(below, str(name)) if below else []
        elif isinstance(below, list | tuple | set):
            pairs += [(str(child), str(name)) for child in below]
        elif _text(below) is not None:
            pairs.append((str(below), str(name)))
    return pairs


def _tree(parents: Mapping[str, str | None], labels: Sequence[str]) -> LabelTree:
    """The tree of these parents, cut to the nodes that stand for a label."""
    code = {spelling(label): i for i, label in enumerate(labels)}
    ancestry = {}
    for label in code:
        line: list[str] = []
        at: str | None = label
        while at is not None:
            if at in line:
                raise ValueError(f"in hierarchy, {at!r} is its own ancestor ({listing([*line, at])}); open the circle")
            line.append(at)
            at = parents.get(at)
        ancestry[label] = line[::-1]
    depth = {name: i for line in ancestry.values() for i, name in enumerate(line)}
    names = sorted(depth, key=lambda name: (depth[name], name))
    place = {name: i for i, name in enumerate(names)}
    members = np.zeros((len(names), len(labels)), bool)
    for label, line in ancestry.items():
        members[[place[name] for name in line], code[label]] = True
    above = [parents.get(name) for name in names]
    return LabelTree(
        names=tuple(labels[code[name]] if name in code else name for name in names),
        parent=np.array([-1 if parent is None else place[parent] for parent in above], np.int64),
        members=members,
        own=np.array([code.get(name, -1) for name in names], np.int64),
    )


def learnt_tree(
    probability: Float[np.ndarray, "judged labels"], truth: Bool[np.ndarray, "judged labels"], labels: Sequence[str]
) -> LabelTree:
    """A tree that joins the labels which are taken for each other in cells that were held out of the training.

    The expected number of cells of one group that are taken for the other, in both directions, is divided by the number
    of cells of both. The two groups with the largest share are joined, again and again, until it is below `CONFUSED`.
    Cells that may have several labels do not count.
    """
    confused, exact = np.zeros((len(labels), len(labels))), truth.sum(1) == 1
    np.add.at(confused, truth[exact].argmax(1), probability[exact])
    size = truth[exact].sum(0).astype(float)
    groups: dict[int, tuple[str, ...]] = {i: (label,) for i, label in enumerate(labels)}
    parents: dict[str, str | None] = {}
    while len(groups) > 2:
        alive = sorted(groups)
        both = size[alive][:, None] + size[alive]
        share = (confused + confused.T)[np.ix_(alive, alive)] / np.maximum(both, 1.0)
        np.fill_diagonal(share, 0.0)
        if share.max() < CONFUSED:
            break
        a, b = (alive[i] for i in np.unravel_index(share.argmax(), share.shape))
        joined = (*groups[a], *groups[b])
        name = " or ".join(sorted(joined))
        parents |= {" or ".join(sorted(groups[a])): name, " or ".join(sorted(groups[b])): name, name: None}
        confused[a] += confused[b]
        confused[:, a] += confused[:, b]
        size[a] += size[b]
        groups[a] = joined
        del groups[b]
    return _tree({spelling(k): v for k, v in parents.items()} | {spelling(n): parents.get(n) for n in labels}, labels)
