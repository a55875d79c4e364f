"""`predict_labels`: names cells by the classifier of a model that was fitted with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.checks import check_adata, check_obs_column, check_probability
from ..common.keys import Keys, as_keys
from ..common.provenance import check_replaceable
from ..common.slots import target_of, write_made
from ..data.labels import UNKNOWN
from ..diagnostics.expression_pca import most_alike
from ..inference.cells import read_cells, with_batch_key
from ..inference.fitted import FittedModel, check_model
from ..inference.known_labels import KnownLabels
from ..inference.label_confidence import curves, name_cells
from ..inference.label_prediction import calibrated, labels_of, predict
from ..inference.label_transfer import N_PEERS
from ..inference.label_tree import LabelTree, flat_tree, learnt_tree, tree_of
from ..inference.posterior import posterior_moments
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData

LEARNT = "learnt"


@computing()
def predict_labels(
    adata: AnnData,
    model: FittedModel,
    *,
    hierarchy: Mapping[str, Any] | pd.DataFrame | pd.Series | Sequence[str] | str | None = None,
    max_error: float = 0.05,
    unknown_above: float = 0.7,
    probabilities: bool = False,
    batch_key: str | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Labels cells by the classifier of a model that was fitted with ``labels_key``.

    The probability of a label is the softmax of the classifier's logits at the posterior mean, divided by a temperature
    (Guo et al. 2017), mixed with a uniform distribution; both follow from the labels of cells that the fit held out of
    the training. Cells off the reference are called unknown together with similar cells, by the score of
    `scvae.tl.transfer_labels`, for which the model keeps the latent positions of up to 5,000 labelled cells. That score
    is for types that no label stands for; the probability says which label, if it is one of them.

    With `hierarchy`, a cell gets the deepest name in a tree of labels of which the evidence is sure enough: its own
    type, else the parent, and so on, else ``"unknown"``. If the cells are exchangeable with those of the fit, at most a
    share of `max_error` of the names given is expected to be wrong (conformal selection, Jin & Candès 2023; the
    held-out cells of the fit are what it is judged by). Cells of another technology are not exchangeable: more names
    are wrong then. The rule looks at all cells of a call together, so a name may depend on the other cells.

    Take `transfer_labels` if the model was fitted without labels, or the labels changed since; it needs the reference.

    Parameters
    ----------
    adata
        Cells to label, those of the fit or others. The model must know their batches: for new batches, use the model
        that `scvae.tl.map_query` returns.
    model
        A model that was fitted with labels.
    hierarchy
        The tree of labels: a dict or Series from child to parent; a nested dict (``{"T": {"CD4 T": {}, "CD8 T": {}}}``,
        or with lists as its innermost values); a table with a column for each level, from coarse to fine, as
        ``reference.obs[["lineage", "cell_type"]]``; names of such columns of `adata.obs`; or ``"learnt"`` for a tree
        that joins labels which are taken for each other in held-out cells. A label that is not in the tree is a child
        of its root. None gives each cell its most probable label.
    max_error
        With `hierarchy`: the largest expected share of wrong names among those given, in [0, 1].
    unknown_above
        Outlier score above which a cell is called ``"unknown"``, in [0, 1]; 1 calls no cell unknown for this reason.
    probabilities
        Whether to write the probabilities of all labels.
    batch_key
        Column of `adata.obs` with the batch, if its name differs from that in the fit, as in `scvae.tl.map_query`.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written, the first three as by `transfer_labels`:

        ``obs["<key_added>_label"]``
            The most probable label, or the name of a node of the tree, or ``"unknown"``; categorical.
        ``obs["<key_added>_label_uncertainty"]``
            1 - probability of that label or node, in [0, 1]; of the most probable one for cells called unknown.
        ``obs["<key_added>_outlier"]``
            Share of the labelled cells that are nearer to their neighbours than the cell is to its own, in [0, 1].
        ``obsm["<key_added>_label_probability"]``
            With `probabilities`: float32 table, cells x labels.
        ``uns["<key_added>"]["label_confidence"]``
            For `scvae.pl.label_confidence`: error and coverage of the labels of held-out cells of the fit, by level of
            the tree, and the threshold used.

    Raises
    ------
    ValueError
        As for `embed`; if the model was fitted without labels, or `hierarchy` is not a tree over its labels.
        MissingKeyError (also a KeyError) if a column does not exist. `adata` is then unchanged.
    TypeError
        If `hierarchy` has another form.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_types=3, rng=0)
    >>> model = scvae.fit(adata, labels_key="cell_type", rng=0, verbose=False)
    >>> scvae.tl.predict_labels(adata, model)
    >>> adata.obs[["scvae_label", "scvae_label_uncertainty", "scvae_outlier"]].shape
    (300, 3)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    limit = check_probability(unknown_above, "unknown_above")
    max_error = check_probability(max_error, "max_error")
    known, labels = labels_of(model)
    held_out = calibrated(known, known.held_out)
    tree = _tree_of(adata, hierarchy, held_out, known, labels)
    cells = read_cells(adata, with_batch_key(model.schema, batch_key), layer)
    mean, _ = posterior_moments(model, cells)
    found = predict(model, known, mean, most_alike(cells, N_PEERS, kind=model.schema.kind, seed=model.seed))
    is_off = found.outlier > limit
    named = _named(tree, held_out, known, found.probability, is_off, max_error if hierarchy is not None else None)
    target = target_of(adata, copy=copy)
    table = pd.DataFrame(found.probability.astype(np.float32), index=adata.obs_names, columns=as_keys(labels))
    write_made(
        target,
        keys,
        model.digest,
        obs={
            keys.label: pd.Categorical(named.label, categories=[*tree.names, UNKNOWN]),
            keys.label_uncertainty: 1.0 - named.probability,
            keys.outlier: found.outlier,
        },
        obsm={keys.label_probability: table if probabilities else None},
        record={keys.label_confidence: _confidence(tree, held_out, known, named, max_error)},
    )
    return target if copy else None


@dataclass(frozen=True, slots=True, eq=False)
class _Named:
    """The name of each cell, its probability and depth (0 without a name), and the smallest probability of a name."""

    label: np.ndarray
    probability: Float[np.ndarray, " cells"]
    depth: np.ndarray
    threshold: float


def _tree_of(
    adata: AnnData,
    hierarchy: object,
    held_out: Float[np.ndarray, "judged labels"],
    known: KnownLabels,
    labels: tuple[str, ...],
) -> LabelTree:
    if hierarchy is None:
        return flat_tree(labels)
    if len(held_out) == 0:
        raise ValueError(
            "hierarchy needs labelled cells that were held out of the training, and the model has none; fit it with "
            "TrainingConfig.validation_fraction above 0, or leave hierarchy out"
        )
    if isinstance(hierarchy, str) and hierarchy == LEARNT:
        return learnt_tree(held_out, known.truth, labels)
    if isinstance(hierarchy, str):
        hierarchy = [hierarchy]
    if isinstance(hierarchy, list | tuple):
        hierarchy = pd.DataFrame({key: check_obs_column(adata, key) for key in hierarchy})
    return tree_of(hierarchy, labels)


def _named(
    tree: LabelTree,
    held_out: Float[np.ndarray, "judged labels"],
    known: KnownLabels,
    probability: Float[np.ndarray, "cells labels"],
    is_off: np.ndarray,
    max_error: float | None,
) -> _Named:
    """Names cells; those off the reference have none, and do not count among those that could have one."""
    if max_error is None:
        node, sure, threshold = probability.argmax(1), probability.max(1), 0.0
        node = np.array([np.flatnonzero(tree.own == label)[0] for label in range(probability.shape[1])])[node]
    else:
        node, sure = np.full(len(probability), -1), tree.paths(probability)[1][:, 0]
        on = np.flatnonzero(~is_off)
        named = name_cells(tree, held_out, known.truth, probability[on], max_error)
        node[on], sure[on], threshold = named.node, named.probability, named.threshold
    node = np.where(is_off, -1, node)
    label = np.where(node < 0, UNKNOWN, np.asarray(tree.names, dtype=object)[node])
    return _Named(label, sure, np.where(node < 0, 0, tree.depth[node]), threshold)


def _confidence(
    tree: LabelTree,
    held_out: Float[np.ndarray, "judged labels"],
    known: KnownLabels,
    named: _Named,
    max_error: float,
) -> dict[str, Any]:
    """The record for the plot: curves of held-out cells, one point after another, and what was done with the cells."""
    found = curves(tree, held_out, known.truth)
    columns = {
        name: np.concatenate([np.empty(0), *(getattr(curve, name) for curve in found)])
        for name in ("threshold", "coverage", "error")
    }
    return columns | {
        "level": np.concatenate([np.empty(0, np.int64), *(np.full(len(c.error), c.level) for c in found)]),
        "depth": np.bincount(named.depth, minlength=int(tree.depth.max()) + 1) / len(named.depth),
        "least_probability": named.threshold,
        "max_error": max_error,
        "n_held_out": len(held_out),
    }
