"""What all plots share: colours, axes to draw into, labels that do not touch, and what becomes of the figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..common.checks import MissingKeyError, check_adata, missing_key
from ..common.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Text
    from matplotlib.transforms import Bbox

# Okabe & Ito's colours, told apart by all kinds of colour vision; vermilion is for what to look at: the β recommended,
# the epoch kept, a disease
MARKED = "#D55E00"
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#000000", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#B3B3B3"  # what is unused, or missing

Result = TypeVar("Result")


def stored(adata: AnnData, keys: Keys, entry: str, writer: str) -> Any:
    """An entry of the record in `adata.uns`.

    Raises
    ------
    MissingKeyError
        If there is no record, or no such entry; the message names its `writer`.
    """
    check_adata(adata)
    if keys.uns not in adata.uns:
        raise missing_key("adata.uns", keys.uns, list(adata.uns))
    found = adata.uns[keys.uns]
    if entry not in found:
        raise MissingKeyError(f"adata.uns[{keys.uns!r}] has no {entry!r}; {writer} writes it")
    return found[entry]


def given_axes(ax: Axes | Sequence[Axes] | np.ndarray, n: int | None = None) -> list[Axes]:
    """The axes of the user as a list.

    Raises
    ------
    ValueError
        If there are not `n`.
    """
    axes: list[Axes] = list(np.asarray(ax, dtype=object).ravel())
    if n is not None and len(axes) != n:
        raise ValueError(f"ax holds {len(axes)} axes; pass {n}, or none")
    return axes


def new_axes(n: int, n_columns: int, *, width: float, height: float) -> list[Axes]:
    """Axes of a new figure, row by row; `width` is of the figure, `height` of a row, in inches."""
    from matplotlib import pyplot as plt

    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    figure, axes = plt.subplots(
        n_rows, n_columns, figsize=(width, n_rows * height), layout="constrained", squeeze=False
    )
    for empty in axes.ravel()[n:]:
        figure.delaxes(empty)
    return list(axes.ravel()[:n])


def hand_over(
    result: Result, axes: Axes, *, drawn_into: object, show: bool | None, save: str | os.PathLike[str] | None
) -> Result | None:
    """Saves and shows the figure of `axes` as asked; the result, or None if it was shown."""
    if save is not None:
        whole_figure(axes).savefig(save, dpi=150, bbox_inches="tight")
    if show is None:
        scanpy = sys.modules.get("scanpy")  # its setting holds here, too; not loaded, nobody has changed it
        show = drawn_into is None and save is None and (scanpy is None or bool(scanpy.settings.autoshow))
    if not show:
        return result
    from matplotlib import pyplot as plt

    plt.show()
    return None


def whole_figure(axes: Axes) -> Figure:
    """The figure itself where `axes` lie in a part of it."""
    from matplotlib.figure import SubFigure

    figure = axes.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def title(axes: Axes, text: str) -> None:
    """A title in the manner of the house."""
    axes.set_title(text, loc="left", fontsize="medium")


def keep_apart(axes: Axes, texts: Sequence[Text]) -> None:
    """Removes each text that would touch an earlier one or leave the axes; the most important come first.

    Comes last: the extent of a text is known once everything around its axes is there.
    """
    whole_figure(axes).draw_without_rendering()
    frame = axes.get_window_extent()
    kept: list[Bbox] = []
    for text in texts:
        extent = text.get_window_extent()
        inside = frame.x0 <= extent.x0 and extent.x1 <= frame.x1 and frame.y0 <= extent.y0 and extent.y1 <= frame.y1
        if not inside or any(extent.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(extent)


def shortened(name: str, most: int = 28) -> str:
    """A long name without its middle: what tells names apart stands at either end."""
    if len(name) <= most:
        return name
    tail = (most - 1) // 3
    return f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"
