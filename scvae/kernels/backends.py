"""The choice of kernels: numba's for the CPU, Triton's for a CUDA device, or none if neither can be used."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import NamedTuple

import numpy as np
import torch

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The modules of numba kernels: likelihood heads, and operations on sparse rows."""

    heads: ModuleType
    sparse: ModuleType


@cache
def cpu_kernels() -> Kernels | None:
    """The numba kernels, or None (and one log line) if numba cannot be imported or has no folder for its cache."""
    threads = torch.get_num_threads()
    try:
        from . import cpu, cpu_sparse
    except (ImportError, RuntimeError) as error:
        logger.warning(
            "numba is not usable here (%s); scvae falls back to plain torch, which is slower. If the folder for "
            "compiled kernels is missing, set NUMBA_CACHE_DIR to a writable folder",
            error,
        )
        return None
    # numba starts its threads at the first call and sets their number in the OpenMP library that it shares with torch:
    # the last bits of torch's products would change in the middle of a run. The number is set even if it is the same,
    # because until then MKL chooses its own (fewer with hyperthreading), and bits would depend on earlier calls
    weight = np.zeros((1, 1), np.float32)
    cpu_sparse.csr_matmul(np.zeros(2, np.int64), np.zeros(0, np.int32), weight[0, :0], weight, np.zeros_like(weight))
    torch.set_num_threads(threads)
    return Kernels(cpu, cpu_sparse)


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
