"""`embed`: the latent embedding of any cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._keys import Keys
from .._slots import write
from ..fitted import FittedModel
from ..inference import posterior_moments
from ._read import read_cells

if TYPE_CHECKING:
    from anndata import AnnData


def embed(
    adata: AnnData,
    model: FittedModel,
    *,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Embeds cells with a fitted model: those it was trained on or new ones.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit. Genes are matched by name, in any order; genes that the model does not know
        are ignored. The model's covariate columns must be there, with categories it knows.
    model
        A fitted model.
    beta
        Of a model of many β, that of the embedding; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slots written.
    copy
        Whether to leave `adata` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsm["X_<key_added>"]``
            float32 posterior means, cells x n_latent.
        ``obsm["X_<key_added>_var"]``
            float32 posterior variances, cells x n_latent.

    Raises
    ------
    ValueError
        If fewer than half of the model's genes are there, a batch is unknown, the data do not suit the likelihood, or
        `beta` is none that the model was trained for.
    """
    keys = Keys(key_added)
    cells = read_cells(adata, model, layer)
    mean, variance = posterior_moments(model, cells, beta=beta)
    target = adata.copy() if copy else adata
    write(target, obsm={keys.mean: mean, keys.variance: variance})
    return target if copy else None
