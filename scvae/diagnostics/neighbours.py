"""Nearest neighbours in an embedding, the weighted graph that scanpy clusters, and Leiden partitions of it.

scanpy's own functions are not used because they compile for seconds at their first call and seed the global random
state.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from ..common.rng import igraph_random_state
from ..kernels.context import turn

if TYPE_CHECKING:
    import igraph

N_NEIGHBOURS = 15  # including the cell itself: scanpy's default
LEIDEN_ITERATIONS = 2  # scanpy's setting for the igraph flavour
BISECTIONS = 64
SMALLEST_BANDWIDTH = 1e-3  # times the mean distance; UMAP's bound


@dataclass(frozen=True, eq=False, slots=True)
class Neighbours:
    """The nearest neighbours of each cell, sorted by distance and starting with the cell itself.

    Parameters
    ----------
    index
        Positions of the neighbours; column 0 is the cell itself.
    distance
        Euclidean distances to them.
    """

    index: Int[np.ndarray, "cells neighbours"]
    distance: Float[np.ndarray, "cells neighbours"]

    def among(self, kept: Bool[np.ndarray, " cells"], k: int = N_NEIGHBOURS) -> Neighbours:
        """The `k` nearest neighbours within the kept cells, renumbered; exact if `k` of the known ones are kept.

        A cell with fewer kept neighbours repeats the last of them.
        """
        known = kept[self.index[kept]]
        rank = np.cumsum(known, axis=1)
        wanted = np.minimum(np.arange(1, k + 1), rank[:, -1:])
        column = (rank[:, None, :] < wanted[:, :, None]).sum(2)
        number = np.cumsum(kept) - 1
        return Neighbours(
            number[np.take_along_axis(self.index[kept], column, axis=1)],
            np.take_along_axis(self.distance[kept], column, axis=1),
        )


def nearest(embedding: Float[np.ndarray, "cells latent"], k: int = N_NEIGHBOURS) -> Neighbours:
    """The `k` nearest neighbours of each of at least two cells (exact, Euclidean); all cells if there are fewer."""
    from sklearn.neighbors import NearestNeighbors

    n = len(embedding)
    # the search leaves out the cell itself, so that an identical cell cannot take its place in the first column
    search = NearestNeighbors(n_neighbors=min(k, n) - 1).fit(np.asarray(embedding, dtype=np.float64))
    distance, index = search.kneighbors()
    itself = np.arange(n)[:, None]
    return Neighbours(np.hstack([itself, index]), np.hstack([np.zeros((n, 1)), distance]))


def graph_of(neighbours: Neighbours) -> sp.csr_array:
    """The symmetric weighted graph of UMAP (McInnes et al. 2018, section 3.1), which scanpy clusters.

    The weight of a neighbour is exp(-(d - rho) / sigma), with rho the smallest distance above 0 and sigma such that the
    weights of a cell sum to log2 k. The symmetric weight is w_ij + w_ji - w_ij w_ji.
    """
    n, k = neighbours.index.shape
    distance = neighbours.distance
    nearest_other = np.where(distance > 0, distance, np.inf).min(axis=1, keepdims=True)
    excess = np.maximum(distance - np.where(np.isfinite(nearest_other), nearest_other, 0.0), 0.0)[:, 1:]
    bandwidth = np.maximum(
        _bandwidth(excess, np.log2(k)), SMALLEST_BANDWIDTH * np.maximum(distance.mean(1), np.finfo(np.float64).tiny)
    )
    weight = np.exp(-excess / bandwidth[:, None])
    rows = np.repeat(np.arange(n), k - 1)
    columns = neighbours.index[:, 1:].ravel()
    off_diagonal = rows != columns
    directed = sp.csr_array((weight.ravel()[off_diagonal], (rows[off_diagonal], columns[off_diagonal])), shape=(n, n))
    directed.data = np.minimum(directed.data, 1.0)  # scipy adds up repeated neighbours
    both = directed.multiply(directed.T)
    return sp.csr_array(directed + directed.T - both)


def _bandwidth(excess: Float[np.ndarray, "cells others"], total: float) -> Float[np.ndarray, " cells"]:
    """sigma of each cell with sum exp(-excess / sigma) = total, by UMAP's bisection; the sum grows with sigma."""
    low, high = np.zeros(len(excess)), np.full(len(excess), np.inf)
    sigma = np.ones(len(excess))
    for _ in range(BISECTIONS):
        above = np.exp(-excess / sigma[:, None]).sum(1) > total
        high, low = np.where(above, sigma, high), np.where(above, low, sigma)
        sigma = np.where(np.isfinite(high), 0.5 * (low + np.where(np.isfinite(high), high, low)), 2.0 * sigma)
    return np.maximum(sigma, np.finfo(np.float64).tiny)


def as_igraph(graph: sp.csr_array) -> igraph.Graph:
    """The same undirected graph in igraph, with the weights as edge attribute "weight"."""
    import igraph

    upper = sp.coo_array(sp.triu(graph, k=1))
    edges = np.column_stack(upper.coords)
    return igraph.Graph(n=graph.shape[0], edges=edges, edge_attrs={"weight": upper.data})


def leiden(graph: igraph.Graph, *, resolution: float, seed: int) -> Int[np.ndarray, " cells"]:
    """Cluster of each cell: Leiden (Traag et al. 2019) on modularity, as ``sc.tl.leiden(flavor="igraph")``."""
    with turn(), igraph_random_state(seed):
        partition = graph.community_leiden(
            objective_function="modularity", weights="weight", resolution=resolution, n_iterations=LEIDEN_ITERATIONS
        )
    return np.asarray(partition.membership)
