"""`rate_distortion`: the rate-distortion curve, the structure of the embedding along it, and the recommended β."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from ..common.checks import missing_key
from ..common.keys import Keys
from ._contrast import visible
from ._figure import (
    COLOURS,
    INK,
    MARKED,
    MARKERS,
    given_axes,
    hand_over,
    new_axes,
    stored,
    title,
    whole_figure,
)
from ._layout import keep_apart, lay_out, legend, line_look

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.text import Annotation

NAMES = {
    "leiden_stability": "stability of Leiden clusters",
    "graph_agreement": "neighbours shared by two draws",
    "modularity": "modularity",
    "trustworthiness": "trustworthiness",
    "nmi": "NMI with labels",
    "ari": "ARI with labels",
    "silhouette": "silhouette of labels",
}
MOST = 0.5  # of the width of the axes: a label beside its point; a wider one is left out
WITHOUT_LABELS = ("leiden_stability", "graph_agreement", "modularity", "trustworthiness")
WITH_LABELS = ("leiden_stability", "graph_agreement", "nmi", "ari")


def rate_distortion(
    adata: AnnData,
    *,
    key_added: str = "scvae",
    scores: Sequence[str] | None = None,
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, Axes] | None:
    """Draws the results of `scvae.tune_beta`: distortion against rate, and the structure of the embedding against β.

    For an optimal model the slope of the curve at β is -β: one more nat of rate reduces the distortion by β nats
    (Alemi et al. 2018, "Fixing a broken ELBO", section 3).

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["beta_path"]``, as written by `scvae.tune_beta`.
    key_added
        The `key_added` passed to `scvae.tune_beta`.
    scores
        Columns of the table to draw against β; None for ``leiden_stability``, ``graph_agreement``, ``modularity`` and
        ``trustworthiness`` (if labels were given, ``nmi`` and ``ari`` replace the last two).
    ax
        Two axes to draw into. If labels have too little room there, the figure gets a tight layout and their letters
        become smaller. None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        The two axes; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If the table, or a column of `scores` in it, is missing.
    ValueError
        If `ax` does not have two axes.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> path = scvae.tune_beta(adata, betas=[0.3, 1, 3], n_latent=5, rng=0, verbose=False)
    >>> curve, scores = scvae.pl.rate_distortion(adata, show=False)
    >>> curve.figure is scores.figure
    True
    """
    keys = Keys(key_added)
    found = stored(adata, keys, keys.beta_path, "scvae.tune_beta(adata)")
    table = pd.DataFrame(found).sort_values("beta", ignore_index=True)
    names = _chosen(table, scores)
    left, right = new_axes(2, 2, width=9.5, height=4) if ax is None else given_axes(ax, 2)
    _draw_curve(left, table)
    _draw_scores(right, table, names)
    lay_out((left, right), partial(_explain_above, right))
    _write_along(left, table)
    return hand_over((left, right), left, drawn_into=ax, show=show, save=save)


def _chosen(table: pd.DataFrame, scores: Sequence[str] | None) -> list[str]:
    if scores is None:
        return list(WITH_LABELS if "ari" in table else WITHOUT_LABELS)
    names = [scores] if isinstance(scores, str) else list(scores)
    for name in names:
        if name not in table:
            raise missing_key("the table of tune_beta", name, [n for n in table if n not in ("beta", "recommended")])
    return names


def _draw_curve(axes: Axes, table: pd.DataFrame) -> None:
    """Draws distortion against rate, with a ring around the recommended β."""
    rate, distortion = table["rate"].to_numpy(), table["distortion"].to_numpy()
    chosen = int(table["recommended"].to_numpy().argmax())
    ink, marked = visible(INK, axes), visible(MARKED, axes)
    axes.plot(rate, distortion, color=ink, marker="o", markersize=4, linewidth=1.2)
    axes.plot(rate[chosen], distortion[chosen], "o", markersize=11, color=marked, fillstyle="none", markeredgewidth=2)
    axes.set_xlabel("rate R (nats per cell)")
    axes.set_ylabel("distortion D (nats per cell)")
    title(axes, "β along the rate-distortion curve")
    axes.margins(0.1)


def _write_along(axes: Axes, table: pd.DataFrame) -> None:
    """Writes β above and to the right of the points of the curve; leaves out labels that would overlap."""
    beta, rate, distortion = (table[name].to_numpy() for name in ("beta", "rate", "distortion"))
    chosen = int(table["recommended"].to_numpy().argmax())
    texts = [_label(axes, (rate[i], distortion[i]), value, strong=i == chosen) for i, value in enumerate(beta)]
    frame, left = axes.get_window_extent(), axes.get_xlim()[0]
    # set the upper limit so that every label ends a pixel within the frame; its share of the frame's width is fixed
    points = axes.transData.transform(np.column_stack([rate, distortion]))[:, 0]
    share = np.array([text.get_window_extent().x1 + 1 for text in texts]) - points
    share = np.minimum(share / frame.width, MOST)
    axes.set_xlim(left, ((rate - left * share) / (1 - share)).max())
    whole_figure(axes).draw_without_rendering()  # the limits have changed, and the ticks with them
    ends = (0, len(beta) - 1)
    order = sorted(range(len(beta)), key=lambda i: (i != chosen, i not in ends, abs(np.log(beta[i]))))
    keep_apart(axes, [texts[i] for i in order])


def _label(axes: Axes, point: tuple[float, float], beta: float, *, strong: bool) -> Annotation:
    label = axes.annotate(
        f"β = {beta:.3g}" if strong else f"{beta:.3g}",
        point,
        xytext=(9, 5) if strong else (6, 5),  # beside the ring, or the dot
        textcoords="offset points",
        fontsize="medium" if strong else "small",
        fontweight="bold" if strong else "normal",
        color=visible(MARKED if strong else INK, axes),
    )
    label.set_in_layout(False)
    return label


def _draw_scores(axes: Axes, table: pd.DataFrame, names: Sequence[str]) -> None:
    """Draws scores against β on a log axis, and the recommended β."""
    beta = table["beta"].to_numpy()
    chosen = beta[int(table["recommended"].to_numpy().argmax())]
    label = f"recommended: β = {chosen:.3g}"
    axes.axvline(chosen, color=visible(MARKED, axes), linestyle="--", linewidth=1.5, label=label)
    for i, name in enumerate(names):
        axes.plot(
            beta,
            table[name].to_numpy(),
            color=visible(COLOURS[i % len(COLOURS)], axes),
            marker=MARKERS[i % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            label=NAMES.get(name, name.replace("_", " ")),
        )
    axes.set_xscale("log")
    ticks = _apart(beta)
    axes.set_xticks(ticks, [f"{b:.3g}" for b in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("β")
    axes.set_ylabel("score" if len(names) != 1 else NAMES.get(names[0], names[0].replace("_", " ")))


def _explain_above(axes: Axes, scale: float) -> None:
    """Adds a legend above the axes, in two columns if these are wide enough."""
    room = (axes.get_window_extent().width, math.inf)
    look = line_look(axes) | {"loc": "lower left", "bbox_to_anchor": (0, 1), "frameon": False, "borderaxespad": 0.3}
    legend(axes, room, (2, 1), scale, **look)


def _apart(beta: np.ndarray, most: int = 6) -> list[float]:
    """A subset of the β, far enough apart on a log scale that tick labels do not overlap."""
    least = (np.log(beta[-1]) - np.log(beta[0])) / most
    kept: list[float] = []
    for value in beta.tolist():
        if not kept or np.log(value / kept[-1]) > 0.999 * least:
            kept.append(value)
    return kept
