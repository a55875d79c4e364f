"""The nearest reference cells of cells, by an exact search, and where these put a cell on a layout of the reference."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int

from ..data.batches import chunks
from ..kernels.context import computing
from ..kernels.team import in_order

Nearest = tuple[Float[np.ndarray, "cells neighbours"], Int[np.ndarray, "cells neighbours"]]

SHARED_FROM = 2**26  # pairs of cells; fewer are searched by one thread
WORTH_A_TREE = 2_000  # cells; measured with 10 dimensions and a million reference cells
AT_ONCE = 256  # query cells of a thread: what scikit-learn compares in one product
STEPS = 50  # of Weiszfeld's iteration
TINY = 1e-3  # added to the distances, in units of the layout: a cell at a neighbour stays there


def nearest_cells(
    reference: Float[np.ndarray, "reference latent"], cells: Float[np.ndarray, "cells latent"], k: int
) -> Nearest:
    """Euclidean distances and positions of the `k` nearest reference cells, or of all if there are fewer, by distance.

    scikit-learn's exact search, shared by threads if it is large: a tree for up to 15 dimensions, else products of
    blocks, as also for so few cells that a tree of a large reference would take longer to make.
    """
    from sklearn.neighbors import NearestNeighbors

    is_large = len(reference) * len(cells) >= SHARED_FROM
    method = "brute" if is_large and len(cells) < WORTH_A_TREE else "auto"
    search = NearestNeighbors(n_neighbors=min(k, len(reference)), algorithm=method)
    search.fit(np.asarray(reference, np.float64))
    cells = np.asarray(cells, np.float64)

    def of(part: Int[np.ndarray, " some"]) -> Nearest:
        with computing():  # holds the number of OpenMP threads in this thread
            distance, place = search.kneighbors(cells[part])
        return distance, place

    parts = chunks(len(cells), AT_ONCE) if is_large else [np.arange(len(cells))]
    distances, places = zip(*in_order(of, parts, device=torch.device("cpu")), strict=True)
    return np.concatenate(distances), np.concatenate(places)


def placed(
    layout: Float[np.ndarray, "reference 2"], place: Int[np.ndarray, "cells neighbours"]
) -> Float[np.ndarray, "cells 2"]:
    """Where cells belong on a layout of the reference: the geometric median of their neighbours' coordinates.

    The point with the smallest sum of distances to the neighbours (Weiszfeld 1937). Unlike their mean, it does not lie
    between two islands of the layout if most neighbours are on one of them.
    """
    points = layout[place].astype(np.float64)
    found = points.mean(1)
    for _ in range(STEPS):
        weight = 1.0 / (np.linalg.norm(points - found[:, None], axis=2) + TINY)
        found = (weight[..., None] * points).sum(1) / weight.sum(1, keepdims=True)
    return np.asarray(found, dtype=np.float32)
