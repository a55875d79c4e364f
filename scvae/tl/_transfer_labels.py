"""`transfer_labels`: labels the cells of a query with the cell types of a reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..common.checks import check_adata, check_obs_column, check_probability, listing, missing_key, speaking_of
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.slots import target_of, write_made
from ..data.cells import Cells
from ..data.genes import LEAST_COVERAGE
from ..data.label_tree import Hierarchy
from ..data.labels import UNKNOWN, labels_in
from ..data.modalities import modalities_of
from ..diagnostics.expression_pca import most_alike
from ..inference.cells import read_cells, read_new, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.label_transfer import N_PEERS, transfer
from ..inference.naming import confidence, named, tree_for
from ..inference.needs import reference_of_model
from ..inference.posterior import posterior_moments
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def transfer_labels(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    reference: AnnData | MuData | None = None,
    labels_key: str | None = None,
    batch_key: str | None = None,
    hierarchy: Hierarchy | None = None,
    max_error: float = 0.05,
    unknown_above: float = 0.7,
    beta: float | None = None,
    layer: str | None = None,
    reference_layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Labels cells by their nearest labelled cells in the latent space.

    The reference is an AnnData, or came with the model in its file (see `FittedModel.save`). If the query or an AnnData
    lacks genes, both are embedded with the genes they have in common; a reference in a file stays as it was embedded.

    The probability of a label is its kernel-weighted share among the 30 nearest reference cells and a uniform prior, so
    it decreases with the distance from them. Bandwidth and prior weight maximise the leave-one-out likelihood of the
    reference's own labels, with each reference cell weighted by how often it is a neighbour of a query cell. If the
    query overlaps with the reference, about 1 in 5 cells with an uncertainty of 0.2 is therefore labelled wrongly.

    A cell is called unknown together with similar cells. Its outlier score is averaged over the 20 query cells nearest
    to it (itself included) in principal components of the query's own expression, independent of any model. A single
    cell of another technology can be as far from the reference as a cell of a missing type; a whole group of distant
    cells points to a missing type. Before scoring, a distance excess shared by all query cells is divided out, up to a
    factor of 1.5.

    Parameters
    ----------
    adata
        The query. The model must know its batches: for new batches, use the model that `scvae.tl.map_query` returns.
    model
        A fitted model.
    reference
        Labelled cells with raw data, as in the fit; for example, the cells of the fit. Not changed. None takes the
        reference that came with the model.
    labels_key
        Column of `reference.obs` with the labels; cells without a label are left out. None takes the only column of
        labels in the model's file.
    batch_key
        Column of `adata.obs` with the batch, if its name differs from that in the fit, as in `scvae.tl.map_query`.
    hierarchy
        A tree of labels, as in `scvae.tl.predict_labels`: each cell then gets the deepest name that is sure enough.
        Names of columns, from coarse to fine and ending in `labels_key`, are those of `reference`.
    max_error
        With `hierarchy`: the largest expected share of wrong names among those given, in [0, 1]. It is judged by the
        reference cells near the query, each predicted from the others, and so holds for cells like these: of another
        donor or technology, more names are wrong.
    unknown_above
        Outlier score above which a cell is called ``"unknown"``, in [0, 1]; 1 calls no cell unknown.
    beta
        For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer of `adata` with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    reference_layer
        The same for an AnnData as `reference`; None for the layer of `adata`.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obs["<key_added>_label"]``
            The most probable label, or the name of a node of the tree, or ``"unknown"``; categorical.
        ``obs["<key_added>_label_uncertainty"]``
            1 - probability of that label or node, in [0, 1]: the probability that it is wrong.
        ``obs["<key_added>_outlier"]``
            Share of the reference cells that are nearer to their five nearest neighbours than the cell is to its five
            nearest reference cells, in [0, 1]. It is taken over all reference cells or over those with the cell's most
            probable label, whichever is larger, and averaged over the cell and the 19 query cells most like it. In a
            test with 37 types held out of eight references, the default limit called half of their cells unknown
            (nearly all of distinct types, hardly any of types similar to another) and 6 % of the cells of other types.
            Sort by this column if unknown types matter.
        ``uns["<key_added>"]["label_confidence"]``
            With `hierarchy`, for `scvae.pl.label_confidence`: as written by `predict_labels`.
        ``uns["<key_added>"]``
            The identity of the model and checksums of these columns. An embedding of another model under this key
            removes the columns, unless they were edited since.

    Raises
    ------
    ValueError
        As for `embed`; if `reference` has fewer than two labelled cells, nearly as many labels as cells, or a label
        ``"unknown"``; if it has fewer than half of the modelled genes in common with `adata`; if it is None and the
        model has no reference, or one at another β; MissingKeyError (also a KeyError) if it has no column `labels_key`.
        `adata` is then unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_batches=3, rng=0)
    >>> is_new = adata.obs["batch"] == "batch_2"
    >>> reference, query = adata[~is_new].copy(), adata[is_new].copy()
    >>> model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False)
    >>> mapped = scvae.tl.map_query(query, model, verbose=False)
    >>> scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type")
    >>> query.obs[["scvae_label", "scvae_label_uncertainty", "scvae_outlier"]].shape
    (100, 3)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    limit = check_probability(unknown_above, "unknown_above")
    max_error = check_probability(max_error, "max_error")
    if reference is None:
        known = _in_file(model, labels_key, reference_layer, beta)
        query = read_new(adata, model, layer, batch_key=batch_key)
    else:
        with modalities_of(reference, model.schema.name) as labelled:
            codes, names = _labels_of(labelled, labels_key)
            model.beta_of(beta)
            query = read_new(adata, model, layer, batch_key=batch_key)
            with speaking_of("reference", layer="reference_layer"):
                cells = read_cells(labelled, model, layer if reference_layer is None else reference_layer)
        query, cells = _alike(query, cells.taken(np.flatnonzero(codes >= 0)), model)
        known = _Known(model.written(posterior_moments(model, cells, beta=beta)[0]), codes[codes >= 0], names)
    found = transfer(
        known.place,
        known.label,
        model.written(posterior_moments(model, query, beta=beta)[0]),
        most_alike(query, N_PEERS, kind=model.schema.kind, seed=model.seed),
        query.group,
    )
    assert found.judges is not None
    tree = tree_for(hierarchy, lambda key: _column(reference, model, key), found.judges, known.names)
    limited = None if hierarchy is None else max_error
    given = named(tree, found.judges, found.probability, found.outlier > limit, limited)
    made = {} if hierarchy is None else {keys.label_confidence: confidence(tree, found.judges, given, max_error)}
    target = target_of(adata, copy=copy)
    write_made(
        target,
        keys,
        model.digest,
        obs={
            keys.label: pd.Categorical(given.label, categories=[*tree.names, UNKNOWN]),
            keys.label_uncertainty: 1.0 - given.probability,
            keys.outlier: found.outlier,
        },
        record=made,
    )
    return target if copy else None


class _Known(NamedTuple):
    """Labelled cells: their places in the coordinates of the embedding, their labels as codes, and the names."""

    place: Float[np.ndarray, "cells latent"]
    label: Int[np.ndarray, " cells"]
    names: Sequence[str]


def _labels_of(reference: AnnData, labels_key: str | None) -> tuple[Int[np.ndarray, " cells"], list[str]]:
    """The labels of an AnnData: codes, -1 for cells without a label, and names."""
    if labels_key is None:
        raise ValueError("labels_key is missing; pass the column of reference.obs that holds the labels")
    with speaking_of("reference", layer="reference_layer"):
        column = check_obs_column(check_adata(reference), labels_key)
        found = labels_in(column, f"adata.obs[{labels_key!r}]")
    return found.codes.astype(np.int64), list(found.categories)


def _in_file(model: FittedModel, labels_key: str | None, reference_layer: str | None, beta: float | None) -> _Known:
    """The labelled cells of the reference that came with the model."""
    if reference_layer is not None:
        raise ValueError("reference_layer is of an AnnData; pass reference=adata with it, or leave it out")
    kept = reference_of_model(model, "scvae.tl.transfer_labels without reference=", beta=beta)
    if labels_key is None and len(kept.labels) != 1:
        raise ValueError(
            f"the model's reference has {len(kept.labels)} columns of labels ({listing(kept.labels)}); "
            + ("pass one as labels_key" if kept.labels else "save it again with labels=['cell_type']")
        )
    key = next(iter(kept.labels)) if labels_key is None else labels_key
    if key not in kept.labels:
        raise missing_key("the model's reference", key, list(kept.labels))
    codes = kept.labels[key].codes.astype(np.int64)
    return _Known(kept.mean[codes >= 0].astype(np.float32), codes[codes >= 0], list(kept.labels[key].categories))


def _column(reference: AnnData | None, model: FittedModel, key: str) -> pd.Series:
    """A column of labels of the reference."""
    if reference is not None:
        with speaking_of("reference"):
            return check_obs_column(reference, key)
    kept = {} if model.reference is None else model.reference.labels
    if key not in kept:
        raise missing_key("the model's reference", key, list(kept))
    return pd.Series(kept[key])


def _alike(query: Cells, known: Cells, model: FittedModel) -> tuple[Cells, Cells]:
    """Both without the genes that either lacks: distances are comparable only between the same genes."""
    missing = np.union1d(query.missing_genes, known.missing_genes)
    n_genes = len(model.genes)
    if n_genes - len(missing) < LEAST_COVERAGE * n_genes:
        raise ValueError(
            f"adata and reference have {n_genes - len(missing):,} of the {n_genes:,} modelled genes in common, but at "
            "least half are needed; pass data with more of these genes"
        )
    has_factors = model.schema.size_factor_key is not None
    return query.lacking(missing, size_factors=has_factors), known.lacking(missing, size_factors=has_factors)
