"""The demonstration: a typical analysis of new counts, from filtering genes to plotting clusters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..common.keys import Keys
from ..training.fit import fit

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

SEED = 0
LEAST_CELLS = 3  # cells in which a gene must be detected
N_GENES = 2000
LABELS = "cell_type"
CLUSTERS = "leiden"
RESOLUTION = 0.5  # coarse clusters; the default of 1 splits blood cell types into states
UNLABELLED = "unlabelled"
COLOURS = (0, 2, 4, 6, 8, 10, 12, 16, 18, 1, 3, 5, 7, 9, 11, 13, 17, 19)  # of tab20, without its greys


def analyse(adata: AnnData, *, verbose: bool = True) -> tuple[AnnData, dict[str, str]]:
    """Selects genes, fits a model, and computes clusters and a UMAP.

    Parameters
    ----------
    adata
        Raw counts in `X`, published labels in ``obs["cell_type"]``.
    verbose
        Whether to show the progress of the fit.

    Returns
    -------
    tuple
        The data with genes detected in at least 3 cells, with results in ``var["highly_variable"]``, the slots of
        `scvae.fit`, ``obs["leiden"]`` and ``obsm["X_umap"]``; and a row of summary figures as text.
    """
    import scanpy as sc
    from sklearn.metrics import adjusted_rand_score

    adata = adata.copy()
    sc.pp.filter_genes(adata, min_cells=LEAST_CELLS)
    normalised = adata.copy()
    sc.pp.normalize_total(normalised, target_sum=1e4)  # as in scanpy's tutorial on the bundled cells
    sc.pp.log1p(normalised)
    sc.pp.highly_variable_genes(normalised, n_top_genes=min(N_GENES, adata.n_vars))
    adata.var["highly_variable"] = normalised.var["highly_variable"]
    started = time.perf_counter()
    model = fit(adata, rng=SEED, verbose=verbose)
    seconds = time.perf_counter() - started
    sc.pp.neighbors(adata, use_rep=Keys().mean, random_state=SEED)
    sc.tl.leiden(adata, resolution=RESOLUTION, key_added=CLUSTERS, flavor="igraph", n_iterations=2, random_state=SEED)
    sc.tl.umap(adata, random_state=SEED)

    labelled = (adata.obs[LABELS] != UNLABELLED).to_numpy()
    score = adjusted_rand_score(adata.obs[LABELS][labelled], adata.obs[CLUSTERS][labelled])
    row = {
        "cells": f"{adata.n_obs:,}",
        "genes": f"{len(model.genes):,}",
        "seconds": f"{seconds:.1f}",
        "held-out ELBO": f"{model.outcome.held_out_elbo:.1f}",
        "active dimensions": f"{model.outcome.active_dimensions} of {model.n_latent}",
        "ARI": f"{score:.3f}",
    }
    return adata, row


def draw(adata: AnnData, path: Path) -> None:
    """Draws the clusters next to the published labels, on the UMAP of the latent space.

    Parameters
    ----------
    adata
        Cells as returned by `analyse`.
    path
        PNG file to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _scatter(left, adata, CLUSTERS, "Leiden clusters of the latent space", columns=5)
    _scatter(right, adata, LABELS, "Published cell types", columns=3)
    figure.savefig(path, dpi=150, format="png")


def _scatter(axes: Axes, adata: AnnData, column: str, title: str, *, columns: int) -> None:
    from matplotlib import colormaps

    points: Any = adata.obsm["X_umap"]
    groups = adata.obs[column].astype("category")
    names = [name for name in groups.cat.categories if name != UNLABELLED]
    for index, name in enumerate(names):
        colour = colormaps["tab20"](COLOURS[index % len(COLOURS)])
        _dots(axes, points[(groups == name).to_numpy()], colour, str(name))
    if UNLABELLED in groups.cat.categories:
        _dots(axes, points[(groups == UNLABELLED).to_numpy()], "lightgrey", UNLABELLED)
    axes.set_title(title)
    axes.set_xlabel("UMAP 1")
    axes.set_ylabel("UMAP 2")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, -0.06), ncols=columns, frameon=False, markerscale=4, handletextpad=0.2
    )


def _dots(axes: Axes, points: Any, colour: Any, label: str) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=5, color=colour, linewidths=0, label=label, rasterized=True)
