"""Latent positions of simulated cells: around the centres of types, or along branches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ._random import Codes, Floats, Stream, Streams, equal_groups, numbered


@dataclass(frozen=True, eq=False, slots=True)
class Cells:
    """Latent positions and metadata of the cells."""

    z: Floats  # cells x latent
    obs: dict[str, Any]  # columns
    uns: dict[str, Any] = field(default_factory=dict)
    recorded: dict[str, Any] = field(default_factory=dict)  # parameters and ground truth


def cells_of_types(n_cells: int, n_latent: int, n_types: int, type_share: float, stream: Streams) -> Cells:
    """Cells around the centres of their types; with a single type, z ~ N(0, I)."""
    types = equal_groups(n_cells, n_types, stream(Stream.TYPES))
    centres = stream(Stream.LATENT, 0).normal(0, np.sqrt(type_share), (n_types, n_latent)).astype(np.float32)
    z = stream(Stream.LATENT, 1).standard_normal((n_cells, n_latent), np.float32)
    if n_types > 1:
        z *= np.float32(np.sqrt(1 - type_share))
        z += centres[types]
    obs = {"cell_type": numbered("type", types, n_types)}
    return Cells(z, obs, recorded={"n_types": n_types, "type_centres": centres})


def cells_on_branches(n_cells: int, n_latent: int, n_branches: int, type_share: float, stream: Streams) -> Cells:
    r"""Cells along a trunk that splits into branches at pseudotime 0.5.

    The tips of trunk and branches are the corners of a regular simplex around the branching point, the origin, so that
    all tips are equally far from each other. With time t uniform in [0, 1] and tips at distance r, the mean squared
    distance from the origin is r^2 E(2t - 1)^2 = r^2 / 3, which is set to type_share x n_latent.
    """
    lineage = equal_groups(n_cells, n_branches, stream(Stream.TYPES))
    time = stream(Stream.TIME).random(n_cells)
    tips = _simplex(n_branches) * np.sqrt(3 * type_share * n_latent)
    # place the simplex in a random orthonormal frame
    frame = np.linalg.qr(stream(Stream.LATENT, 0).standard_normal((n_latent, n_branches)))[0]
    tips = tips @ frame.T
    on_trunk = time < 0.5
    corner = np.where(on_trunk, 0, 1 + lineage)
    spread = np.sqrt(1 - type_share) * stream(Stream.LATENT, 1).standard_normal((n_cells, n_latent), np.float32)
    z = (np.abs(2 * time - 1)[:, None] * tips[corner] + spread).astype(np.float32)
    return Cells(
        z,
        obs={"branch": _branches(corner, n_branches), "pseudotime": time},
        uns={"iroot": int(time.argmin())},  # where scanpy.tl.dpt looks for it
        recorded={"n_branches": n_branches, "branch_tips": tips.astype(np.float32)},
    )


def _simplex(dimensions: int) -> np.ndarray:
    """The corners of a regular simplex around the origin, at distance 1 from it: dimensions + 1 x dimensions."""
    centred = np.eye(dimensions + 1) - 1 / (dimensions + 1)
    # the centred unit vectors span the subspace orthogonal to the vector of ones, with one dimension less
    basis = np.linalg.svd(centred)[2][:dimensions]
    corners = centred @ basis.T
    unit: np.ndarray = corners / np.linalg.norm(corners, axis=1, keepdims=True)
    return unit


def _branches(corner: Codes, n_branches: int) -> pd.Categorical:
    return pd.Categorical.from_codes(corner, ["trunk", *(f"branch_{k}" for k in range(n_branches))])
