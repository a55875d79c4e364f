"""A MuData as the AnnData of its first modality with others beside it, and results back into the MuData."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Int

from ..common.checks import listing
from .containers import readable

if TYPE_CHECKING:
    from mudata import MuData


PLACES = ("obs", "obsm", "varm", "uns")


def is_mudata(given: object) -> TypeGuard[MuData]:
    """Whether this is a MuData, without importing mudata, which need not be installed."""
    return any(kind.__name__ == "MuData" and kind.__module__.startswith("mudata") for kind in type(given).__mro__)


@contextmanager
def modalities_of(given: Any, first: str) -> Iterator[tuple[Any, dict[str, AnnData]]]:
    """The AnnData of the modality `first` of a MuData, with all its cells, and the other modalities, by name.

    After the block, what it has added to `obs`, `obsm` and `uns`, changed or removed is so in the MuData, and `varm` in
    the modality. Anything but a MuData is given as it is, without others.

    Raises
    ------
    ValueError
        If there is no such modality, or if it lacks cells and its values are dense, so that they cannot be empty.
    """
    if not is_mudata(given):
        yield given, {}
        return
    adata = _of_first(given, first)
    before = {place: dict(getattr(adata, place)) for place in PLACES}
    yield adata, {name: modality for name, modality in given.mod.items() if name != first}
    for place in PLACES:
        target = getattr(given.mod[first] if place == "varm" else given, place)
        found = getattr(adata, place)
        for key in before[place]:
            if key not in found and key in target:
                del target[key]
        for key, value in found.items():
            if key not in before[place] or not _is_same(value, before[place][key]):
                target[key] = value


def _is_same(value: Any, earlier: Any) -> bool:
    """Whether nothing was put in the place of a value; a column of a table is another object at each look."""
    return value.equals(earlier) if isinstance(value, pd.Series) else value is earlier


def _of_first(mdata: MuData, first: str) -> AnnData:
    if first not in mdata.mod:
        raise ValueError(f"the MuData has no modality {first!r}; it has {listing(mdata.mod)}")
    modality = mdata.mod[first]
    place: Int[np.ndarray, " cells"] = modality.obs_names.get_indexer(mdata.obs_names)
    obs = mdata.obs.copy()
    for key in modality.obs.columns.difference(obs.columns):
        obs[key] = modality.obs[key].reindex(mdata.obs_names)
    obsm = {key: value for key, value in mdata.obsm.items() if key not in mdata.mod}
    same = np.array_equal(place, np.arange(modality.n_obs))
    matrices = {None: modality.X, **dict(modality.layers)}
    placed = {
        layer: matrix if same or matrix is None else _placed(matrix, place, first) for layer, matrix in matrices.items()
    }
    adata = AnnData(
        X=placed.pop(None), obs=obs, var=modality.var.copy(), obsm=obsm, varm=dict(modality.varm), uns=dict(mdata.uns)
    )
    for layer, matrix in placed.items():
        adata.layers[layer] = matrix
    return adata


def _placed(matrix: Any, place: Int[np.ndarray, " cells"], name: str) -> Any:
    """The rows of the cells that have a place, and empty ones for the others."""
    rows = readable(matrix, name)
    if (place >= 0).all():
        return rows[place]
    values = rows.data if sp.issparse(rows) else rows
    if np.issubdtype(values.dtype, np.floating) and (values != np.rint(values)).any():
        raise ValueError(
            f"the first modality, {name!r}, lacks {np.sum(place < 0):,} cells, and its values are real, so that these "
            "cells cannot be told by empty rows; name a modality of counts first, or one that all cells have"
        )
    rows = sp.csr_matrix(rows)
    empty = sp.csr_matrix((1, rows.shape[1]), dtype=rows.dtype)
    return sp.vstack([rows, empty], format="csr")[np.where(place >= 0, place, rows.shape[0])]
