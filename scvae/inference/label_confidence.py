"""How deep in a tree of labels a cell can be named, if at most a given share of the names may be wrong.

A cell's path leads down the tree, with a probability at each node that falls with the depth. Of the nodes with at least
some threshold, the deepest names the cell; without any, it has no name. The threshold is the smallest t with

    (1 + W(t)) / (n + 1) <= max_error G(t) / m,

where W(t) counts those of n held-out cells that t names wrongly, and G(t) those of the m query cells that it names.
If held-out and query cells are exchangeable, the expected share of wrong names among those given is then at most
`max_error`, whatever the classifier and for any number of cells. This is the selection of Jin & Candès 2023
("Selection by prediction with conformal p-values"), with W and G of a path instead of a single guess; their proof
holds, since a cell that is wrongly named at t is named at t, and is so at every smaller t.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..common.checks import warn
from ..data.label_tree import LabelTree

MOST_POINTS = 200  # of a curve


@dataclass(frozen=True, slots=True, eq=False)
class Naming:
    """The node that names each cell.

    Parameters
    ----------
    node
        int64 position in the tree; -1 for cells without a name.
    probability
        Probability of the node; of the most probable child of the root for cells without a name.
    threshold
        The smallest probability of a node that names a cell; infinite if no cell has a name.
    """

    node: Int[np.ndarray, " cells"]
    probability: Float[np.ndarray, " cells"]
    threshold: float


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Coverage against error of one level, over held-out cells.

    Parameters
    ----------
    level
        Depth of the names, from 1; those of cells whose path ends before are less deep.
    threshold
        Smallest probabilities of a name, descending.
    coverage
        Share of the cells that have a name at each threshold.
    error
        Share of wrong names among these.
    """

    level: int
    threshold: Float[np.ndarray, " points"]
    coverage: Float[np.ndarray, " points"]
    error: Float[np.ndarray, " points"]


def name_cells(
    tree: LabelTree,
    held_out: Float[np.ndarray, "judged labels"],
    truth: Bool[np.ndarray, "judged labels"],
    query: Float[np.ndarray, "cells labels"],
    max_error: float,
) -> Naming:
    """Names the query cells by the rule of this module.

    Parameters
    ----------
    tree
        The tree of labels.
    held_out, query
        Label probabilities of held-out cells and of query cells.
    truth
        Which labels each held-out cell may have: one, or several under a coarser name.
    max_error
        Largest expected share of wrong names among those given.

    Warns
    -----
    UserWarning
        If there are too few held-out cells for any name.
    """
    if max_error * (len(truth) + 1) < 1.0 and max_error > 0.0:
        warn(
            f"no cell gets a name: {len(truth)} cells with a label were held out of the training, and with "
            f"max_error={max_error:g} the promise takes at least {math.ceil(1.0 / max_error) - 1}; allow more error, "
            "label more cells, or leave hierarchy out"
        )
    path, along = tree.paths(query)
    threshold = threshold_of(wrong_from(tree, held_out, truth), along[:, 0], max_error)
    n_named = (along >= threshold).sum(1)
    rows, last = np.arange(len(query)), np.maximum(n_named - 1, 0)
    node = np.where(n_named > 0, path[rows, last], -1)
    return Naming(node, along[rows, last], threshold)


def wrong_from(
    tree: LabelTree, held_out: Float[np.ndarray, "judged labels"], truth: Bool[np.ndarray, "judged labels"]
) -> Float[np.ndarray, " judged"]:
    """The largest threshold at which each held-out cell gets a wrong name; -inf for cells whose path is right.

    A node is wrong if it stands for no label that the cell may have.
    """
    path, along = tree.paths(held_out)
    wrong = (path >= 0) & ~(truth @ tree.members.T)[np.arange(len(truth))[:, None], path]
    found: Float[np.ndarray, " judged"] = np.where(wrong, along, -math.inf).max(1)
    return found


def threshold_of(wrong: Float[np.ndarray, " judged"], named: Float[np.ndarray, " cells"], max_error: float) -> float:
    """The threshold of this module; infinite if there is none.

    Parameters
    ----------
    wrong
        The largest threshold at which each held-out cell has a wrong name.
    named
        The largest threshold at which each query cell has a name.
    """
    # with a rising threshold, the left side falls only behind a probability in `wrong`, and the right side never rises
    # ends of paths have probability 0, so the smallest candidate is above it
    candidates = np.unique(np.nextafter(np.append(wrong[np.isfinite(wrong)], 0.0), math.inf))
    n_wrong = len(wrong) - np.searchsorted(np.sort(wrong), candidates)
    n_named = len(named) - np.searchsorted(np.sort(named), candidates)
    good = (1 + n_wrong) * len(named) <= max_error * (len(wrong) + 1) * n_named
    return float(candidates[good][0]) if good.any() else math.inf


def curves(
    tree: LabelTree, held_out: Float[np.ndarray, "judged labels"], truth: Bool[np.ndarray, "judged labels"]
) -> list[Curve]:
    """Coverage against error at each level of the tree, over held-out cells."""
    if len(truth) == 0:
        return []
    path, along = tree.paths(held_out)
    found, rows, fits = [], np.arange(len(truth)), truth @ tree.members.T
    for level in range(1, path.shape[1] + 1):
        last = (path[:, :level] >= 0).sum(1) - 1
        right, probability = fits[rows, path[rows, last]], along[rows, last]
        order = np.argsort(-probability, kind="stable")
        n = np.arange(1, len(truth) + 1)
        error = (~right[order]).cumsum() / n
        shown = np.unique(np.linspace(0, len(truth) - 1, min(MOST_POINTS, len(truth))).astype(np.int64))
        found.append(Curve(level, probability[order][shown], (n / len(truth))[shown], error[shown]))
    return found
