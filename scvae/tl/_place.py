"""`place`: puts cells on the UMAP of a reference, whose own cells do not move."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..common.checks import check_adata, check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.slots import target_of, write_made
from ..inference.cells import read_new, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.nearest import nearest_cells, placed
from ..inference.needs import reference_of_model
from ..inference.posterior import posterior_moments
from ..inference.trained import identity_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def place(
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
    """Puts cells on the UMAP of the reference that came with the model. The reference's coordinates do not move.

    A cell gets the geometric median of the coordinates of its nearest reference cells in the latent space: the point
    with the smallest sum of distances to them (Weiszfeld 1937). Where neighbours lie on several islands of the UMAP, it
    is on the island of most, and not in the sea between. A position says which reference cells a cell resembles, and
    nothing about how much: cells of a type that the reference lacks are placed, too. `scvae.tl.transfer_labels` calls
    them unknown.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit. The model must know their batches: for new batches, use the model that
        `scvae.tl.map_query` returns.
    model
        A model with a reference and a UMAP, as `scvae.load` brings it back from
        ``model.save(path, reference=adata, umap=True)``.
    n_neighbors
        Nearest reference cells whose coordinates count.
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

        ``obsm["X_<key_added>_umap"]``
            float32 coordinates on the reference's UMAP, cells x 2. Those of the reference itself are in
            ``model.reference.umap`` and in ``model.reference.to_adata()``.

    Warns
    -----
    UserWarning
        If genes of the model, or the slot of a further measurement, are missing.

    Raises
    ------
    ValueError
        As for `embed`; if the model has no reference, one without a UMAP, or one at another β. `adata` is then
        unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> adata.obsm["X_umap"] = adata.obsm["z"][:, :2]  # stands for a UMAP made with scanpy
    >>> model = scvae.fit(adata[:150].copy(), n_latent=5, rng=0, verbose=False)
    >>> model = scvae.load(model.save("ref.safetensors", reference=adata[:150], umap=True))
    >>> new = adata[150:].copy()
    >>> scvae.tl.place(new, model)
    >>> new.obsm["X_scvae_umap"].shape
    (50, 2)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    n_neighbors = check_positive_int(n_neighbors, "n_neighbors")
    reference = reference_of_model(model, "scvae.tl.place", beta=beta, umap=True)
    assert reference.umap is not None
    cells = read_new(adata, model, layer, batch_key=batch_key)
    written = model.written(posterior_moments(model, cells, beta=beta)[0])
    _, nearest = nearest_cells(reference.mean, written, n_neighbors)
    target = target_of(adata, copy=copy)
    write_made(target, keys, identity_of(model, beta), obsm={keys.umap: placed(reference.umap, nearest)})
    return target if copy else None
