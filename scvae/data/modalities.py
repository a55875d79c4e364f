"""A MuData as the AnnData of its first modality with others beside it, and results back into the MuData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from jaxtyping import Int

from ..common.checks import is_mudata, listing
from .containers import readable

if TYPE_CHECKING:
    from mudata import MuData


PLACES = ("obs", "obsm", "obsp", "uns", "varm", "layers")
OF_MODALITY = ("varm", "layers")  # the others are of the MuData
OF_RAW = "\0raw"  # beside the names of layers, of which one may be "raw"
_beside: ContextVar[tuple[tuple[AnnData, Mapping[str, AnnData]], ...]] = ContextVar("beside", default=())


def beside(adata: AnnData) -> Mapping[str, AnnData]:
    """The other modalities of the MuData that this AnnData is made of, within `modalities_of`; else none."""
    return next((others for of, others in _beside.get() if of is adata), {})


@contextmanager
def modalities_of(given: Any, first: str) -> Iterator[Any]:
    """The AnnData of the modality `first` of a MuData, with all its cells; the others are `beside` it.

    After the block, what it has added to `obs`, `obsm`, `obsp` and `uns`, changed or removed is so in the MuData, and
    `varm` and `layers` in the modality. Anything but a MuData is given as it is, without others.

    Raises
    ------
    ValueError
        If there is no such modality, or if it lacks cells and its values are dense, so that they cannot be empty.
    """
    if not is_mudata(given):
        yield given
        return
    adata = _of_first(given, first)
    before = {place: dict(getattr(adata, place)) for place in PLACES}
    others = {name: modality for name, modality in given.mod.items() if name != first}
    token = _beside.set((*_beside.get(), (adata, others)))
    try:
        yield adata
    finally:
        _beside.reset(token)
    rows = given.obs_names.get_indexer(given.mod[first].obs_names)
    for place in PLACES:
        target = getattr(given.mod[first] if place in OF_MODALITY else given, place)
        found = getattr(adata, place)
        for key in before[place]:
            if key not in found and key in target:
                del target[key]
        for key, value in found.items():
            if key not in before[place] or not _is_same(value, before[place][key]):
                target[key] = value[rows] if place == "layers" else value


def _is_same(value: Any, earlier: Any) -> bool:
    """Whether nothing was put in the place of a value; a column of a table is another object at each look."""
    return value.equals(earlier) if isinstance(value, pd.Series) else value is earlier


def _of_first(mdata: MuData, first: str) -> AnnData:
    modality = modality_of(mdata, first)
    place: Int[np.ndarray, " cells"] = modality.obs_names.get_indexer(mdata.obs_names)
    obsm = {key: value for key, value in mdata.obsm.items() if key not in mdata.mod}
    raw = None if modality.raw is None else modality.raw.X
    placed = {None: modality.X, OF_RAW: raw, **dict(modality.layers)}
    if not np.array_equal(place, np.arange(modality.n_obs)):
        lacking = int(np.sum(place < 0))
        rows = {layer: readable(matrix, first) for layer, matrix in placed.items() if matrix is not None}
        # real values that lack cells, as denoised ones, stay in the modality alone
        placed = {layer: _placed(row, place) for layer, row in rows.items() if not lacking or _are_whole(row)}
        if rows and not placed:
            raise ValueError(
                f"the first modality, {first!r}, lacks {lacking:,} cells, and its values are real, so that these cells "
                "cannot be told by empty rows; name a modality of counts first, or one that all cells have"
            )
    raw = placed.pop(OF_RAW, None)
    adata = AnnData(
        X=placed.pop(None, None),
        raw=None if raw is None else {"X": raw, "var": modality.raw.var},
        obs=obs_of(mdata, modality),
        var=modality.var.copy(),
        obsm=obsm,
        varm=dict(modality.varm),
        uns=dict(mdata.uns),
    )
    for layer, matrix in placed.items():
        adata.layers[layer] = matrix
    return adata


def modality_of(mdata: MuData, name: str) -> AnnData:
    """A modality; raises ValueError if the MuData has none of this name."""
    if name not in mdata.mod:
        raise ValueError(f"the MuData has no modality {name!r}; it has {listing(mdata.mod)}")
    return mdata.mod[name]


def obs_of(mdata: MuData, modality: AnnData) -> pd.DataFrame:
    """The columns of `obs` of all cells: those of the MuData, and of the modality if the MuData has no such column."""
    obs = mdata.obs.copy()
    for key in modality.obs.columns.difference(obs.columns):
        obs[key] = modality.obs[key].reindex(mdata.obs_names)
    return obs


def _are_whole(matrix: Any) -> bool:
    values = matrix.data if sp.issparse(matrix) else matrix
    return not np.issubdtype(values.dtype, np.floating) or bool((values == np.rint(values)).all())


def _placed(matrix: Any, place: Int[np.ndarray, " cells"]) -> Any:
    """The rows of the cells that have a place, and empty ones for the others."""
    if (place >= 0).all():
        return matrix[place]
    rows = sp.csr_matrix(matrix)
    empty = sp.csr_matrix((1, rows.shape[1]), dtype=rows.dtype)
    return sp.vstack([rows, empty], format="csr")[np.where(place >= 0, place, rows.shape[0])]
