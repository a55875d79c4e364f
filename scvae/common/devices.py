"""Which device a fit runs on."""

from __future__ import annotations

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
