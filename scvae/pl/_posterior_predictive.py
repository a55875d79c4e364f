"""`posterior_predictive`: compares cells drawn from the model with the measured cells."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..common.checks import listing
from ..common.keys import Keys
from ._contrast import visible
from ._figure import COLOURS, INK, given_axes, hand_over, new_axes, shortened, stored, title
from ._layout import keep_apart, lay_out

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

OPACITY = 0.5  # of the points, one for each gene
NAMED = 5  # genes farthest from the diagonal that are labelled
INTERVAL = 0.9  # probability of the intervals that `coverage` refers to


def posterior_predictive(
    adata: AnnData,
    *,
    view: str | None = None,
    key_added: str = "scvae",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, Axes, Axes] | None:
    """Compares cells with draws x' ~ p(x | z), z ~ q(z | x) of the same cells, from `scvae.tl.diagnose`.

    Left: the variance of each gene over cells, drawn against observed. Middle: the share of cells in which it is 0 (for
    real values, its mean). Draws and cells agree on the dashed line; the genes farthest from it are labelled. Right:
    the rank of each value among 19 draws of it. All 20 ranks are equally likely if the model is calibrated (Czado,
    Gneiting & Held 2009); a ∪ shape means that draws vary too little, a ∩ shape too much, and a slope that they are
    too low or too high.

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["diagnosis"]``, as written by `scvae.tl.diagnose`.
    view
        For a model of several measurements, the one to draw, over the cells that have all; None for the first.
    key_added
        The `key_added` passed to `scvae.tl.diagnose`.
    ax
        Three axes to draw into. If labels have too little room there, the figure gets a tight layout and their letters
        become smaller. None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        The three axes; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If there is no diagnosis.
    ValueError
        If `ax` does not have three axes, or the diagnosis has no such `view`.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> diagnosis = scvae.tl.diagnose(adata, model)
    >>> variances, zeros, ranks = scvae.pl.posterior_predictive(adata, show=False)
    >>> variances.figure is ranks.figure
    True
    """
    keys = Keys(key_added)
    found = stored(adata, keys, keys.diagnosis, "scvae.tl.diagnose(adata, model)")
    if view is not None:
        found = _of_view(found, view)
    left, middle, right = new_axes(3, 3, width=11.0, height=3.7) if ax is None else given_axes(ax, 3)
    names = draw_variances(left, found)
    if found["likelihood"] == "gaussian":
        more_names = _draw_difference(middle, found, "gene_mean", "mean over cells", "mean")
    else:
        more_names = _draw_difference(middle, found, "gene_zero_fraction", "share of cells with 0", "zeros")
    draw_ranks(right, found)
    lay_out((left, middle, right))
    keep_apart(left, names)
    keep_apart(middle, more_names)
    return hand_over((left, middle, right), left, drawn_into=ax, show=show, save=save)


def _of_view(found: Mapping[str, Any], view: str) -> Mapping[str, Any]:
    views = found.get("views", {})
    if "ranks" not in views.get(view, {}):
        raise ValueError(
            f"the diagnosis has no draws of the view {view!r}; it has those of {listing(views)}"
            if views
            else f"view is {view!r}, but the model of this diagnosis has one measurement; leave it out"
        )
    return {**views[view], "features": view}


def draw_variances(axes: Axes, found: Mapping[str, Any]) -> list[Annotation]:
    """Draws the drawn against the observed variance of each gene, on log axes if they span a factor of ten.

    Returns the names of the genes farthest from the diagonal, for `keep_apart`.
    """
    observed, drawn = _both(found, "gene_variance")
    varying = (observed > 0) & (drawn > 0)
    observed, drawn, genes = observed[varying], drawn[varying], np.asarray(found["genes"])[varying]
    both = np.concatenate([observed, drawn])
    if len(both) and both.max() >= 10 * both.min():  # tick labels of a log axis overlap within one power of ten
        axes.set_xscale("log")
        axes.set_yscale("log")
    # genes of low variance are not labelled: a single count changes their ratio several-fold
    distance = (
        np.where(observed >= np.median(observed), np.abs(np.log(drawn / observed)), 0) if len(observed) else observed
    )
    axes.set_xlabel("variance over cells, observed")
    axes.set_ylabel("drawn")
    ratio = f" (median ratio {np.median(observed / drawn):.2f})" if len(observed) else ""
    title(axes, f"{_features(found)}: variance{ratio}")
    return _draw_genes(axes, observed, drawn, distance, genes)


def draw_ranks(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draws the share of values at each rank among their draws."""
    ranks = np.asarray(found["ranks"], dtype=np.float64)
    colour, between = visible(COLOURS[0], axes), axes.get_facecolor()
    axes.bar(np.arange(len(ranks)), ranks, width=1.0, color=colour, edgecolor=between, linewidth=0.5)
    axes.axhline(1 / len(ranks), color=visible(INK, axes), linewidth=1.0, linestyle="--")
    axes.set_xlim(-0.5, len(ranks) - 0.5)
    axes.set_ylim(0.0, 1.15 * max(float(ranks.max()), 2 / len(ranks)))
    axes.set_xlabel(f"rank among {len(ranks) - 1} draws")
    axes.set_ylabel("share of values")
    title(axes, f"{found['coverage']:.0%} in {INTERVAL:.0%} intervals")


