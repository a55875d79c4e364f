"""`nearest_cells`: the nearest reference cells of each cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.checks import check_adata, check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.slots import target_of, write_made
from ..inference.cells import read_new, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.nearest import nearest_cells as search
from ..inference.needs import reference_of_model
from ..inference.posterior import posterior_moments
from ..inference.trained import identity_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def nearest_cells(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    n_neighbors: int = 10,
    batch_key: str | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Finds the nearest cells of the reference that came with the model, by an exact search in the latent space.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit. The model must know their batches: for new batches, use the model that
        `scvae.tl.map_query` returns.
    model
        A model with a reference, as `scvae.load` brings it back from ``model.save(path, reference=adata)``.
    n_neighbors
        Reference cells to find for each cell; all of them if there are fewer.
    batch_key
        Column of `adata.obs` with the batch, if its name differs from that in the fit, as in `scvae.tl.map_query`.
    beta
        For a model with a range of β, the β of the reference; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsm["<key_added>_nearest"]``
            Names of the nearest reference cells: a table, cells x `n_neighbors`, the nearest first. Their positions as
            text if the file has no names. ``model.reference.to_adata().obs`` has their labels.
        ``obsm["<key_added>_nearest_distance"]``
            float32 distances to them, Euclidean in the coordinates of ``obsm["X_<key_added>"]``.

    Warns
    -----
    UserWarning
        If genes of the model, or the slot of a further measurement, are missing.

    Raises
    ------
    ValueError
        As for `embed`; if the model has no reference, or one at another β. `adata` is then unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata[:150].copy(), n_latent=5, rng=0, verbose=False)
    >>> model = scvae.load(model.save("ref.safetensors", reference=adata[:150], labels="cell_type"))
    >>> new = adata[150:].copy()
    >>> scvae.tl.nearest_cells(new, model, n_neighbors=3)
    >>> new.obsm["scvae_nearest"].shape, new.obsm["scvae_nearest_distance"].shape
    ((50, 3), (50, 3))
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    n_neighbors = check_positive_int(n_neighbors, "n_neighbors")
    reference = reference_of_model(model, "scvae.tl.nearest_cells", beta=beta)
    cells = read_new(adata, model, layer, batch_key=batch_key)
    written = model.written(posterior_moments(model, cells, beta=beta)[0])
    distance, place = search(reference.mean, written, n_neighbors)
    columns = [str(rank) for rank in range(1, place.shape[1] + 1)]
    names = pd.DataFrame(reference.ids.to_numpy()[place], index=adata.obs_names, columns=columns)
    target = target_of(adata, copy=copy)
    slots = dict(zip(keys.nearest, (names, distance.astype(np.float32)), strict=True))
    write_made(target, keys, identity_of(model, beta), obsm=slots)
    return target if copy else None
