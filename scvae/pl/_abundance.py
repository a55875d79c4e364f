"""`abundance`: where cells of a group are more frequent, on a UMAP or another embedding."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import check_probability, missing_key
from ..common.keys import Keys
from ._contrast import visible, visible_shades
from ._figure import GREY, given_axes, hand_over, new_axes, shortened, stored, title
from ._layout import lay_out

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

SHADES = "RdBu_r"  # two hues that the colour-blind can tell apart, white between them
QUANTILE = 0.99  # of the log odds that get the darkest shade


def abundance(
    adata: AnnData,
    *,
    basis: str = "X_umap",
    max_fdr: float = 0.1,
    key_added: str = "scvae",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draws where cells of a group are more or less frequent than in the reference, on a UMAP.

    Cells whose false discovery rate is at most `max_fdr` have the colour of their log odds, base 2: 1 is twice as
    frequent. All other cells are grey.

    Parameters
    ----------
    adata
        Cells with the slots of `scvae.tl.differential_abundance`, and with coordinates such as ``obsm["X_umap"]``.
    basis
        Entry of `adata.obsm` whose first two columns are drawn.
    max_fdr
        Largest false discovery rate of a cell with a colour.
    key_added
        The `key_added` passed to `scvae.tl.differential_abundance`.
    ax
        Axes to draw into; None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If the slots or the coordinates are missing.
    ValueError
        If the coordinates have fewer than two columns.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> adata.obs["donor"] = [f"donor_{i % 6}" for i in range(200)]
    >>> adata.obs["condition"] = ["treated" if i % 6 < 3 else "control" for i in range(200)]
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.differential_abundance(adata, model, groupby="condition", sample_key="donor")
    >>> axes = scvae.pl.abundance(adata, basis="X_scvae", show=False)
    >>> axes.get_xlabel()
    'scvae 1'
    """
    from matplotlib.colors import TwoSlopeNorm

    keys = Keys(key_added)
    largest = check_probability(max_fdr, "max_fdr")
    found = stored(adata, keys, keys.abundances, "scvae.tl.differential_abundance(adata, model, ...)")
    odds_name, _, fdr_name = keys.abundance
    for name in (odds_name, fdr_name):
        if name not in adata.obs:
            raise missing_key("adata.obs", name, list(adata.obs))
    if basis not in adata.obsm:
        raise missing_key("adata.obsm", basis, list(adata.obsm))
    points = np.asarray(adata.obsm[basis])
    if points.ndim != 2 or points.shape[1] < 2:
        raise ValueError(f"adata.obsm[{basis!r}] has shape {points.shape}; pass a basis with at least two columns")
    odds = adata.obs[odds_name].to_numpy(np.float64) / np.log(2.0)
    called = adata.obs[fdr_name].to_numpy(np.float64) <= largest
    axes = (new_axes(1, 1, width=6, height=4.5) if ax is None else given_axes(ax, 1))[0]
    look: dict[str, Any] = {
        "linewidths": 0,
        "s": float(np.clip(30_000 / max(len(points), 1), 1.0, 30.0)),
        "rasterized": True,
    }
    axes.scatter(points[~called, 0], points[~called, 1], c=visible(GREY, axes), alpha=0.6, **look)
    order = np.flatnonzero(called)[np.argsort(np.abs(odds[called]), kind="stable")]
    reach = max(float(np.quantile(np.abs(odds[called]), QUANTILE)), 1.0) if called.any() else 1.0
    look |= {"cmap": visible_shades(axes, SHADES), "norm": TwoSlopeNorm(0.0, -reach, reach)}
    shown = axes.scatter(points[order, 0], points[order, 1], c=odds[order], **look)
    group, reference = (shortened(str(found[name])) for name in ("group", "reference"))
    axes.figure.colorbar(shown, ax=axes, label=f"log2 odds, {group} over {reference}", aspect=30)
    axes.set_xlabel(f"{basis.removeprefix('X_')} 1")
    axes.set_ylabel(f"{basis.removeprefix('X_')} 2")
    axes.set_xticks([])
    axes.set_yticks([])
    title(axes, f"{called.mean():.0%} of cells at a false discovery rate of {largest:g}")
    lay_out([axes])
    return hand_over(axes, axes, drawn_into=ax, show=show, save=save)
