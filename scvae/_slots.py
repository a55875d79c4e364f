"""Writing results into an AnnData: once, at the end, and nothing but the named slots."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from anndata import AnnData


def write(
    adata: AnnData,
    *,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, np.ndarray] | None = None,
    varm: Mapping[str, np.ndarray | None] | None = None,
    uns: Mapping[str, Any] | None = None,
) -> None:
    """Sets slots of `adata`. A view becomes an actual AnnData first, so that its parent is not written to.

    None takes a slot of `varm` away: an earlier result under the same name has no successor.
    """
    if adata.is_view:
        adata._init_as_actual(adata.copy())  # as scanpy's view_to_actual, but without its warning
    for key, column in (obs or {}).items():
        adata.obs[key] = column
    for key, value in (obsm or {}).items():
        adata.obsm[key] = value
    for key, loadings in (varm or {}).items():
        if loadings is not None:
            adata.varm[key] = loadings
        elif key in adata.varm:
            del adata.varm[key]
    for key, value in (uns or {}).items():
        adata.uns[key] = value
