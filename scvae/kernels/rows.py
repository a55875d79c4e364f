"""Copies of rows of compressed sparse arrays of any type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import team
from .backends import cpu_kernels

COMPILED = {np.dtype(name) for name in ("int32", "int64", "float32", "float64")}  # types with compiled kernels

Taken = tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]


def take_rows(
    indptr: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[Any],
    positions: NDArray[np.int64],
    column_map: NDArray[np.int32] | None,
) -> Taken:
    """Copies of the stored entries of the rows at `positions`, one row after another: indptr, indices and values.

    A `column_map` renumbers the columns, and entries whose column it maps to -1 are left out.
    """
    first, last = indptr[positions], indptr[positions + 1]
    kernels = cpu_kernels()
    if kernels is None or not all(a.dtype in COMPILED and a.flags.c_contiguous for a in (indices, values)):
        return _take_plainly(first, last, indices, values, column_map)
    lengths = last - first
    n_stored = int(lengths.sum())
    if column_map is not None:
        lengths = np.empty_like(first)
        team.run(kernels.sparse.count_mapped, indices, first, last, column_map, lengths, work=n_stored)
    new_indptr = np.zeros(len(first) + 1, dtype=np.int64)
    np.cumsum(lengths, out=new_indptr[1:])
    new_indices, new_values = np.empty(new_indptr[-1], np.int32), np.empty(new_indptr[-1], np.float32)
    places: list[NDArray[Any]]
    if column_map is None:
        kernel, places = kernels.sparse.take_rows, [first]
    else:
        kernel, places = kernels.sparse.take_mapped, [first, last, column_map]
    team.run(kernel, indices, values, *places, new_indptr, new_indices, new_values, work=n_stored)
    return new_indptr, new_indices, new_values


def renamed(
    indptr: NDArray[np.int64], columns: NDArray[Any], values: NDArray[Any], column_map: NDArray[np.int32] | None
) -> Taken:
    """All rows with their columns renumbered as in `take_rows`; it uses one thread and can run in many at once."""
    if column_map is None:
        return indptr, columns.astype(np.int32, copy=False), values.astype(np.float32, copy=False)
    kernels = cpu_kernels()
    if kernels is None:
        return _take_plainly(indptr[:-1], indptr[1:], columns, values, column_map)
    columns, values = (
        a if a.dtype in COMPILED else a.astype(k) for a, k in ((columns, np.int64), (values, np.float32))
    )
    new_indptr = np.empty_like(indptr)
    indices, numbers = np.empty(len(columns), np.int32), np.empty(len(columns), np.float32)
    kernels.sparse.rename_entries(columns, values, indptr, column_map, new_indptr, indices, numbers)
    n = int(new_indptr[-1])
    if n == len(columns):
        return new_indptr, indices, numbers
    return new_indptr, indices[:n].copy(), numbers[:n].copy()  # so that the rest can be freed


def place_rows(piece: Taken, first: NDArray[np.int64], indices: NDArray[np.int32], values: NDArray[np.float32]) -> None:
    """Copies the rows of a piece into `indices` and `values`, each from `first` on; threads as in `renamed`."""
    kernels = cpu_kernels()
    if kernels is not None:
        kernels.sparse.place_rows(*piece, first, indices, values)
        return
    indptr, columns, numbers = piece
    lengths = np.diff(indptr)
    places = np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], lengths)
    indices[places], values[places] = columns, numbers


def keep_entries(
    indptr: NDArray[np.int64], indices: NDArray[Any], values: NDArray[Any], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[Any], NDArray[Any]]:
    """Compressed rows with only the entries in `kept`."""
    if kept.all():
        return indptr, indices, values
    before = np.zeros(len(kept) + 1, dtype=np.int64)
    np.cumsum(kept, out=before[1:])
    return before[indptr], indices[kept], values[kept]


def _take_plainly(
    first: NDArray[np.int64],
    last: NDArray[np.int64],
    indices: NDArray[Any],
    values: NDArray[Any],
    column_map: NDArray[np.int32] | None,
) -> Taken:
    """`take_rows` in numpy."""
    indptr = np.zeros(len(first) + 1, dtype=np.int64)
    np.cumsum(last - first, out=indptr[1:])
    stored = np.arange(indptr[-1]) + np.repeat(first - indptr[:-1], last - first)
    indices, values = indices[stored], values[stored]
    if column_map is not None:
        indices = column_map[indices]
        indptr, indices, values = keep_entries(indptr, indices, values, indices >= 0)
    return indptr, indices.astype(np.int32), values.astype(np.float32)
