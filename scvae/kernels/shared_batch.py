"""Sums over the processes that share a batch, for operations that depend on all of its cells."""

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
    """Sum over processes. Its gradient is the sum of their gradients, since every value enters all losses."""

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
    """Element-wise sum over the processes, for use in a loss that each process computes from its own cells."""
    summed: Tensor = _Sum.apply(values)  # type: ignore[no-untyped-call]
    return summed


@dataclass(frozen=True, slots=True)
class Shared:
    """How a batch is split over several processes.

    Parameters
    ----------
    world
        Number of processes.
    n_cells
        Number of cells in the complete batch.
    part
        The part of the batch in this process. If empty, one dummy cell keeps the processes in step.
    """

    world: int
    n_cells: int
    part: slice

    @property
    def counts(self) -> bool:
        """Whether the cells in this process are part of the batch."""
        return bool(self.part.stop > self.part.start)


_shared: ContextVar[Shared | None] = ContextVar("shared", default=None)


def shared() -> Shared | None:
    """How the current batch is split, inside a block of `sharing`; None if it is not split."""
    return _shared.get()


@contextmanager
def sharing(batch: Shared) -> Iterator[None]:
    """A block in which `shared` returns `batch`."""
    token = _shared.set(batch)
    try:
        yield
    finally:
        _shared.reset(token)
