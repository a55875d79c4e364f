"""The random streams of a simulation, and draws that its parts share."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Codes = NDArray[np.int64]
Streams = Callable[..., np.random.Generator]


class Stream(IntEnum):
    """One random stream per purpose, so that changing one leaves the others unchanged."""

    TYPES = 0
    BATCHES = 1
    LATENT = 2
    DECODER = 3
    LIBRARY = 4
    GENES = 5
    VALUES = 6
    TIME = 7
    PROTEINS = 8


def equal_groups(n_cells: int, n_groups: int, rng: np.random.Generator) -> Codes:
    """Group of each cell: groups of equal size (within one cell), in random order."""
    return rng.permutation(np.arange(n_cells, dtype=np.int64) % n_groups)


def log_normal(median: float, sd: float, size: int, rng: np.random.Generator) -> Floats:
    """Log-normal values with this median and standard deviation of the log."""
    values: Floats = (median * np.exp(sd * rng.standard_normal(size))).astype(np.float32)
    return values


def numbered(name: str, codes: Codes, n_groups: int) -> pd.Categorical:
    """Codes as categories ``<name>_0``, ``<name>_1``, …."""
    return pd.Categorical.from_codes(codes, [f"{name}_{k}" for k in range(n_groups)])
