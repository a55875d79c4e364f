"""`neighbors`: a neighbour graph that accounts for the uncertainty of the embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from ..common.checks import check_bool, check_positive_int
from ..common.keys import Keys, check_slot_name
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of
from ..diagnostics.neighbours import graph_of, nearest
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.posterior import latent_draws, posterior_moments
from ..inference.trained import identity_of
from ..kernels.context import computing
from ..training.results import write_embedding

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def neighbors(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    n_neighbors: int = 15,
    n_samples: int = 10,
    knn: bool = False,
    beta: float | None = None,
    layer: str | None = None,
    rng: SeedLike = 0,
    neighbors_key: str = "neighbors",
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Computes a neighbour graph averaged over posterior draws, in place of `scanpy.pp.neighbors`.

    For each draw of all cells a graph is built (exact neighbours, UMAP weights: McInnes et al. 2018, section 3.1), and
    the mean of these graphs is written. Cells with overlapping posteriors are connected even if their means are not
    nearest neighbours, and an edge found in a single draw has a low weight. `scanpy.tl.leiden`, `umap`, `paga`,
    `diffmap` and `dpt` can use the graph directly.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name.
    model
        A fitted model.
    n_neighbors
        Neighbours per cell in each draw, including the cell itself, as in scanpy.
    n_samples
        Posterior draws to average over, at least two.
    knn
        Whether ``distances`` has exactly ``n_neighbors - 1`` other cells for each cell, as `scanpy.pp.neighbors` writes
        it: those that are neighbours in most draws, of equal ones the nearest. Pass true for tools that expect a fixed
        number, such as scVelo and CellRank; ``connectivities``, which scanpy's own tools read, is
        the same. If false, ``distances`` has all neighbours in any draw.
    beta
        For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    rng
        Seed or numpy Generator.
    neighbors_key
        Name of the graph, like `key_added` in `scanpy.pp.neighbors`; scanpy's tools find the default.
    key_added
        Name used in the other slots.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsp["connectivities"]``, ``obsp["distances"]``, ``uns["neighbors"]``
            The mean graph; the mean distance of each pair over the draws in which they are neighbours; the parameters.
            With another `neighbors_key`: ``"<neighbors_key>_connectivities"`` and so on.
        ``obs["<key_added>_stability"]``
            Share of a cell's neighbours that two draws have in common, averaged over pairs of draws: 1 if the
            uncertainty of the cell and its surroundings does not change its neighbours.
        ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]``, ``uns["<key_added>"]``
            The embedding and the record of its model, as written by `embed`.

    Raises
    ------
    ValueError
        As for `embed`; if `neighbors_key` is not a valid name in a file or equals `key_added`; if `n_neighbors` is
        below 2 or above the number of cells, or `n_samples` is below 2.

    Examples
    --------
    >>> import scanpy as sc, scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.neighbors(adata, model)
    >>> sc.tl.leiden(adata, flavor="igraph", n_iterations=2)
    """
    check_model(model)
    keys = Keys(key_added)
    n_neighbors = check_positive_int(n_neighbors, "n_neighbors")
    n_samples = check_positive_int(n_samples, "n_samples")
    knn = check_bool(knn, "knn")
    if check_slot_name(neighbors_key, "neighbors_key") == keys.uns:
        raise ValueError(f"neighbors_key and key_added are both {keys.uns!r}; pass two different names")
    if n_samples < 2:
        raise ValueError("n_samples is 1, but stability compares draws; pass at least 2")
    check_replaceable(adata.uns, keys)
    cells = read_cells(adata, model, layer)
    if not 2 <= n_neighbors <= len(cells):
        raise ValueError(f"n_neighbors is {n_neighbors}; pass a number from 2 to the number of cells, {len(cells):,}")
    seed = seed_of(rng)
    mean, variance = posterior_moments(model, cells, beta=beta)
    draws = model.written(latent_draws(mean, variance, n_samples, seed))
    connectivities, times, distances = _sums_of_graphs(draws, n_neighbors)
    target = target_of(adata, copy=copy)
    prefix = "" if neighbors_key == "neighbors" else f"{neighbors_key}_"
    names = {f"{slot}_key": f"{prefix}{slot}" for slot in ("connectivities", "distances")}
    params = {
        "n_neighbors": n_neighbors,
        "method": "umap",
        "metric": "euclidean",
        "random_state": 0,
        "use_rep": keys.mean,
        "model": identity_of(model, beta),
        "n_samples": n_samples,
        "seed": seed,
    }
    write_embedding(
        target,
        model,
        (mean, variance),
        keys,
        beta=beta,
        obs={keys.stability: _stability(times, n_samples, n_neighbors)},
        obsm={keys.samples: None},
        obsp={
            names["connectivities_key"]: connectivities / n_samples,
            names["distances_key"]: _mean_distances(times, distances, n_neighbors - 1 if knn else None),
        },
        uns={neighbors_key: names | {"params": params}},
    )
    return target if copy else None


def _sums_of_graphs(
    draws: Float[np.ndarray, "cells draws latent"], n_neighbors: int
) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
    """Sums over the draws: edge weights; how often a cell is a neighbour of another; and their distances."""
    n, others = len(draws), n_neighbors - 1
    weights, times, distances = (sp.csr_matrix((n, n), dtype=np.float32) for _ in range(3))
    starts = np.arange(0, n * others + 1, others)
    for i in range(draws.shape[1]):
        found = nearest(draws[:, i], n_neighbors)
        columns, distance = found.index[:, 1:].ravel(), found.distance[:, 1:].astype(np.float32).ravel()
        weights = weights + sp.csr_matrix(graph_of(found), dtype=np.float32)
        times = times + sp.csr_matrix((np.ones_like(distance), columns, starts), shape=(n, n))
        distances = distances + sp.csr_matrix((distance, columns, starts), shape=(n, n))
    return weights, times, distances


def _mean_distances(times: sp.csr_matrix, distances: sp.csr_matrix, most: int | None) -> sp.csr_matrix:
    """Mean distances over the draws that make cells neighbours; those of each cell to the `most` frequent ones."""
    mean = distances.multiply(times.power(-1.0)).tocsr()
    if most is None:
        return mean
    cells = np.repeat(np.arange(times.shape[0]), np.diff(times.indptr))
    distance = np.asarray(mean[cells, times.indices]).ravel()
    order = np.lexsort((distance, -times.data, cells))
    kept = np.sort(order[np.arange(len(order)) - times.indptr[cells[order]] < most])
    starts = most * np.arange(times.shape[0] + 1)
    return sp.csr_matrix((distance[kept], times.indices[kept], starts), shape=times.shape)


def _stability(times: sp.csr_matrix, n_samples: int, n_neighbors: int) -> Float[np.ndarray, " cells"]:
    """Share of the neighbours that two draws have in common, averaged over pairs of draws."""
    pairs = times.multiply(times - times.sign()).sum(1)  # a neighbour in t draws is shared by t (t - 1) ordered pairs
    return np.asarray(pairs, dtype=np.float64).ravel() / (n_samples * (n_samples - 1) * (n_neighbors - 1))
