"""Settings during training and inference that are restored afterwards: device, precision, threads."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def working_on(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Makes a CUDA device the current one, with or without TF32 in its products; on the CPU, sets numba's threads.

    TF32 rounds the factors to 10 bits. This suffices for a training step, but results would not agree with the CPU's.
    """
    if device.type == "cuda":
        with torch.cuda.device(device), float32_products(tf32=tf32):
            yield
    else:
        with shared_threads():
            yield


@contextmanager
def shared_threads() -> Iterator[None]:
    """Lets numba's kernels use as many threads as torch does, so that `torch.set_num_threads` sets both."""
    numba = sys.modules.get("numba")  # never loaded for real values
    if numba is None:
        yield
        return
    before = numba.get_num_threads()
    numba.set_num_threads(min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS))
    try:
        yield
    finally:
        numba.set_num_threads(before)


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Sets how torch multiplies float32 matrices on CUDA devices, and restores the earlier setting."""
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used torch's newer setting, and torch does not allow both
        newer = matmul.fp32_precision
        matmul.fp32_precision = "tf32" if tf32 else "ieee"
        try:
            yield
        finally:
            matmul.fp32_precision = newer
        return
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
