"""Rows taken out of compressed sparse arrays of any type."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .autograd import cpu_kernels

COMPILED = {np.dtype(name) for name in ("int32", "int64", "float32", "float64")}  # what is worth compiling for


def take_rows(
    indptr: NDArray[np.int64], indices: NDArray[Any], values: NDArray[Any], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.float32]]:
    """The stored entries of the rows at `positions`, one row after another, as copies: indptr, indices, values."""
    first, last = indptr[positions], indptr[positions + 1]
    new_indptr = np.zeros(len(positions) + 1, dtype=np.int64)
    np.cumsum(last - first, out=new_indptr[1:])
    kernels = cpu_kernels()
    if kernels is not None and {indices.dtype, values.dtype} <= COMPILED:
        new_indices, new_values = np.empty(new_indptr[-1], np.int32), np.empty(new_indptr[-1], np.float32)
        kernels.sparse.take_rows(indices, values, first, new_indptr, new_indices, new_values)
        return new_indptr, new_indices, new_values
    stored = np.arange(new_indptr[-1]) + np.repeat(first - new_indptr[:-1], last - first)
    return new_indptr, indices[stored].astype(np.int32), values[stored].astype(np.float32)
