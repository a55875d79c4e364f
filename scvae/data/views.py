"""Further measurements of the same cells, beside the values that a fit reads first: proteins, accessibility."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from anndata import AnnData
from jaxtyping import Bool, Float, Int
from pandas.api.types import is_bool_dtype, is_extension_array_dtype, is_numeric_dtype

from ..common.checks import check_obs_column, listing, missing_key, reworded
from ..common.keys import check_slot_name
from ..config import View
from .batches import ViewBatch
from .rows import Rows, taken


@dataclass(frozen=True, slots=True, eq=False)
class ViewCells:
    """A further measurement of all cells, as `Cells` have the first.

    Parameters
    ----------
    rows
        Values, cells x features; 0 in cells that lack it.
    library
        float32 library size; in cells that lack the measurement, the typical one (see `typical_library`).
    present
        Which cells have it.
    missing
        int64 positions of features that were not measured, ascending; None if all were.
    """

    rows: Rows
    library: Float[np.ndarray, " cells"]
    present: Bool[np.ndarray, " cells"]
    missing: Int[np.ndarray, " missing"] | None = None

    def batch(self, positions: Int[np.ndarray, " batch"]) -> ViewBatch:
        """The cells at `positions`, in that order."""
        return ViewBatch(
            self.rows.take(positions),
            torch.from_numpy(self.library[positions]),
            torch.from_numpy(self.present[positions]),
            None if self.missing is None else torch.from_numpy(self.missing),
        )

    def taken(self, positions: Int[np.ndarray, " some"]) -> ViewCells:
        """A copy of the cells at `positions`, in that order."""
        rows = taken(self.rows, positions)
        return ViewCells(rows, self.library[positions], self.present[positions], self.missing)


def typical_library(
    library: Float[np.ndarray, " cells"], present: Bool[np.ndarray, " cells"]
) -> Float[np.ndarray, " cells"]:
    """The library sizes, with the geometric mean of the cells that have one in those that do not."""
    mean = np.exp(np.log(library[present], dtype=np.float64).mean()) if present.any() else 1.0
    return np.where(present, library, np.float32(mean)).astype(np.float32)


def check_views(also: object) -> dict[str, View]:
    """The views of a fit by name, if they can be used together.

    Raises
    ------
    TypeError
        If they are not a mapping of names to views.
    ValueError
        If a name cannot be used.
    """
    if also is None:
        return {}
    if not isinstance(also, Mapping) or not all(isinstance(view, View) for view in also.values()):
        raise TypeError(
            f"also is a {type(also).__name__}; pass a dict of views by name, e.g. "
            "also={'protein': scvae.View(obsm='protein_expression')}"
        )
    for name in also:
        check_slot_name(name, "the name of a view in also")
    return dict(also)


def speaking_of_view(name: str, where: str) -> AbstractContextManager[None]:
    """Within this block, errors and warnings speak of the features of a view, and of where its values are."""

    def about(text: str) -> str:
        text = re.sub(r"(?<![\w.'\[])(?:adata\.)?X\b", where, text)
        text = re.sub(r"\bgene(s?)\b", r"feature\1", text)
        text = re.sub(r"\bpass likelihood=('\w+')", r"pass likelihood=\1 for this view", text)
        return f"view {name!r}: {text}"

    return reworded(about)


def table_of(adata: AnnData, name: str, view: View) -> tuple[AnnData, Bool[np.ndarray, " cells"]]:
    """The cells of a view as an AnnData of their own, in the order of `adata`, and which of all cells these are.

    Raises
    ------
    MissingKeyError
        If the slot, the column or the names do not exist.
    TypeError, ValueError
        If they are not what they should be.
    """
    table, present = _of_mod(adata, view.mod) if view.mod is not None else _of_obsm(adata, str(view.obsm), view.names)
    if view.measured is not None:
        column = check_obs_column(adata, view.measured)
        if not is_bool_dtype(column) or column.isna().any():
            raise ValueError(
                f"adata.obs[{view.measured!r}] has type {column.dtype}; pass True or False for each cell, whether it "
                f"has the view {name!r}"
            )
        measured = column.to_numpy(dtype=bool)
        table, present = table[measured[present]], present & measured
    return table, present


def _of_mod(adata: AnnData, mod: AnnData) -> tuple[AnnData, Bool[np.ndarray, " cells"]]:
    if not isinstance(mod, AnnData):
        raise TypeError(f"mod is a {type(mod).__name__}; pass a second AnnData with the same cells")
    for names, what in ((adata.obs_names, "adata"), (mod.obs_names, "mod")):
        if names.has_duplicates:
            twice = names[names.duplicated()].unique()
            raise ValueError(f"cells are matched by name, but {what} has {listing(twice, 5)} more than once")
    place = mod.obs_names.get_indexer(adata.obs_names)
    present: Bool[np.ndarray, " cells"] = place >= 0
    if not present.any():
        raise ValueError(
            f"mod has none of the cells of adata: its cells are {listing(mod.obs_names, 3)}, those of adata "
            f"{listing(adata.obs_names, 3)}"
        )
    return (mod if np.array_equal(place, np.arange(mod.n_obs)) else mod[place[present]].copy()), present


def _of_obsm(adata: AnnData, key: str, names: Sequence[str] | str | None) -> tuple[AnnData, Bool[np.ndarray, " cells"]]:
    if key not in adata.obsm:
        raise missing_key("adata.obsm", key, list(adata.obsm))
    values = adata.obsm[key]
    if isinstance(values, pd.DataFrame):
        if names is not None:
            raise ValueError(f"obsm[{key!r}] is a DataFrame, whose columns name its features; leave names out")
        columns: Sequence[object] = list(values.columns)
        values = _numbers(values, key)
    else:
        columns = _names_of(adata, names, values.shape[1] if values.ndim == 2 else 0, key)
    if not sp.issparse(values):
        values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"obsm[{key!r}] has shape {values.shape}; pass cells x features")
    if values.dtype.kind not in "biuf":
        raise TypeError(f"obsm[{key!r}] holds values of type {values.dtype}; pass numbers")
    present = np.ones(adata.n_obs, dtype=bool)
    if not sp.issparse(values) and values.dtype.kind == "f":
        present = ~np.isnan(values).all(1)
    values = values if present.all() else values[present]
    var = pd.DataFrame(index=pd.Index([str(column) for column in columns], dtype=object))
    if var.index.has_duplicates:
        twice = var.index[var.index.duplicated()].unique()
        raise ValueError(
            f"obsm[{key!r}] has {listing(twice, 5)} more than once; features are matched by name, so rename them"
        )
    return AnnData(X=values, obs=pd.DataFrame(index=adata.obs_names[present]), var=var), present


def _numbers(table: pd.DataFrame, key: str) -> sp.csr_matrix | np.ndarray:
    if len(table.columns) and all(isinstance(dtype, pd.SparseDtype) for dtype in table.dtypes):
        return table.sparse.to_coo().tocsr()
    others = [column for column, dtype in zip(table.columns, table.dtypes, strict=True) if not is_numeric_dtype(dtype)]
    if others:
        raise TypeError(
            f"obsm[{key!r}] has columns that do not hold numbers: {listing(others, 5)} (type "
            f"{table.dtypes.iloc[list(table.columns).index(others[0])]}); leave them out, or convert them"
        )
    if any(is_extension_array_dtype(dtype) for dtype in table.dtypes):  # with missing values of their own
        return table.to_numpy(np.float64, na_value=np.nan)
    return table.to_numpy()


def _names_of(adata: AnnData, names: Sequence[str] | str | None, n: int, key: str) -> Sequence[object]:
    where = "names"
    if isinstance(names, str):
        where = f"adata.uns[{names!r}]"
        if names not in adata.uns:
            raise missing_key("adata.uns", names, list(adata.uns))
        names = adata.uns[names]
    if names is None:
        return [f"{key}_{number}" for number in range(n)]
    found = list(names)
    if len(found) != n:
        raise ValueError(f"{where} has {len(found):,} names for the {n:,} features of obsm[{key!r}]")
    return found
