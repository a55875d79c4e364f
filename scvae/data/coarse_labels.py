"""Labels of different depth: which of the labels of a fit are coarser names of others, by a tree of labels."""

from __future__ import annotations

import os
import re
from functools import partial

import numpy as np
import pandas as pd
from anndata import AnnData

from ..common.checks import check_obs_column, listing, reworded, warn
from .categories import as_text, spelling
from .label_tree import LEARNT, tree_from
from .labels import Labels
from .ontology import is_ontology, labels_below

ARGUMENT = re.compile(r"(?<![\w'/.-])hierarchy(?![\w'/.-])")  # in messages; not a column or a path of this name


def with_coarse(labels: Labels, hierarchy: object, adata: AnnData, n_known: int = 0) -> Labels:
    """The labels, of which those over others are coarser names of these.

    Parameters
    ----------
    labels
        Labels of the cells.
    hierarchy
        As in `scvae.fit`. What it says is added to `labels.coarse`.
    adata
        Has the columns that `hierarchy` names. Cells without a label have no place in them.
    n_known
        The first of the names are those of a model, which keep their meaning.

    Raises
    ------
    ValueError
        If `hierarchy` is no tree over the labels, if cells called `labels.unlabelled` would have a coarser label, if
        the finest labels are fewer than two, or if a label of a model would become a coarser one.
    MissingKeyError
        If there is no such column.
    TypeError, FileNotFoundError, ImportError
        As for `hierarchy` of `scvae.tl.predict_labels`.

    Warns
    -----
    UserWarning
        If no label is over others, or one is over a single other one.
    """
    with reworded(lambda text: ARGUMENT.sub("label_hierarchy", text)):
        below = _below(labels, hierarchy, adata)
    for name, under in labels.coarse:
        below[name] |= {labels.names[code] for code in under}
    lost = [name for name in labels.names[:n_known] if below[name]]
    if lost:
        raise ValueError(
            f"the model in init has the label {lost[0]!r}, which label_hierarchy makes a coarser name of "
            f"{listing(sorted(below[lost[0]]), 5)}; leave init out to learn the finer labels"
        )
    names = tuple(name for name in labels.names if not below[name])
    if len(names) < 2:
        raise ValueError(
            f"by label_hierarchy, the finest of the labels {listing(labels.every)} is {listing(names)}; at least two "
            "are needed to tell them apart"
        )
    code = {name: i for i, name in enumerate(names)}
    coarse = {name: tuple(sorted(code[n] for n in below[name] if n in code)) for name in labels.every if below[name]}
    where = f"adata.obs[{labels.key!r}]"
    if not coarse:
        warn(f"label_hierarchy changes nothing: no label of {where} is over others of {listing(names, 5)}")
    for name, under in coarse.items():
        if len(under) == 1:
            warn(
                f"of the labels under {name!r} in label_hierarchy, {where} has {names[under[0]]!r} alone, as which all "
                f"cells called {name!r} will count; leave {name!r} out of the tree if it is more than that"
            )
    return Labels(labels.key, names, labels.unlabelled, labels.weight, tuple(coarse.items()))


def _below(labels: Labels, hierarchy: object, adata: AnnData) -> dict[str, set[str]]:
    """The labels under each label."""
    if isinstance(hierarchy, str) and hierarchy == LEARNT:
        raise ValueError(
            "hierarchy is 'learnt', but a tree is learnt from the predictions of a model that is fitted; pass a tree "
            "of names, or take it for scvae.tl.predict_labels"
        )
    if isinstance(hierarchy, str | os.PathLike) and is_ontology(hierarchy):
        return labels_below(hierarchy, labels.every)
    tree = tree_from(hierarchy, partial(_column, adata, labels.unlabelled), labels.every)
    if labels.unlabelled in tree.names:
        under = np.flatnonzero(tree.members[tree.names.index(labels.unlabelled)])
        raise ValueError(
            f"unlabelled is {labels.unlabelled!r}, in hierarchy a coarser name of "
            f"{listing([labels.every[code] for code in under], 5)}; leave unlabelled out to train with it, or take the "
            "name out of the tree"
        )
    below: dict[str, set[str]] = {name: set() for name in labels.every}
    for node in np.flatnonzero(tree.own >= 0):
        name = labels.every[tree.own[node]]
        below[name] = {labels.every[code] for code in np.flatnonzero(tree.members[node])} - {name}
    return below


def _column(adata: AnnData, unlabelled: str | None, key: str) -> pd.Series:
    text = as_text(check_obs_column(adata, key)).map(spelling, na_action="ignore")
    return text.mask(text == unlabelled)
