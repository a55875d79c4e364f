"""The values of some cells, cells x genes, in one of three layouts: `Dense`, `CSR` or `SelectedRows`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, final

from jaxtyping import Float
from torch import Tensor


class Block(ABC):
    """What every layout can do."""

    __slots__ = ()
    n_columns: int

    @abstractmethod
    def __len__(self) -> int:
        """Number of rows."""

    @abstractmethod
    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same block with every tensor replaced, for example by a copy on another device."""

    @abstractmethod
    def to_dense(self) -> Float[Tensor, "rows columns"]:
        """All values as one dense tensor, in plain torch."""

    @abstractmethod
    def selected(self) -> Block:
        """The same rows in a layout from which rows are selected without reading the values; nothing is copied."""

    @abstractmethod
    def select(self, positions: Tensor) -> Block:
        """Some of these rows, in the order of `positions`."""


@final
@dataclass(frozen=True, eq=False, slots=True)
class Dense(Block):
    """All values, zeros included: float32, rows x columns."""

    values: Float[Tensor, "rows columns"]

    @property
    def n_columns(self) -> int:  # type: ignore[override]
        return self.values.shape[1]

    def __len__(self) -> int:
        return self.values.shape[0]

    def with_values(self, values: Float[Tensor, "rows columns"]) -> Dense:
        """Other values of the same rows."""
        return Dense(values)

    def map(self, change: Callable[[Tensor], Tensor]) -> Dense:
        return Dense(change(self.values))

    def to_dense(self) -> Float[Tensor, "rows columns"]:
        return self.values

    def selected(self) -> Dense:
        return self

    def select(self, positions: Tensor) -> Dense:
        return Dense(self.values[positions])
