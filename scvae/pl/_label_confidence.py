"""`label_confidence`: how many cells can be named at which error, by level of the tree of labels."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.keys import Keys
from ._contrast import visible
from ._figure import COLOURS, MARKED, given_axes, hand_over, new_axes, stored, title
from ._layout import lay_out, legend_inside

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

HEADROOM, FOOTROOM = 1.7, 0.03  # of the error axis: above the largest error, for the legend, and below 0


def label_confidence(
    adata: AnnData,
    *,
    key_added: str = "scvae",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draws what `scvae.tl.predict_labels` has found on held-out cells: share of cells with a name against wrong names.

    One line for each level of the tree of labels: at its left, only the surest cells have a name; at its right, all
    have. A coarse level should lie below a fine one. The dashed line is `max_error`. Above the axes stand the shares
    of the cells of the call that were named at each level.

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["label_confidence"]``, as written by `scvae.tl.predict_labels`.
    key_added
        The `key_added` passed to `scvae.tl.predict_labels`.
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
        If the record is missing.
    ValueError
        If it has no curve, because no labelled cell was held out of the training.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_types=3, rng=0)
    >>> model = scvae.fit(adata, labels_key="cell_type", rng=0, verbose=False)
    >>> scvae.tl.predict_labels(adata, model, hierarchy="learnt")
    >>> axes = scvae.pl.label_confidence(adata, show=False)
    >>> axes.get_xlabel()
    'cells with a name (%)'
    """
    keys = Keys(key_added)
    found = stored(adata, keys, keys.label_confidence, "scvae.tl.predict_labels(adata, model)")
    if len(found["level"]) == 0:
        raise ValueError(
            f"adata.uns[{key_added!r}][{keys.label_confidence!r}] has no curve, since no labelled cell "
            "was held out of the training; fit with TrainingConfig.validation_fraction above 0"
        )
    axes = (new_axes(1, 1, width=5.5, height=4) if ax is None else given_axes(ax, 1))[0]
    _draw(axes, found)
    lay_out([axes], partial(legend_inside, axes, loc="upper left"))
    return hand_over(axes, axes, drawn_into=ax, show=show, save=save)


def _draw(axes: Axes, found: dict[str, Any]) -> None:
    level, allowed = np.asarray(found["level"]), float(found["max_error"])
    error = 100 * np.asarray(found["error"])
    n_levels = int(level.max())
    for number in range(1, n_levels + 1):
        here = level == number
        name = "labels" if n_levels == 1 else f"level {number}" + (" (coarsest)" if number == 1 else "")
        colour = visible(COLOURS[(number - 1) % len(COLOURS)], axes)
        width = max(1.5, 4.5 - number)  # coarse levels often lie under fine ones
        axes.plot(100 * np.asarray(found["coverage"])[here], error[here], color=colour, label=name, linewidth=width)
    axes.axhline(100 * allowed, color=visible(MARKED, axes), linestyle="--", label=f"allowed: {allowed:.0%}")
    axes.set_xlim(0.0, 100.0)
    top = HEADROOM * max(error.max(), 100 * allowed, 1.0)
    axes.set_ylim(-FOOTROOM * top, top)
    axes.set_xlabel("cells with a name (%)")
    axes.set_ylabel("wrong names among them (%)")
    shares = np.asarray(found["depth"])
    named = ", ".join(f"{share:.0%} at level {number}" for number, share in enumerate(shares[1:], 1) if share > 0)
    held_out = f"{int(found['n_held_out']):,} held-out cells"
    title(axes, f"{held_out}; named: {named or 'none'}; unknown: {shares[0]:.0%}")
