"""Rows of a sparse matrix: the container of counts on the way from the file to the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from .backends import cpu_kernels
from .block import Block
from .selection import SelectedRows


@final
@dataclass(frozen=True, eq=False, slots=True)
class CSR(Block):
    """Cells x genes in compressed sparse rows.

    Parameters
    ----------
    indptr
        int64 (rows + 1): start of each row in `indices` and `values`; an atlas has more than 2^31 non-zeros.
    indices
        int32 column of each stored value.
    values
        float32 stored values; a stored zero is allowed and means zero.
    n_columns
        Number of columns.
    """

    indptr: Int[Tensor, "rows_plus_1"]
    indices: Int[Tensor, "stored"]
    values: Float[Tensor, "stored"]
    n_columns: int

    def __len__(self) -> int:
        return self.indptr.shape[0] - 1

    def with_values(self, values: Float[Tensor, "stored"]) -> CSR:
        """The same pattern with other values."""
        return CSR(self.indptr, self.indices, values, self.n_columns)

    def map(self, change: Callable[[Tensor], Tensor]) -> CSR:
        return CSR(change(self.indptr), change(self.indices), change(self.values), self.n_columns)

    def selected(self) -> SelectedRows:
        longest = min(self.n_columns, self.values.numel())
        return SelectedRows(self.indptr[:-1], self.indptr[1:], self.indices, self.values, self.n_columns, longest)

    def select(self, positions: Tensor) -> SelectedRows:
        return self.selected().select(positions)

    def sorted(self) -> CSR:
        """The same rows, with ascending columns; themselves if they are so already."""
        kernels = cpu_kernels()
        indptr, indices = self.indptr.numpy(), self.indices.numpy()
        if kernels is not None and kernels.sparse.are_sorted(indptr, indices):
            return self
        order = np.lexsort((indices, self.row_of_stored().numpy()))
        return CSR(self.indptr, self.indices[order], self.values[order], self.n_columns)

    def row_of_stored(self) -> Int[Tensor, "stored"]:
        """Row number of each stored value."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.indptr.device), self.indptr.diff())

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        dense = self.values.new_zeros(len(self), self.n_columns)
        dense.index_put_((self.row_of_stored(), self.indices.long()), self.values, accumulate=True)
        return dense

    def rows(self, start: int, stop: int) -> CSR:
        """A block of consecutive rows, without copying the values."""
        first, last = int(self.indptr[start]), int(self.indptr[stop])
        return CSR(
            self.indptr[start : stop + 1] - first, self.indices[first:last], self.values[first:last], self.n_columns
        )

    @classmethod
    def from_numpy(cls, indptr: np.ndarray, indices: np.ndarray, values: np.ndarray, n_columns: int) -> CSR:
        """Wraps numpy arrays; only arrays of another type are converted."""
        return cls(
            torch.from_numpy(np.asarray(indptr, dtype=np.int64)),
            torch.from_numpy(np.asarray(indices, dtype=np.int32)),
            torch.from_numpy(np.asarray(values, dtype=np.float32)),
            n_columns,
        )
