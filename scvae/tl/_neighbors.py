"""`neighbors`: a graph of the cells that knows how sure each cell's place is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float

from ..common.checks import check_positive_int
from ..common.keys import Keys, check_slot_name
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of, write
from ..diagnostics.neighbours import graph_of, nearest
from ..inference.cells import read_cells
from ..inference.fitted import FittedModel, check_model
from ..inference.posterior import latent_draws, posterior_moments

if TYPE_CHECKING:
    from anndata import AnnData


def neighbors(
    adata: AnnData,
    model: FittedModel,
    *,
    n_neighbors: int = 15,
    n_samples: int = 10,
    beta: float | None = None,
    layer: str | None = None,
    rng: SeedLike = 0,
    neighbors_key: str = "neighbors",
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Neighbours of the cells over draws from their posteriors, in place of `scanpy.pp.neighbors`.

    Each draw of all cells has its graph (exact neighbours, weights as those of UMAP: McInnes et al. 2018, section 3.1),
    and the graph written is the mean of them. Two cells whose posteriors overlap are joined by an edge even where their
    means are not the nearest, and an edge that rests on one draw weighs little. `scanpy.tl.leiden`, `umap`, `paga`,
    `diffmap` and `dpt` take the graph as it is.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit; genes are matched by name.
    model
        A fitted model.
    n_neighbors
        Neighbours of a cell in each draw, itself included, as in scanpy.
    n_samples
        Draws.
    beta
        Of a model of many β, that of the embedding; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    rng
        Seed or numpy Generator.
    neighbors_key
        Where the graph goes, as `key_added` of `scanpy.pp.neighbors`; by default where its tools look for it.
    key_added
        Name of the other slots.
    copy
        Whether to leave `adata` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsp["connectivities"]``, ``obsp["distances"]``, ``uns["neighbors"]``
            The mean of the graphs; the mean distance of each pair over the draws that make them neighbours; parameters.
            With another `neighbors_key`: under ``"<neighbors_key>_connectivities"`` and so on.
        ``obs["<key_added>_stability"]``
            Share of a cell's neighbours that two draws have in common, on average over pairs of draws: 1 where what is
            unknown of the cell and its surroundings changes nothing; for two draws at least.
        ``obsm["X_<key_added>"]``, ``obsm["X_<key_added>_var"]``
            The embedding, as `embed` writes it.

    Raises
    ------
    ValueError
        As `embed`; if `neighbors_key` cannot be a name in a file, or is `key_added`; if `n_neighbors` is below 2 or
        above the number of cells, or `n_samples` below 2.

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
    if check_slot_name(neighbors_key, "neighbors_key") == keys.uns:
        raise ValueError(f"neighbors_key and key_added are both {keys.uns!r}, and uns has one place of this name")
    if n_samples < 2:
        raise ValueError("n_samples is 1, and stability compares draws; pass 2 or more")
    cells = read_cells(adata, model, layer)
    if not 2 <= n_neighbors <= len(cells):
        raise ValueError(f"n_neighbors is {n_neighbors}; pass a number from 2 to that of the cells, {len(cells):,}")
    seed = seed_of(rng)
    mean, variance = posterior_moments(model, cells, beta=beta)
    draws = latent_draws(mean, variance, n_samples, seed)
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
        "n_samples": n_samples,
        "seed": seed,
    }
    write(
        target,
        obs={keys.stability: _stability(times, n_samples, n_neighbors)},
        obsm={keys.mean: mean, keys.variance: variance, keys.samples: None},
        obsp={
            names["connectivities_key"]: connectivities / n_samples,
            names["distances_key"]: distances.multiply(times.power(-1.0)).tocsr(),
        },
        uns={neighbors_key: names | {"params": params}},
    )
    return target if copy else None


def _sums_of_graphs(
    draws: Float[np.ndarray, "cells draws latent"], n_neighbors: int
) -> tuple[sp.csr_matrix, sp.csr_matrix, sp.csr_matrix]:
    """Over the draws: summed edge weights; how often a cell is another's neighbour; and their summed distances."""
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


def _stability(times: sp.csr_matrix, n_samples: int, n_neighbors: int) -> Float[np.ndarray, " cells"]:
    """Neighbours in common of two draws, over how many there are, on average over the pairs of draws."""
    pairs = times.multiply(times - times.sign()).sum(1)  # a neighbour in t draws is common to t (t - 1) ordered pairs
    return np.asarray(pairs, dtype=np.float64).ravel() / (n_samples * (n_samples - 1) * (n_neighbors - 1))
