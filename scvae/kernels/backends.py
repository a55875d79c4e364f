"""The choice of kernels: numba's for the CPU, Triton's for a CUDA device, or none if neither can be used."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int
from functools import cache, wraps
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch

from .threads import in_child, is_forked

logger = logging.getLogger(__name__)


class Kernels(NamedTuple):
    """The modules of numba kernels: likelihood heads, and operations on sparse rows."""

    heads: Any
    sparse: Any


class _OfThread(threading.local):
    """Numbers of threads of numba in this Python thread: the one set here (0: none), and the one before it."""

    threads = 0
    before = 0


_here = _OfThread()


def cpu_kernels() -> Kernels | None:
    """The numba kernels, or None (and one log line) if numba cannot be used. They use as many threads as torch does."""
    kernels = _loaded()
    threads = torch.get_num_threads()
    if kernels is not None and threads != _here.threads:
        import numba

        _here.before = _here.before or numba.get_num_threads()
        most = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
        numba.set_num_threads(min(threads, most))
        _here.threads = threads
    return kernels


def give_back_threads() -> None:
    """Gives numba the number of threads that it had in this Python thread before `cpu_kernels` changed it."""
    if _here.threads:
        import numba

        numba.set_num_threads(_here.before)
        _here.threads = _here.before = 0


@cache
def _loaded() -> Kernels | None:
    """The kernels, with numba's threads started."""
    threads = torch.get_num_threads()
    try:
        import numba

        from . import cpu, cpu_sparse

        if is_forked():
            _start_in_child()
        numba.get_num_threads()  # starts the threads
    except (ImportError, RuntimeError, ValueError) as error:
        logger.warning(
            "numba is not usable here (%s); scvae falls back to plain torch, which is slower. If the folder for "
            "compiled kernels is missing, set NUMBA_CACHE_DIR to a writable folder",
            " ".join(str(error).split()),
        )
        return None
    # numba has set their number in the OpenMP library that it shares with torch, whose products would have other last
    # bits from here on
    torch.set_num_threads(threads)
    if numba.threading_layer() != "workqueue":  # type: ignore[attr-defined]
        return Kernels(cpu, cpu_sparse)
    lock = threading.Lock()
    return Kernels(_one_at_a_time(cpu, lock), _one_at_a_time(cpu_sparse, lock))


def _start_in_child() -> None:
    """Lets a process made by fork use numba, with one thread.

    Numba ends such a process when it calls a parallel function if its parent has done so with GNU OpenMP, whose threads
    are missing here. With one thread none is needed, so numba is told that its threads start in this process.
    """
    import numba

    numba.set_num_threads(1)
    if numba.threading_layer() == "omp":  # type: ignore[attr-defined]
        from numba.np.ufunc import omppool  # type: ignore[attr-defined]

        CFUNCTYPE(None, c_int)(omppool.launch_threads)(1)


def _one_at_a_time(module: ModuleType, lock: threading.Lock) -> SimpleNamespace:
    """The kernels of a module for numba's workqueue, which ends a process if two threads are in parallel functions."""

    def locked(kernel: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(kernel)
        def call(*arguments: Any) -> Any:
            with lock:
                return kernel(*arguments)

        return call

    return SimpleNamespace(
        **{
            name: locked(value) if getattr(value, "targetoptions", {}).get("parallel") else value
            for name, value in vars(module).items()
        }
    )


in_child(_loaded.cache_clear)


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
