"""Rows selected from a compressed matrix without copying it: the batches of data kept on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from .block import Block


@final
@dataclass(frozen=True, eq=False, slots=True)
class SelectedRows(Block):
    """Some rows of a cells x genes matrix; all shapes are known without reading the values.

    Parameters
    ----------
    first, last
        int64 (rows): start and end of each row in `indices` and `values`.
    indices
        Column of each stored value, of any integer type. No column occurs twice in a row.
    values
        Stored values of any type; a stored zero is allowed and means zero.
    n_columns
        Number of columns.
    longest
        An upper bound on the number of stored values of a row.
    """

    first: Int[Tensor, "rows"]
    last: Int[Tensor, "rows"]
    indices: Int[Tensor, "stored"]
    values: Num[Tensor, "stored"]
    n_columns: int
    longest: int

    def __len__(self) -> int:
        return self.first.shape[0]

    def select(self, positions: Int[Tensor, " chosen"]) -> SelectedRows:
        """Some of these rows, in the order of `positions`; the values are not copied."""
        first, last = self.first[positions], self.last[positions]
        return SelectedRows(first, last, self.indices, self.values, self.n_columns, self.longest)

    def map(self, change: Callable[[Tensor], Tensor]) -> SelectedRows:
        first, last, indices, values = map(change, (self.first, self.last, self.indices, self.values))
        return SelectedRows(first, last, indices, values, self.n_columns, self.longest)

    def selected(self) -> SelectedRows:
        return self

    def to_dense(self, scale: Float[Tensor, "rows"] | None = None) -> Float[Tensor, "rows columns"]:
        """The rows as a dense float32 block; with `scale`, log1p(value x scale of the row) of each value."""
        stored = self.first[:, None] + torch.arange(self.longest, device=self.first.device)
        here = stored < self.last[:, None]
        stored = torch.where(here, stored, 0)
        values = torch.where(here, self.values[stored].float(), 0.0)
        if scale is not None:
            values = torch.log1p(values * scale[:, None])
        dense = values.new_zeros(len(self), self.n_columns)
        return dense.scatter_add_(1, torch.where(here, self.indices[stored].long(), 0), values)
