"""`transfer_labels`: cell types of a reference for the cells of a query."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.checks import check_adata, check_obs_column, check_probability, listing, speaking_of
from ..common.keys import Keys
from ..common.slots import target_of, write
from ..data.genes import LEAST_COVERAGE
from ..data.intake import Cells
from ..diagnostics.expression_pca import most_alike
from ..inference.cells import read_cells, with_batch_key
from ..inference.fitted import FittedModel, check_model
from ..inference.label_transfer import N_PEERS, transfer
from ..inference.posterior import posterior_moments

if TYPE_CHECKING:
    from anndata import AnnData

UNKNOWN = "unknown"
FEW_LABELS = 20  # that any number of cells may have


def transfer_labels(
    adata: AnnData,
    model: FittedModel,
    *,
    reference: AnnData,
    labels_key: str,
    batch_key: str | None = None,
    unknown_above: float = 0.7,
    beta: float | None = None,
    layer: str | None = None,
    reference_layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Labels cells by the labelled cells that are nearest to them in the latent space.

    Where either side lacks genes, both are embedded by those that both have.

    The probability of a label is its kernel-weighted share among the 30 nearest reference cells and a prior that knows
    nothing, so that it falls with the distance from them. Bandwidth and weight of the prior are those under which the
    labels of the reference's own cells are most likely, each judged by all others, and counted as often as query cells
    have it for a neighbour. So of cells with an uncertainty of 0.2 about 1 in 5 is labelled wrongly, as far as the
    query lies on the reference.

    A cell is called unknown together with those like it. Its outlier score is averaged over the query cells that are
    nearest to it in principal components of their own expression, 20 with itself, which no model has looked at: one
    cell of another technology may lie as far off the reference as a cell of a type that it lacks, but a whole group of
    them does so for a reason. By what all cells of the query are farther off, up to a factor of 1.5, is taken from
    their distances first.

    Parameters
    ----------
    adata
        The query, of batches that the model knows: after `scvae.tl.map_query`, with the model it returned.
    model
        A fitted model.
    reference
        Labelled cells, with raw data as at the fit: those of the fit, say. Not changed.
    labels_key
        Column of `reference.obs` with the labels; cells without one are left out.
    batch_key
        Column of `adata.obs` with the batch, where it is named otherwise than at the fit, as in `scvae.tl.map_query`.
    unknown_above
        Outlier score above which a cell is called ``"unknown"``, in [0, 1]; 1 for none.
    beta
        Of a model of many β, that of the embeddings; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data of `adata`, ``"X"`` for `X`; None for where the fit found them.
    reference_layer
        The same of `reference`; None for the one of `adata`.
    key_added
        Name of the slots written.
    copy
        Whether to leave `adata` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obs["<key_added>_label"]``
            The most probable label, or ``"unknown"``; categorical.
        ``obs["<key_added>_label_uncertainty"]``
            1 - probability of the most probable label, in [0, 1]: how often it is wrong.
        ``obs["<key_added>_outlier"]``
            Share of the reference cells that are nearer to their five nearest neighbours than a cell is to its five
            nearest reference cells, in [0, 1]; of all of them, or of those of its most probable label, if that is more:
            the mean over this cell and the 19 query cells most like it. Of 37 types held out of eight references the
            default limit called half of the cells unknown, nearly all of a distinct type and hardly one of a type
            like another, and 6 % of the cells of other types; sort by this column where the question matters.

    Raises
    ------
    ValueError
        If `reference` has fewer than two labelled cells, nearly as many labels as cells, or a label ``"unknown"``, if
        it and `adata` have fewer than half of the modelled genes in common, or as `embed`; MissingKeyError (also a
        KeyError) if it has no such column.
        `adata` is then as it was.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=600, n_genes=100, n_batches=3, rng=0)
    >>> is_new = adata.obs["batch"] == "batch_2"
    >>> reference, query = adata[~is_new].copy(), adata[is_new].copy()
    >>> model = scvae.fit(reference, batch_key="batch", rng=0, verbose=False)
    >>> mapped = scvae.tl.map_query(query, model, verbose=False)
    >>> scvae.tl.transfer_labels(query, mapped, reference=reference, labels_key="cell_type")
    >>> query.obs[["scvae_label", "scvae_label_uncertainty", "scvae_outlier"]].shape
    (200, 3)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    limit = check_probability(unknown_above, "unknown_above")
    with speaking_of("reference", layer="reference_layer"):
        column = check_obs_column(check_adata(reference), labels_key)
    labelled = np.flatnonzero(column.notna().to_numpy())
    if len(labelled) < 2:
        raise ValueError(f"reference.obs[{labels_key!r}] labels {len(labelled)} cells; pass two at least")
    codes, names = pd.factorize(column.iloc[labelled].astype(str), sort=True)
    if len(names) > max(FEW_LABELS, len(labelled) // 2):
        raise ValueError(
            f"reference.obs[{labels_key!r}] has {len(names):,} different values in {len(labelled):,} cells "
            f"({listing(names, 3)}); pass a column of labels that many cells share"
        )
    if UNKNOWN in names:
        raise ValueError(
            f"reference.obs[{labels_key!r}] has the label {UNKNOWN!r} ({listing(names)}), which is what cells without "
            "a counterpart are called; rename it, or set it to NaN to leave these cells out"
        )
    model.beta_of(beta)
    query = read_cells(adata, with_batch_key(model.schema, batch_key), layer)
    with speaking_of("reference", layer="reference_layer"):
        known = read_cells(reference, model, layer if reference_layer is None else reference_layer).taken(labelled)
    query, known = _alike(query, known, model)
    found = transfer(
        posterior_moments(model, known, beta=beta)[0],
        codes,
        posterior_moments(model, query, beta=beta)[0],
        most_alike(query, N_PEERS, kind=model.schema.kind, seed=model.seed),
    )
    label = np.where(found.outlier > limit, UNKNOWN, np.asarray(names)[found.probability.argmax(1)])
    target = target_of(adata, copy=copy)
    write(
        target,
        obs={
            keys.label: pd.Categorical(label, categories=[*names, UNKNOWN]),
            keys.label_uncertainty: 1.0 - found.probability.max(1),
            keys.outlier: found.outlier,
        },
    )
    return target if copy else None


def _alike(query: Cells, known: Cells, model: FittedModel) -> tuple[Cells, Cells]:
    """Both without the genes that either lacks: distances compare only what is seen through the same genes."""
    missing = np.union1d(query.missing_genes, known.missing_genes)
    n_genes = len(model.genes)
    if n_genes - len(missing) < LEAST_COVERAGE * n_genes:
        raise ValueError(
            f"adata and reference have {n_genes - len(missing):,} of the {n_genes:,} modelled genes in common, and at "
            "least half are needed; pass data that hold more of them"
        )
    has_factors = model.schema.size_factor_key is not None
    return query.lacking(missing, size_factors=has_factors), known.lacking(missing, size_factors=has_factors)
