"""Aligned UMAP layouts of the same cells, one for each of several embeddings."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from ..common.rng import numpy_generator
from ..diagnostics.neighbours import graph_of, nearest

STEPS = 42  # random stream of the optimiser
SPREAD, MIN_DIST = 1.0, 0.5  # scanpy's defaults
NEGATIVE_SAMPLES = 5  # scanpy's default
FIRST_EPOCHS, FIRST_RATE = 500, 1.0
NEXT_EPOCHS, NEXT_RATE = 100, 0.25
EXTENT = 10.0  # of the starting layout
NOISE = 1e-3  # of that extent: identical cells must not start at the same point
Layout = Float[np.ndarray, "cells 2"]


def aligned_layouts(
    embeddings: Sequence[Float[np.ndarray, "cells latent"]] | Float[np.ndarray, "embeddings cells latent"],
    *,
    n_neighbors: int,
    seed: int,
    done: Callable[[], object],
) -> Float[np.ndarray, "embeddings cells 2"]:
    """One layout per embedding, in the same order; consecutive layouts are similar.

    UMAP's objective and optimiser are unchanged (McInnes et al. 2018); only the starting layouts and step sizes differ.
    The mean of all graphs is laid out first, starting from two principal components. Each embedding's own graph is then
    laid out from there with a fifth of the epochs and a quarter of the step size, which preserves as many neighbours as
    an independent layout. Finally all layouts are rotated by the same angle, so that they are wider than high.

    Parameters
    ----------
    embeddings
        Embeddings of the same cells in the same order.
    n_neighbors
        Neighbours per cell, including the cell itself.
    seed
        Seed of the optimiser.
    done
        Called after each layout, so once more than there are embeddings.

    Returns
    -------
    Array, embeddings x cells x 2, float32, centred at 0.
    """
    graphs = [graph_of(nearest(embedding, n_neighbors)) for embedding in embeddings]
    optimiser = _Optimiser(*_curve(), seed)
    first = optimiser(
        sum(graphs[1:], graphs[0]) / len(graphs), _principal(embeddings[len(graphs) // 2], seed), first=True
    )
    done()
    layouts = []
    for graph in graphs:
        layouts.append(optimiser(graph, first))
        done()
    return _lying(np.stack(layouts))


@dataclass(frozen=True, slots=True)
class _Optimiser:
    """UMAP's stochastic gradient descent; `a` and `b` are the parameters of its similarity 1 / (1 + a d^2b)."""

    a: float
    b: float
    seed: int

    def __call__(self, graph: sp.csr_array, start: Layout, *, first: bool = False) -> Layout:
        from umap.layouts import optimize_layout_euclidean
        from umap.umap_ import make_epochs_per_sample

        epochs, rate = (FIRST_EPOCHS, FIRST_RATE) if first else (NEXT_EPOCHS, NEXT_RATE)
        edges = sp.coo_array(graph)
        often = edges.data * epochs >= edges.data.max()  # weaker edges would never be sampled
        layout = np.array(start, dtype=np.float32, order="C")
        optimize_layout_euclidean(
            layout,
            layout,
            edges.coords[0][often].astype(np.int32),
            edges.coords[1][often].astype(np.int32),
            epochs,
            len(layout),
            make_epochs_per_sample(edges.data[often], epochs),
            self.a,
            self.b,
            numpy_generator(self.seed, STEPS).integers(-(2**31) + 1, 2**31 - 1, 3),
            initial_alpha=rate,
            negative_sample_rate=NEGATIVE_SAMPLES,
            move_other=True,
        )
        return np.asarray(layout - layout.mean(axis=0), dtype=np.float32)


def _curve() -> tuple[float, float]:
    """`a` and `b` of scanpy's UMAPs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImportWarning)  # umap warns that its TensorFlow part is missing
        from umap.umap_ import find_ab_params
    a, b = find_ab_params(SPREAD, MIN_DIST)
    return float(a), float(b)


def _principal(embedding: Float[np.ndarray, "cells latent"], seed: int) -> Layout:
    """The first two principal components, scaled by one factor, with a little noise."""
    centred = embedding.astype(np.float64) - embedding.mean(axis=0, dtype=np.float64)
    values, axes = np.linalg.eigh(centred.T @ centred)
    components = np.zeros((len(embedding), 2))
    components[:, : min(2, len(values))] = centred @ axes[:, np.argsort(-values)[:2]]
    extent = float(np.abs(components).max())
    components *= EXTENT / extent if extent > np.finfo(np.float32).tiny else 0.0
    noise = numpy_generator(seed, STEPS, 0).standard_normal(components.shape)
    return np.asarray(components + NOISE * EXTENT * noise, dtype=np.float32)


def _lying(layouts: Float[np.ndarray, "embeddings cells 2"]) -> Float[np.ndarray, "embeddings cells 2"]:
    """Rotates all layouts by one angle so that the largest variance is along the first axis: screens are wide."""
    points = layouts.reshape(-1, 2).astype(np.float64)
    axes = np.linalg.eigh(points.T @ points)[1][:, ::-1]
    return np.asarray(layouts @ axes, dtype=np.float32)