def _draw_difference(axes: Axes, found: Mapping[str, Any], name: str, in_words: str, short: str) -> list[Annotation]:
    """Draws the drawn against the observed values of each gene, on linear axes."""
    observed, drawn = _both(found, name)
    axes.set_xlabel(f"{in_words}, observed")
    axes.set_ylabel("drawn")
    title(axes, f"{_features(found)}: {short} (off by {np.abs(observed - drawn).mean():.2g})")
    return _draw_genes(axes, observed, drawn, np.abs(drawn - observed), np.asarray(found["genes"]))


def _features(found: Mapping[str, Any]) -> str:
    return str(found.get("features", "genes"))


def _both(found: Mapping[str, Any], name: str) -> tuple[Float[np.ndarray, " genes"], Float[np.ndarray, " genes"]]:
    return np.asarray(found[name], np.float64), np.asarray(found[f"{name}_drawn"], np.float64)


def _draw_genes(
    axes: Axes,
    observed: Float[np.ndarray, " genes"],
    drawn: Float[np.ndarray, " genes"],
    distance: Float[np.ndarray, " genes"],
    genes: np.ndarray,
) -> list[Annotation]:
    """Draws a point per gene, the line on which draws and cells agree, and the names of the genes farthest from it."""
    colour = visible(COLOURS[0], axes, OPACITY)
    axes.scatter(observed, drawn, s=7, color=colour, alpha=OPACITY, linewidths=0, rasterized=True)
    if len(observed) == 0:
        return []
    ends = [min(observed.min(), drawn.min()), max(observed.max(), drawn.max())]
    axes.plot(ends, ends, color=visible(INK, axes), linewidth=1.0, linestyle="--")
    axes.autoscale_view()  # labels are placed within the final limits
    return [_name(axes, observed[i], drawn[i], str(genes[i])) for i in np.argsort(-distance)[:NAMED]]


def _name(axes: Axes, observed: float, drawn: float, gene: str) -> Annotation:
    """Writes the name of a gene on the side of its point away from other points, if there is room."""
    above = drawn > observed
    along = axes.transAxes.inverted().transform(axes.transData.transform((observed, drawn)))[0]
    to_the_left = along > 0.3 if above else along > 0.75
    name = axes.annotate(
        shortened(gene, 18),
        (observed, drawn),
        xytext=(-4 if to_the_left else 4, 2 if above else -2),
        textcoords="offset points",
        ha="right" if to_the_left else "left",
        va="bottom" if above else "top",
        fontsize="small",
        fontstyle="italic",
        color=visible(INK, axes),
    )
    name.set_in_layout(False)  # those beyond the axes are taken away again
    return name
