"""Helpers of all plots: stored results, axes, colours, names, and showing or saving a figure."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from ..common.checks import MissingKeyError, check_slots, missing_key
from ..common.files import as_path, written_whole
from ..common.keys import Keys

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe & Ito's colour-blind-safe colours; vermilion highlights the recommended β, the epoch kept, or a disease
MARKED = "#D55E00"
INK = "#000000"  # lines and texts: `visible` turns it into the colour of text
COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#56B4E9", INK, "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#B3B3B3"  # unused or missing

Result = TypeVar("Result")


def stored(adata: AnnData, keys: Keys, entry: str, writer: str) -> Any:
    """An entry of the record in `adata.uns`.

    Raises
    ------
    MissingKeyError
        If the record or the entry is missing; the message names the `writer` that creates it.
    """
    check_slots(adata)
    if keys.uns not in adata.uns:
        raise missing_key("adata.uns", keys.uns, list(adata.uns))
    found = adata.uns[keys.uns]
    if entry not in found:
        raise MissingKeyError(f"adata.uns[{keys.uns!r}] has no {entry!r}; {writer} writes it")
    return found[entry]


def given_axes(ax: Axes | Sequence[Axes] | np.ndarray, n: int | None = None) -> list[Axes]:
    """The axes passed by the user as a list.

    Raises
    ------
    ValueError
        If there are not `n`.
    """
    axes: list[Axes] = list(np.asarray(ax, dtype=object).ravel())
    if n is not None and len(axes) != n:
        raise ValueError(f"ax has {len(axes)} axes; pass {n}, or leave ax out")
    return axes


def new_axes(n: int, n_columns: int, *, width: float, height: float) -> list[Axes]:
    """Axes of a new figure, row by row; `width` of the figure and `height` of a row are in inches at 10 pt."""
    from matplotlib import pyplot as plt

    n_columns = min(n, n_columns)
    n_rows = -(-n // n_columns)
    size = (width * font_scale(), n_rows * height * font_scale())
    figure, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for empty in axes.ravel()[n:]:
        figure.delaxes(empty)
    return list(axes.ravel()[:n])


def font_scale() -> float:
    """How much larger than at matplotlib's default, 10 pt, a figure is drawn so that the user's letters have room."""
    from matplotlib import rcParams
    from matplotlib.font_manager import FontProperties

    sizes = [rcParams[name] for name in ("font.size", "axes.labelsize", "xtick.labelsize", "ytick.labelsize")]
    return max(1.0, *(FontProperties(size=size).get_size_in_points() / 10 for size in sizes))


def hand_over(
    result: Result, axes: Axes, *, drawn_into: object, show: bool | None, save: str | os.PathLike[str] | None
) -> Result | None:
    """Saves and shows the figure of `axes` as requested; returns the result, or None if it was shown."""
    if save is not None:
        _save(whole_figure(axes), save)
    if show is None:
        scanpy = sys.modules.get("scanpy")  # its setting applies here too; if it is not loaded, the default holds
        show = drawn_into is None and save is None and (scanpy is None or bool(scanpy.settings.autoshow))
    if not show:
        return result
    from matplotlib import pyplot as plt

    plt.show()
    return None


def _save(figure: Figure, save: str | os.PathLike[str]) -> None:
    from matplotlib import rcParams

    if hasattr(save, "write"):
        figure.savefig(save, dpi=150, bbox_inches="tight")
        return
    path = as_path(save)
    with written_whole(path if path.suffix else path.with_suffix(f".{rcParams['savefig.format']}")) as temporary:
        figure.savefig(temporary, dpi=150, bbox_inches="tight")


def whole_figure(axes: Axes | Figure) -> Figure:
    """The figure of `axes`, also if they are in a subfigure; a figure itself."""
    from matplotlib.figure import SubFigure

    figure = axes.figure
    while isinstance(figure, SubFigure):
        figure = figure.figure
    return figure


def title(axes: Axes, text: str) -> None:
    """Sets a title in the common style."""
    axes.set_title(text, loc="left", fontsize="medium")


def shortened(name: str, most: int = 28) -> str:
    """A long name without its middle, since names usually differ at either end; written as it is, not as a formula."""
    if len(name) > most:
        tail = (most - 1) // 3
        name = f"{name[: most - 1 - tail]}…{name[len(name) - tail :]}"
    return name.replace("$", r"\$")
