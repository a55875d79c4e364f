"""The choice of kernels: numba's for the CPU, Triton's for a CUDA device, or none if neither can be used."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import torch

from .threads import in_child

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The modules of numba kernels: heads, their tables of counts, operations on sparse rows, and steps of training."""

    heads: Any
    terms: Any
    sparse: Any
    steps: Any


@cache
def cpu_kernels() -> Kernels | None:
    """The numba kernels, or None (and one log line) if numba cannot be used. They are run by `team.run`."""
    try:
        from . import count_terms, cpu, cpu_sparse, steps
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        logger.warning(
            "numba is not usable here (%s); scvae falls back to plain torch, which is slower. If the folder for "
            "compiled kernels is missing, set NUMBA_CACHE_DIR to a writable folder",
            " ".join(str(error).split()),
        )
        return None
    return Kernels(cpu, count_terms, cpu_sparse, steps)


def kernels_for(device: torch.device) -> ModuleType | None:
    """The Triton kernels for tensors on `device`; None if there are none."""
    return _cuda_kernels() if device.type == "cuda" else None


@cache
def _cuda_kernels() -> ModuleType | None:
    """The Triton kernels after a trial launch, or None (and one log line) if they do not work."""
    try:
        from . import cuda

        zero = torch.zeros(1, dtype=torch.int64, device="cuda")
        cuda.densify(zero, zero, zero, zero, 1)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # noqa: BLE001  (no Triton, no C compiler or an old GPU: each raises a different error)
        logger.warning("triton is not usable here (%r); scvae falls back to plain torch, which is slower", error)
        return None
    return cuda


in_child(cpu_kernels.cache_clear)
