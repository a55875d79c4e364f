"""`latent_genes`: the genes that change along each latent dimension."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.slots import write_made
from ..diagnostics.directions import Directions, directions
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.trained import identity_of
from ..inference.views import check_view, facing
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

ENDS = (0.05, 0.95)  # quantiles over cells between which a dimension is traversed


@computing()
@taking_mudata
def latent_genes(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    n_genes: int = 20,
    view: str | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
) -> pd.DataFrame:
    """Lists the genes that each latent dimension raises and lowers, for any decoder.

    The effect of a dimension on a gene is the derivative of the decoder along it, averaged over the posterior means of
    the cells, times the standard deviation of these means along the dimension. It is the change for a step of one
    standard deviation, so dimensions are comparable and an unused one has no effect. The traversal is the change when
    every cell is moved from the 5th to the 95th percentile of the dimension, with its other dimensions fixed. If the
    two differ in sign, the gene does not change monotonically along the dimension.

    Changes are of the log proportion, base e, relative to its mean over the modelled genes (nb, zinb, poisson); of the
    logit (bernoulli); or of the value, in the units of the data (gaussian). For a linear decoder the derivative is the
    loading. Dimensions and their signs are those of the embedding ``obsm["X_<key_added>"]`` of this model: cells with a
    larger value express more of the genes that it raises. The sign is a convention: over the genes, the cubes of
    the slopes in units of the noise have a positive sum, so that the genes that change most rise. (With
    ``metric="latent"`` it is arbitrary.)

    Parameters
    ----------
    adata
        Cells to average over, with raw data, as in the fit; genes are matched by name.
    model
        A fitted model.
    n_genes
        Number of genes to list for each direction of each dimension.
    view
        For a model of several measurements, the one whose features to list; None for the first. Dimensions are those of
        the joint embedding. (For nb_mixture, changes are of the log count.)
    beta
        For a model with a range of β, the β to use; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.

    Returns
    -------
    pandas.DataFrame
        A row for each dimension, direction and rank: ``dimension`` (from 0, as the columns of ``obsm``), ``direction``
        ("up" or "down"), ``rank`` (from 1), ``gene``, ``effect`` (per standard deviation) and ``traversal``. Strongest
        effects come first; genes with an effect of the other sign are not listed. Slots written to `adata`:

        ``varm["<key_added>_effects"]``
            float32 effects per standard deviation, genes x n_latent; 0 for genes not modelled.
        ``varm["<key_added>_traversal"]``
            float32 changes from the 5th to the 95th percentile, genes x n_latent; 0 for genes not modelled.

        With a further `view`, whose features are not those of `adata`, instead:

        ``uns["<key_added>"]["effects_<view>"]``
            The same arrays as ``effects`` and ``traversal``, with the names of the ``features``.

    Raises
    ------
    ValueError
        As for `embed`; if no cell has a count in the modelled genes. `adata` is then unchanged.

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
    check_without_skip(model, "scvae.tl.latent_genes")
    keys = Keys(key_added)
    n_listed = check_positive_int(n_genes, "n_genes")
    model.beta_of(beta)
    check_replaceable(adata.uns, keys)
    place = check_view(model, view)
    cells, seen = read_cells(adata, model, layer).turned(place), facing(model, place)
    filled = np.flatnonzero(cells.library > 0)
    if len(filled) == 0:
        raise ValueError("no cell of adata has a count in the modelled genes; pass cells with counts")
    cells = cells if len(filled) == len(cells) else cells.taken(filled)
    found = directions(seen, cells, quantiles=ENDS, beta=beta)
    effects = found.slope * found.sd
    made_by, table = identity_of(model, beta), _table(effects, found, seen.genes, n_listed)
    if place is not None:
        arrays = {"effects": effects.astype(np.float32), "traversal": found.traversal.astype(np.float32)}
        entry = {"features": np.array(seen.genes, dtype=str), **arrays}
        write_made(adata, keys, made_by, record={keys.effects_view(seen.schema.name): entry})
        return table
    rows = model.genes.get_indexer(adata.var_names.astype(str))

    def of_all(values: Float[np.ndarray, "modelled latent"]) -> Float[np.ndarray, "genes latent"]:
        return np.where((rows >= 0)[:, None], values[rows], 0.0).astype(np.float32)

    varm = {keys.effects: of_all(effects), keys.traversal: of_all(found.traversal)}
    write_made(adata, keys, made_by, varm=varm)
    return table


def _table(
    effects: Float[np.ndarray, "genes latent"], found: Directions, genes: pd.Index, n_listed: int
) -> pd.DataFrame:
    """The genes with the strongest effects up and down each dimension."""
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
