"""The values of all cells, kept in their original arrays and copied out for one batch at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, final

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray

from ..kernels.block import Dense
from ..kernels.csr import CSR
from ..kernels.rows import take_rows

BLOCK = 2**21  # stored values processed together: about 32 MB with their columns as int64


class Rows(ABC):
    """The values of cells x modelled genes."""

    @property
    @abstractmethod
    def n_cells(self) -> int:
        """Number of cells."""

    @property
    @abstractmethod
    def n_genes(self) -> int:
        """Number of modelled genes."""

    @abstractmethod
    def take(self, positions: Int[np.ndarray, " cells"]) -> CSR | Dense:
        """The values of some cells in the order of `positions`, genes in the order of the model, float32.

        The columns of each row of a CSR are ascending, so that sums over a row do not depend on the order of the genes
        in the file. The arrays are always copies.
        """


@final
class SparseRows(Rows):
    """Compressed sparse rows by reference: nothing is copied or converted until rows are taken.

    Parameters
    ----------
    indptr, indices, values
        As in `scipy.sparse.csr_array`, of any integer type and any real or bool type. No column occurs twice in a row.
        They are not changed.
    n_columns
        Number of columns that `indices` refers to.
    column_map
        int32 modelled gene of each column, -1 for a column that is not modelled; None if columns and genes agree.
    n_genes
        Number of modelled genes; only needed with a `column_map`.
    is_sorted
        Whether the columns of each row are ascending.
    """

    def __init__(
        self,
        indptr: NDArray[Any],
        indices: NDArray[Any],
        values: NDArray[Any],
        n_columns: int,
        *,
        column_map: NDArray[np.int32] | None = None,
        n_genes: int | None = None,
        is_sorted: bool = True,
    ) -> None:
        self.indptr = np.asarray(indptr, dtype=np.int64)
        self.indices = indices
        self.values = values
        self.n_columns = n_columns
        self.column_map = column_map
        self._n_genes = n_columns if n_genes is None else n_genes
        self.is_sorted = is_sorted and (column_map is None or bool(np.all(np.diff(column_map[column_map >= 0]) > 0)))

    @classmethod
    def of(cls, x: CSR) -> SparseRows:
        """The rows of a block on the host, without a copy."""
        return cls(x.indptr.numpy(), x.indices.numpy(), x.values.numpy(), x.n_columns)

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return len(self.indptr) - 1

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return self._n_genes

    def take(self, positions: Int[np.ndarray, " cells"]) -> CSR:
        """See `Rows.take`."""
        positions = np.asarray(positions, dtype=np.int64)
        indptr, indices, values = take_rows(self.indptr, self.indices, self.values, positions, self.column_map)
        if not self.is_sorted:
            rows = sp.csr_array((values, indices, indptr), shape=(len(positions), self.n_genes))
            rows.sort_indices()
            indices, values = rows.indices, rows.data
        return CSR.from_numpy(indptr, indices, values, self.n_genes)

    def compact(self, n_kept: int) -> SparseRows:
        """A sorted copy of the modelled entries only, at most `n_kept`: taking rows of it skips and sorts nothing."""
        indptr = np.zeros(self.n_cells + 1, np.int64)
        indices, values = np.empty(n_kept, np.int32), np.empty(n_kept, np.float32)
        for start, stop in row_ranges(self.indptr):
            piece = self.take(np.arange(start, stop))
            ends = indptr[start] + piece.indptr.numpy()
            indices[ends[0] : ends[-1]], values[ends[0] : ends[-1]] = piece.indices, piece.values
            indptr[start : stop + 1] = ends
        return SparseRows(indptr, indices[: indptr[-1]], values[: indptr[-1]], self.n_genes)


@final
class DenseRows(Rows):
    """A dense float32 array, for real values.

    Parameters
    ----------
    values
        Cells x modelled genes, float32; not changed.
    """

    def __init__(self, values: Float[np.ndarray, "cells genes"]) -> None:
        self.values = values

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return int(self.values.shape[0])

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return int(self.values.shape[1])

    def take(self, positions: Int[np.ndarray, " cells"]) -> Dense:
        """See `Rows.take`."""
        chosen = self.values[np.asarray(positions, dtype=np.int64)]
        return Dense(torch.from_numpy(np.ascontiguousarray(chosen, dtype=np.float32)))


def taken(rows: Rows, positions: Int[np.ndarray, " cells"]) -> Rows:
    """A copy of some rows."""
    x = rows.take(positions)
    return SparseRows.of(x) if isinstance(x, CSR) else DenseRows(x.values.numpy())


def row_ranges(indptr: NDArray[np.integer[Any]], size: int = BLOCK) -> list[tuple[int, int]]:
    """Cuts rows into consecutive ranges of about `size` stored entries and at least one row each."""
    ranges, start, n_rows = [], 0, len(indptr) - 1
    while start < n_rows:
        stop = int(np.searchsorted(indptr, int(indptr[start]) + size, side="right")) - 1
        stop = min(max(stop, start + 1), n_rows)
        ranges.append((start, stop))
        start = stop
    return ranges


def row_sums(indptr: NDArray[np.int64], values: NDArray[Any]) -> NDArray[np.float64]:
    """Sum of each compressed row, accumulated in float64."""
    return reduce_rows(np.add, indptr, values.astype(np.float64), 0.0)


def reduce_rows(
    operation: np.ufunc, indptr: NDArray[np.int64], values: NDArray[np.float64], empty: float
) -> NDArray[np.float64]:
    """`operation` reduced over each compressed row; `empty` for a row without entries."""
    reduced = np.full(len(indptr) - 1, empty, dtype=np.float64)
    filled = np.diff(indptr) > 0
    if filled.any():
        # between the starts of two filled rows are only entries of the first, so each segment is one row
        reduced[filled] = operation.reduceat(values, indptr[:-1][filled])
    return reduced
