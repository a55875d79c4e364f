"""The choice of the device that a fit runs on."""

from __future__ import annotations

import torch

NAMES = "'auto', 'cpu', 'cuda', 'cuda:<n>' or 'mps'"


def resolve_device(device: str | torch.device) -> torch.device:
    """The named torch device; ``"auto"`` selects CUDA if a CUDA device is available and the CPU otherwise.

    Apple's ``"mps"`` is used only when named: it is untested and lacks float64, which the plain densities need.

    Raises
    ------
    ValueError
        If the name is not a device or the device is not available.
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
        raise ValueError(f"device {device!r} is not available: torch has {there[target.type]} {target.type} device(s).")
    return target
