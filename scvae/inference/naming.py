"""Names for cells from the probabilities of labels: the most probable label, or a node of a tree of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from ..data.label_tree import LEARNT, LabelTree, flat_tree, learnt_tree, tree_from
from ..data.labels import UNKNOWN
from .label_confidence import curves, name_cells


@dataclass(frozen=True, slots=True, eq=False)
class Judges:
    """Labelled cells predicted without their labels: probabilities, and which labels the true one may be.

    That is one, or several where a cell has a coarser name: all names that agree with it are right.
    """

    probability: Float[np.ndarray, "judged labels"]
    truth: Bool[np.ndarray, "judged labels"]


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """The name of each cell, its probability and depth (0 without a name), and the smallest probability of a name."""

    label: np.ndarray[Any, Any]
    probability: Float[np.ndarray, " cells"]
    depth: Int[np.ndarray, " cells"]
    threshold: float


def tree_for(
    hierarchy: object, column: Callable[[str], pd.Series], judges: Judges | None, labels: Sequence[str]
) -> LabelTree:
    """The tree of labels that a user asks for.

    Parameters
    ----------
    hierarchy
        As in `scvae.tl.predict_labels`.
    column
        Gives the column of a name in `hierarchy`.
    judges
        Needed for every tree but the flat one.
    labels
        The labels.

    Raises
    ------
    ValueError
        If there are no judges, or as `tree_from`.
    """
    if hierarchy is None:
        return flat_tree(labels)
    if judges is None or len(judges.truth) == 0:
        raise ValueError(
            "hierarchy needs labelled cells that were held out of the training, and the model has none; fit it with "
            "TrainingConfig.validation_fraction above 0, or leave hierarchy out"
        )
    if isinstance(hierarchy, str) and hierarchy == LEARNT:
        return learnt_tree(judges.probability, judges.truth, labels)
    return tree_from(hierarchy, column, labels)


def named(
    tree: LabelTree,
    judges: Judges | None,
    probability: Float[np.ndarray, "cells labels"],
    is_off: Bool[np.ndarray, " cells"],
    max_error: float | None,
    *,
    random: float = 0.0,
) -> Named:
    """Names cells; those off the reference have none, and do not count among those that could have one.

    Without `max_error`, each cell has the name of its most probable label. `random` is the share of the labels of the
    judges that is wrong: they know of `probability` what is seen of it in labels as given.
    """
    if max_error is None or judges is None:
        node, sure, threshold = probability.argmax(1), probability.max(1), 0.0
        node = np.array([np.flatnonzero(tree.own == label)[0] for label in range(probability.shape[1])])[node]
    else:
        node, sure = np.full(len(probability), -1), tree.paths(probability)[1][:, 0]
        on = np.flatnonzero(~is_off)
        found = name_cells(tree, judges.probability, judges.truth, as_given(probability[on], random), max_error)
        node[on], threshold = found.node, found.threshold
        has = np.flatnonzero(node >= 0)
        sure[has] = (probability[has] @ tree.members.T)[np.arange(len(has)), node[has]]
    node = np.where(is_off, -1, node)
    label = np.where(node < 0, UNKNOWN, np.asarray(tree.names, dtype=object)[node])
    return Named(label, sure, np.where(node < 0, 0, tree.depth[node]), threshold)


def as_given(probability: Float[np.ndarray, "cells labels"], random: float) -> Float[np.ndarray, "cells labels"]:
    """Probabilities of the label that is given to a cell, if a share of the labels is drawn at random."""
    given: Float[np.ndarray, "cells labels"] = (1.0 - random) * probability + random / probability.shape[1]
    return given


def confidence(tree: LabelTree, judges: Judges, names: Named, max_error: float) -> dict[str, Any]:
    """The record for the plot: curves of the judges, one point after another, and what was done with the cells."""
    found = curves(tree, judges.probability, judges.truth)
    columns = {
        name: np.concatenate([np.empty(0), *(getattr(curve, name) for curve in found)])
        for name in ("threshold", "coverage", "error")
    }
    return columns | {
        "level": np.concatenate([np.empty(0, np.int64), *(np.full(len(c.error), c.level) for c in found)]),
        "depth": np.bincount(names.depth, minlength=int(tree.depth.max()) + 1) / len(names.depth),
        "least_probability": names.threshold,
        "max_error": max_error,
        "n_held_out": len(judges.truth),
    }
