"""`latent_genes`: what each latent dimension means, in genes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.slots import write
from ..diagnostics.directions import Directions, directions
from ..inference.cells import read_cells
from ..inference.fitted import FittedModel, check_model

if TYPE_CHECKING:
    from anndata import AnnData

ENDS = (0.05, 0.95)  # quantiles of the cells between which a dimension is traversed


def latent_genes(
    adata: AnnData,
    model: FittedModel,
    *,
    n_genes: int = 20,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
) -> pd.DataFrame:
    """The genes that each latent dimension raises and lowers, for any decoder.

    The effect of a dimension on a gene is the derivative of the decoder along it, at the posterior mean of each cell,
    averaged over the cells, times the standard deviation of the posterior means along the dimension: the change for a
    step of one standard deviation, so that dimensions compare, and one that is not used has none. Beside it stands the
    traversal: every cell is moved from the 5th to the 95th percentile of the dimension, the rest of it as it is. Where
    the two disagree in sign, the gene rises and falls along the dimension.

    Changes are of the log proportion, base e, relative to its mean over the modelled genes (nb, zinb, poisson); of the
    logit (bernoulli); or of the value, in the units of the data (gaussian). For a linear decoder a derivative is the
    loading. A dimension has no sign of its own, z and -z being one model; the signs here are those of the embedding
    ``obsm["X_<key_added>"]`` of this model: cells that have more of it have more of the genes that it raises.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit, over which is averaged; genes are matched by name.
    model
        A fitted model.
    n_genes
        Genes to list in each direction of each dimension.
    beta
        Of a model of many β, the one to look at; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slots written.

    Returns
    -------
    pandas.DataFrame
        A row for each dimension, direction and rank: ``dimension`` (from 0, as the columns of ``obsm``), ``direction``
        ("up" or "down"), ``rank`` (from 1), ``gene``, ``effect`` (per standard deviation) and ``traversal``. Strongest
        first; genes that go the other way are not listed. Slots written to `adata`:

        ``varm["<key_added>_effects"]``
            float32 effects per standard deviation, genes x n_latent; 0 for genes not modelled.
        ``varm["<key_added>_traversal"]``
            float32 changes from the 5th to the 95th percentile, genes x n_latent; 0 for genes not modelled.

    Raises
    ------
    ValueError
        As `embed`; or if no cell has a count in the modelled genes. `adata` is then as it was.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> table = scvae.tl.latent_genes(adata, model, n_genes=3)
    >>> adata.varm["scvae_effects"].shape
    (100, 5)
    """
    check_model(model)
    keys = Keys(key_added)
    n_listed = check_positive_int(n_genes, "n_genes")
    model.beta_of(beta)
    cells = read_cells(adata, model, layer)
    filled = np.flatnonzero(cells.library > 0)
    if len(filled) == 0:
        raise ValueError("no cell of adata has a count in the modelled genes; pass cells that have some")
    cells = cells if len(filled) == len(cells) else cells.taken(filled)
    found = directions(model, cells, quantiles=ENDS, beta=beta)
    effects = found.slope * found.sd
    rows = model.genes.get_indexer(adata.var_names.astype(str))

    def of_all(values: Float[np.ndarray, "modelled latent"]) -> Float[np.ndarray, "genes latent"]:
        return np.where((rows >= 0)[:, None], values[rows], 0.0).astype(np.float32)

    write(adata, varm={keys.effects: of_all(effects), keys.traversal: of_all(found.traversal)})
    return _table(effects, found, model.genes, n_listed)


def _table(
    effects: Float[np.ndarray, "genes latent"], found: Directions, genes: pd.Index, n_listed: int
) -> pd.DataFrame:
    """The first genes up and down each dimension."""
    parts = []
    for dimension in range(effects.shape[1]):
        for direction, sign in (("up", 1.0), ("down", -1.0)):
            along = sign * effects[:, dimension]
            order = np.argsort(-along, kind="stable")[:n_listed]
            order = order[along[order] > 0]
            parts.append(
                pd.DataFrame(
                    {
                        "dimension": dimension,
                        "direction": direction,
                        "rank": np.arange(1, len(order) + 1),
                        "gene": genes[order],
                        "effect": effects[order, dimension],
                        "traversal": found.traversal[order, dimension],
                    }
                )
            )
    return pd.concat(parts, ignore_index=True)
