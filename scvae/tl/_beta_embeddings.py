"""`beta_embeddings`: UMAPs of the cells at many β, aligned so that each cell moves little from one β to the next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import check_adata, check_positive_int
from ..common.keys import Keys
from ..common.progress import progress_bar
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, numpy_generator, seed_of
from ..common.slots import target_of, write_made
from ..data.beta_range import evenly_spaced, given_betas
from ..data.cells import Cells
from ..diagnostics.rate_distortion import rate_and_distortion, to_judge_on
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.posterior import posterior_moments
from ..kernels.context import computing
from ._layouts import aligned_layouts

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

N_BETAS = 17  # the nine of tune_beta and one between each two
LEAST_CELLS = 10  # fewest cells for a neighbour graph
SHOWN = 41  # random stream that draws the cells


@computing()
@taking_mudata
def beta_embeddings(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    betas: Sequence[float] | np.ndarray | None = None,
    n_neighbors: int = 15,
    max_cells: int = 10_000,
    layer: str | None = None,
    rng: SeedLike = 0,
    key_added: str = "scvae",
    copy: bool = False,
    verbose: bool = True,
) -> AnnData | None:
    """Computes UMAPs of the embedding at many β, aligned with each other, for `scvae.pl.beta_explorer`.

    UMAPs computed independently rotate, mirror and rearrange clusters arbitrarily, which hides the effect of β. Here
    all start from one layout, that of the mean of their neighbour graphs. Each is then refined on its own graph with
    small steps (the objective of McInnes et al. 2018, "UMAP").

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name.
    model
        A model with a range of β, from ``scvae.fit(adata, beta=(low, high))`` or ``scvae.tune_beta(adata).model``.
    betas
        Values of β, at least two, within the model's range; None takes 17 that span the range, evenly spaced on a log
        scale. The explorer moves the cells on straight lines between them.
    n_neighbors
        Neighbours per cell in the graphs behind the UMAPs, including the cell itself, as in scanpy.
    max_cells
        Largest number of cells to lay out. If there are more, a random subset is taken; the others get NaN.
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    rng
        Seed or numpy Generator for the choice of cells, the posterior draws and UMAP's optimisation.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.
    verbose
        Whether to show a progress bar. Nothing else is printed.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsm["X_<key_added>_umap_betas"]``
            float32, cells x (2 betas): the two coordinates at the first β, those at the second, and so on.
            ``scanpy.pl.embedding(adata, "X_<key_added>_umap_betas", dimensions=[(0, 1), (32, 33)])`` draws the first
            and the last of 17.
        ``uns["<key_added>"]["beta_embeddings"]``
            ``beta`` (ascending); ``rate`` and ``distortion`` at each β in nats per cell, on at most 1,000 cells held
            out in the fit (of all cells, if the fit used other cells or held none out; see ``judged_on``);
            ``n_cells`` laid out; ``n_neighbors``; ``seed``. Other entries of ``uns["<key_added>"]`` are kept.

    Raises
    ------
    ValueError
        As for `embed`; if `model` has a single β, a β lies outside its range, fewer than 10 cells would be laid out, or
        `n_neighbors` is below 2 or not below the number of cells laid out. `adata` is then unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, beta=(0.1, 10), n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.beta_embeddings(adata, model, betas=[0.1, 1, 10], verbose=False)
    >>> adata.obsm["X_scvae_umap_betas"].shape
    (200, 6)
    """
    check_model(model)
    keys = Keys(key_added)
    check_adata(adata)
    points = _points(model, betas)
    n_neighbors = check_positive_int(n_neighbors, "n_neighbors")
    n_shown = min(check_positive_int(max_cells, "max_cells"), adata.n_obs)
    _check_numbers(n_shown, n_neighbors)
    seed = seed_of(rng)
    check_replaceable(adata.uns, keys)
    cells = read_cells(adata, model, layer)
    shown = np.sort(numpy_generator(seed, SHOWN).permutation(len(cells))[:n_shown])
    judged, role = to_judge_on(model, cells, seed=seed)
    laid_out, curve = cells.taken(shown), []
    means = np.empty((len(points), n_shown, model.n_latent), np.float32)
    bar = progress_bar(2 * len(points) + 1, unit="step", leave=False, verbose=verbose)
    try:
        for mean, beta in zip(means, points, strict=True):
            mean[:] = model.written(posterior_moments(model, laid_out, beta=beta)[0])
            curve.append(_rate_and_distortion(model, judged, beta=beta, seed=seed))
            bar.update()
        layouts = aligned_layouts(means, n_neighbors=n_neighbors, seed=seed, done=bar.update)
    finally:
        bar.close()
    umaps = np.full((len(cells), 2 * len(points)), np.nan, np.float32)
    umaps[shown] = layouts.transpose(1, 0, 2).reshape(n_shown, -1)
    rate, distortion = np.array(curve).T
    record: dict[str, Any] = {
        "beta": np.array(points),
        "rate": rate,
        "distortion": distortion,
        "judged_on": f"{len(judged):,} cells {role}",
        "n_cells": n_shown,
        "n_neighbors": n_neighbors,
        "seed": seed,
    }
    target = target_of(adata, copy=copy)
    made_by = model.digest
    write_made(target, keys, made_by, obsm={keys.beta_umaps: umaps}, record={keys.beta_embeddings: record})
    return target if copy else None


def _points(model: FittedModel, betas: Sequence[float] | np.ndarray | None) -> list[float]:
    if not isinstance(model.beta, tuple):
        raise ValueError(
            f"model was trained at β = {model.beta:g} alone, so there is no path to show; pass a model from "
            "scvae.fit(adata, beta=(low, high)) or scvae.tune_beta(adata)"
        )
    if betas is None:
        return evenly_spaced(*model.beta, N_BETAS)
    return [model.beta_of(beta) for beta in given_betas(betas)]


def _check_numbers(n_shown: int, n_neighbors: int) -> None:
    if n_shown < LEAST_CELLS:
        raise ValueError(f"only {n_shown} cells would be laid out; UMAP needs at least {LEAST_CELLS}")
    if not 2 <= n_neighbors < n_shown:
        raise ValueError(f"n_neighbors is {n_neighbors}; pass at least 2, below the number of cells, {n_shown:,}")


def _rate_and_distortion(model: FittedModel, judged: Cells, *, beta: float, seed: int) -> tuple[float, float]:
    mean, variance = posterior_moments(model, judged, beta=beta)
    return rate_and_distortion(model, judged, mean, variance, beta=beta, seed=seed)
