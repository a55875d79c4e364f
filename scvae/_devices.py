"""Which device a fit runs on, and how exactly it multiplies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

NAMES = "'auto', 'cpu', 'cuda', 'cuda:<n>' or 'mps'"


def resolve_device(device: str | torch.device) -> torch.device:
    """The torch device for ``"auto"`` (CUDA where there is a device, else the CPU) or the one named.

    Apple's ``"mps"`` is taken only when named: it is untested, and lacks the float64 of the plain densities.

    Raises
    ------
    ValueError
        If the name is no device, or the device is not there.
    """
    if str(device) == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device must be {NAMES}; found {device!r}.") from error
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if target.type not in there:
        raise ValueError(f"device must be {NAMES}; found {device!r}.")
    if (target.index or 0) >= there[target.type]:
        raise ValueError(f"device {device!r} is not there: torch sees {there[target.type]} {target.type} device(s).")
    return target


@contextmanager
def working_on(device: torch.device, *, tf32: bool = False) -> Iterator[None]:
    """Makes a CUDA device the current one, with or without TF32 in its products of matrices; nothing on other devices.

    TF32 rounds the factors to 10 bits: enough for a step of training, too coarse for results to agree with the CPU's.
    """
    if device.type != "cuda":
        yield
        return
    with torch.cuda.device(device), float32_products(tf32=tf32):
        yield


@contextmanager
def float32_products(*, tf32: bool) -> Iterator[None]:
    """Sets how torch multiplies float32 matrices on CUDA devices, and puts back what was set before."""
    matmul = torch.backends.cuda.matmul
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # the caller has used torch's newer setting, and torch lets nobody mix the two
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
