"""A batch whose cells lie in several processes: sums over all of them, for what depends on the whole batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor


class _Sum(torch.autograd.Function):
    """Sum over processes: the gradient is the sum of theirs, as each one's value reaches the losses of all."""

    @staticmethod
    def forward(_: Any, values: Tensor) -> Tensor:
        out = values.detach().clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out

    @staticmethod
    def backward(_: Any, gradient: Tensor) -> Tensor:
        out = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(out)
        return out


def total(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Elementwise sum over the processes, within a loss that each of them forms of its own cells."""
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return summed


@dataclass(frozen=True, slots=True)
class Shared:
    """Says that a batch lies in several processes.

    Parameters
    ----------
    world
        How many.
    n_cells
        Cells of the whole batch.
    part
        Where in it the cells here are. If nowhere, there is one cell, only to have the processes do the same.
    """

    world: int
    n_cells: int
    part: slice

    @property
    def counts(self) -> bool:
        """Whether the cells here are part of the batch."""
        return bool(self.part.stop > self.part.start)


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


def shared() -> Shared | None:
    """How the batch at hand is shared, inside `sharing`; None if it is whole."""
    return _shared.get()


@contextmanager
def sharing(batch: Shared) -> Iterator[None]:
    """Tells what depends on all cells of a batch that it lies in several processes."""
    token = _shared.set(batch)
    try:
        yield
    finally:
        _shared.reset(token)
