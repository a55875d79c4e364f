"""`explain_label`: the genes behind the label of a group of cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.checks import check_adata, check_obs_column, check_positive_int
from ..common.keys import Keys, as_keys
from ..common.provenance import check_replaceable
from ..common.slots import write_made
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.label_attribution import attribute, mean_input
from ..inference.label_prediction import labels_of, logits_at
from ..inference.posterior import posterior_moments
from ..inference.views import check_view, facing
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def explain_label(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    groupby: str | None = None,
    n_genes: int = 20,
    view: str | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
) -> pd.DataFrame:
    """Lists the genes behind the labels that a model fitted with labels gives to groups of cells.

    The log odds of a cell's most probable label are followed along the straight path from the mean cell to the cell,
    through encoder and classifier, and shared out to the genes by their derivatives (integrated gradients:
    Sundararajan, Taly & Yan 2017, equation 1). A cell's attributions add up to the difference between the log odds of
    its label and those at the mean cell, in nats; both ends have the depth, batch and covariates of the cell. A
    positive attribution is a gene that speaks for the label, by being more or less expressed than in the mean cell.

    It explains the model, not the biology: of genes that always occur together, the encoder may use any. For genes
    that differ between groups, use `rank_genes`.

    Parameters
    ----------
    adata
        Cells with all genes of the model; the path begins at their mean.
    model
        A model that was fitted with labels.
    groupby
        Column of `adata.obs` with the groups over whose cells attributions are averaged; cells with a missing value
        belong to none. None for the most probable labels.
    n_genes
        Number of genes to list for each group.
    view
        For a model of several measurements, the one whose features to list; None for the first. The path leads through
        all, so that attributions add up over all features of all.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.

    Returns
    -------
    pandas.DataFrame
        A row for each group and rank, the genes that speak most for the label first: ``group``, ``label`` (the most
        frequent label of its cells), ``rank`` (from 1), ``gene`` and ``attribution`` (nats, mean over cells). Slots
        written:

        ``varm["<key_added>_label_genes"]``
            float32 table of mean attributions, genes x groups; 0 for genes not modelled. Not for a further `view`,
            whose features are not those of `adata`.

    Raises
    ------
    ValueError
        As for `embed`; if the model was fitted without labels, or `adata` lacks genes of the model or features of a
        further measurement. `adata` is then unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_types=3, rng=0)
    >>> model = scvae.fit(adata, labels_key="cell_type", rng=0, verbose=False)
    >>> table = scvae.tl.explain_label(adata, model, groupby="cell_type", n_genes=5)
    >>> table.shape
    (15, 5)
    """
    check_model(model)
    keys = Keys(key_added)
    n_listed = check_positive_int(n_genes, "n_genes")
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    labels = labels_of(model)[1].names
    column = None if groupby is None else check_obs_column(adata, groupby)
    if column is not None and column.isna().all():
        raise ValueError(f"adata.obs[{groupby!r}] has no value in any cell; pass a column with groups")
    place = check_view(model, view)
    cells = read_cells(adata, model, layer)
    for missing, what in ((cells.missing, "genes"), *((other.missing, "features of a view") for other in cells.views)):
        if missing is not None:
            raise ValueError(
                f"adata lacks {len(missing):,} {what} of the model, whose part in a label cannot be told; pass cells "
                f"with all of its {what}"
            )
    likely = logits_at(model, posterior_moments(model, cells)[0]).argmax(1)
    if column is None:
        codes, names = np.unique(likely, return_inverse=True)[1], [labels[code] for code in np.unique(likely)]
    else:
        codes, groups = pd.factorize(column, sort=True)
        names = [str(name) for name in groups]
    chosen = np.flatnonzero(codes >= 0)
    some = cells if len(chosen) == len(cells) else cells.taken(chosen)
    found = attribute(model, some, likely[chosen], codes[chosen].astype(np.int64), mean_input(model, cells))
    usual = [labels[np.bincount(likely[codes == code]).argmax()] for code in range(len(names))]
    if place is not None:
        return _listed(found.further[place], names, usual, facing(model, place).genes, n_listed)
    rows = model.genes.get_indexer(adata.var_names.astype(str))
    of_all = np.where((rows >= 0)[:, None], found.genes.T[rows], 0.0).astype(np.float32)
    table = pd.DataFrame(of_all, index=adata.var_names, columns=as_keys(names))
    write_made(adata, keys, model.digest, varm={keys.label_genes: table})
    return _listed(found.genes, names, usual, model.genes, n_listed)


def _listed(
    attribution: np.ndarray, names: list[str], labels: list[str], genes: pd.Index, n_listed: int
) -> pd.DataFrame:
    """The genes with the largest attributions in each group."""
    parts = []
    for of_group, name, label in zip(attribution, names, labels, strict=True):
        order = np.argsort(-of_group, kind="stable")[:n_listed]
        parts.append(
            pd.DataFrame(
                {
                    "group": name,
                    "label": label,
                    "rank": np.arange(1, len(order) + 1),
                    "gene": genes[order],
                    "attribution": of_group[order],
                }
            )
        )
    return pd.concat(parts, ignore_index=True)
