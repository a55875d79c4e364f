"""`latent`: the embedding in pairs of dimensions, and the KL of each dimension."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..common.keys import Keys
from ._color import (
    Colouring,
    Labels,
    Numbers,
    colouring,
    draw_points,
    legend_below,
    legend_beside,
    visible_labels,
    write_marks,
)
from ._dimensions import ACTIVE_ABOVE, by_kl, check_dimensions, draw_kl, kl_per_dimension, moments
from ._figure import given_axes, hand_over, new_axes, shortened
from ._layout import Explain, lay_out

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

MOST_PAIRS = 3


def latent(
    adata: AnnData,
    *,
    color: str | None = None,
    key_added: str = "scvae",
    dimensions: Sequence[int] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, ...] | None:
    """Draws the KL of each latent dimension, and the embedding in pairs of dimensions.

    The KL of a dimension of the embedding, from its posterior to its prior and averaged over the cells in `adata`,
    bounds the information that it carries about a cell, in nats. Dimensions at 0.05 nats or below are not in use and
    drawn in grey. These are the dimensions as written, which `metric` in `scvae.fit` rotates; `kl_per_dimension` in
    ``uns["<key_added>"]`` and in `scvae.tl.diagnose` is that of the network's own.

    Parameters
    ----------
    adata
        Cells with ``obsm["X_<key_added>"]`` and ``obsm["X_<key_added>_var"]``, as `scvae.fit` and `scvae.tl.embed`
        write them.
    color
        Column of `adata.obs` or gene to colour cells by. A gene is looked up in `adata.raw` if it has the gene, else in
        `adata.X`. Labels take the colours in ``adata.uns["<color>_colors"]``; without these, up to 8 labels get
        colour-blind-safe colours, and more than 8 are also written among the cells: names of up to 4 letters as they
        are, and for longer names letters that the legend explains. Numbers take the style's colour map,
        ``rcParams["image.cmap"]``. Missing values are grey. None gives all cells the same colour.
    key_added
        The `key_added` passed to `scvae.fit`.
    dimensions
        Dimensions to draw in pairs, counted from 0. If their number is odd, the last is drawn against the first; a
        single one is drawn against its posterior standard deviation. None takes up to six in use, largest KL first.
    ax
        Axes to draw into: the first for the KL, one more for each pair. If labels have too little room there, the
        figure gets a tight layout and their letters become smaller. None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        The axes of the KL, then of each pair; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If the embedding, its variances or `color` are missing.
    ValueError
        If a dimension does not exist, `ax` does not have one axes for the KL and one for each pair, or embedding and
        variances differ in shape.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> axes = scvae.pl.latent(adata, color="cell_type", dimensions=[0, 1], show=False)
    >>> len(axes)  # the KL of each dimension, and one pair
    2
    """
    keys = Keys(key_added)
    mean, variance = moments(adata, keys)
    kl = kl_per_dimension(adata, keys, mean, variance)
    by = colouring(adata, color)
    pairs = _pairs(kl, dimensions)
    if ax is None:
        axes = new_axes(1 + len(pairs), 2, width=9.5, height=3.9)
    else:
        axes = given_axes(ax, None if dimensions is None else 1 + len(pairs))
        if not 2 <= len(axes) <= 1 + len(pairs):
            raise ValueError(f"ax has {len(axes)} axes; pass one for the KL and one for each of the {len(pairs)} pairs")
    bars, *panels = axes
    draw_kl(bars, kl)
    if isinstance(by, Labels):
        by = visible_labels(by, panels[0])
    for panel, pair in zip(panels, pairs, strict=False):
        x, y = _points(mean, variance, pair)
        draw_points(panel, x, y, by)
        panel.set_xlabel(_name(pair[0], kl))
        panel.set_ylabel(_name(pair[1], kl) if pair[0] != pair[1] else "posterior standard deviation")
    explain = _explanation(panels, by, beside=ax is not None)
    lay_out(axes, explain)
    if isinstance(by, Labels) and by.marked:
        for panel, pair in zip(panels, pairs, strict=False):
            write_marks(panel, *_points(mean, variance, pair), by)
    return hand_over(tuple(axes), bars, drawn_into=ax, show=show, save=save)


def _pairs(kl: Float[np.ndarray, " latent"], dimensions: Sequence[int] | None) -> list[tuple[int, int]]:
    """Pairs of dimensions to draw against each other."""
    if dimensions is None:
        order = by_kl(kl)
        chosen = order[: min(2 * MOST_PAIRS, max(2, int((kl > ACTIVE_ABOVE).sum())))]
    else:
        chosen = check_dimensions(dimensions, len(kl))
    if len(chosen) % 2:
        chosen.append(chosen[0])
    return list(zip(chosen[::2], chosen[1::2], strict=True))


def _points(
    mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"], pair: tuple[int, int]
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    first, second = pair
    return mean[:, first], mean[:, second] if first != second else np.sqrt(variance[:, first])


def _name(dimension: int, kl: Float[np.ndarray, " latent"]) -> str:
    return f"dimension {dimension} ({kl[dimension]:.2f} nats)"


def _explanation(panels: Sequence[Axes], by: Colouring, *, beside: bool) -> Explain | None:
    """Adds a colour bar, or a legend below the panels; returns what adds a legend beside them."""
    last = panels[-1]
    if isinstance(by, Labels) and beside:
        return partial(legend_beside, last, by)
    if isinstance(by, Labels):
        legend_below(last, by)
    elif isinstance(by, Numbers) and np.isfinite(by.values).any():
        coloured = last.collections[-1]
        last.figure.colorbar(coloured, ax=last if beside else list(panels), label=shortened(by.name), aspect=30)
    return None
