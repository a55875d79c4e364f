"""What `scvae map` does with cells: everything that the reference in a model's file allows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import check_obs_column
from ..common.keys import Keys
from ..inference.cells import with_batch_key
from ..inference.fitted import FittedModel
from ..inference.reference import Reference
from ..tl import embed, map_query, nearest_cells, place, transfer_labels

if TYPE_CHECKING:
    from anndata import AnnData

Slots = dict[str, dict[str, Any]]


def map_onto(
    adata: AnnData, model: FittedModel, kept: Reference, options: Mapping[str, Any], *, layer: str, verbose: bool
) -> tuple[FittedModel, Slots]:
    """Embeds cells, learning batches that the model does not know; labels them, places them and finds their neighbours.

    Parameters
    ----------
    adata
        The cells; they get the slots.
    model, kept
        A model, and the reference in it.
    options
        Those of the command line that were given.
    layer
        Layer with the data.
    verbose
        Whether to show the progress of the mapping.

    Returns
    -------
    tuple
        The model that knows the batches of the cells, and the slots written, by their place in the AnnData.
    """

    def chosen(*names: str) -> dict[str, Any]:
        return {name: options[name] for name in names if name in options}

    keys, common = Keys(options["key_added"]), {"layer": layer, "key_added": options["key_added"]}
    obs: dict[str, Any] = {}
    if "new_batches" in options or _has_new(adata, model, options.get("batch_key")):
        more = chosen("batch_key", "new_batches", "epochs")
        model = map_query(adata, model, verbose=verbose, **more, **common)
        if "new_batches" in options and model.schema.batch is not None:
            key = options.get("batch_key", model.schema.batch.key)
            obs[key] = adata.obs[key].array
    else:
        embed(adata, model, **common)
    common |= chosen("batch_key")
    nearest_cells(adata, model, **chosen("n_neighbors"), **common)
    obsm = [keys.mean, keys.variance, *keys.nearest]
    if kept.umap is not None:
        place(adata, model, **common)
        obsm.append(keys.umap)
    if kept.labels:
        transfer_labels(adata, model, **chosen("labels_key", "unknown_above"), **common)
        obs |= {keys.label: adata.obs[keys.label].array}
        obs |= {key: adata.obs[key].to_numpy() for key in (keys.label_uncertainty, keys.outlier)}
    return model, {
        "obs": obs,
        "obsm": {key: adata.obsm[key] for key in obsm},
        "varm": {keys.loadings: adata.varm.get(keys.loadings)},
        "uns": {keys.uns: adata.uns[keys.uns]},
    }


def _has_new(adata: AnnData, model: FittedModel, batch_key: str | None) -> bool:
    """Whether the cells have categories that the model does not know."""
    columns = with_batch_key(model.schema, batch_key).categoricals
    return any(np.any(column.codes(check_obs_column(adata, column.key)) < 0) for column in columns)
