"""Colours of points, by a column of `obs` or a gene, and their legends."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from ..common.checks import check_obs_column, is_mudata, missing_key
from ._contrast import visible, visible_shades
from ._figure import GREY, INK, shortened, whole_figure
from ._layout import keep_apart, legend

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from matplotlib.legend import Legend
    from matplotlib.lines import Line2D
    from matplotlib.text import Text

# Okabe & Ito's colour-blind-safe colours; with more categories, each is also written on the panels
SAFE = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", INK, "#F0E442")
PLAIN = "#4C72A0"  # if no colour is requested
SHORT = 4  # letters of a name that is written on the panels as it is
LISTED = 60  # most categories in a legend
MOST_COLUMNS, MOST_COLUMNS_BESIDE = 8, 3  # of legends below and beside axes
WIDEST = 0.4  # of the figure's width: a legend beside axes


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """A category per cell.

    Parameters
    ----------
    name
        Name of the column.
    codes
        Code of each cell's category; -1 if it is missing.
    categories
        The categories that occur.
    colours
        One per category.
    """

    name: str
    codes: Int[np.ndarray, " cells"]
    categories: tuple[str, ...]
    colours: tuple[str, ...]

    @property
    def marked(self) -> bool:
        """Whether there are too many categories to distinguish by colour."""
        return len(self.categories) > len(SAFE)

    @property
    def marks(self) -> list[str]:
        """What stands for each category on a panel: its name if it is short, else letters that name no other."""
        short = {name.casefold() for name in self.categories if len(name) <= SHORT}
        free = (letters for letters in _letters() if letters.casefold() not in short)
        return [name if len(name) <= SHORT else next(free) for name in self.categories]


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """A number per cell, NaN if it is missing."""

    name: str
    values: Float[np.ndarray, " cells"]


Colouring: TypeAlias = Labels | Numbers | None


def _letters() -> Iterator[str]:
    """A to Z, AA to ZZ, and so on."""
    for n in itertools.count(1):
        yield from map("".join, itertools.product(ascii_uppercase, repeat=n))


def colouring(adata: AnnData, color: str | None) -> Colouring:
    """Values and colours of the cells.

    Parameters
    ----------
    adata
        Cells with the values in `obs`, `raw` or `X`.
    color
        A column of `adata.obs`, or else a gene, looked up in `adata.raw` if it has the gene and in `adata.X`
        otherwise; of a MuData, also a column or feature of the first modality that has it. Colours in
        ``adata.uns["<color>_colors"]`` are used.

    Raises
    ------
    MissingKeyError
        If `color` is neither a column nor a gene.
    TypeError
        If `color` is not a string.
    """
    if color is None:
        return None
    if not isinstance(color, str):
        raise TypeError(f"color is {color!r}; pass the name of one column of adata.obs, or of one gene")
    tables: list[AnnData] = list(adata.mod.values()) if is_mudata(adata) else [adata]
    with_column = next((table for table in (adata, *tables) if color in table.obs.columns), None)
    if with_column is not None:
        column = check_obs_column(with_column, color)
        column = column if with_column is adata else column.reindex(adata.obs_names)
        numeric = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
        return _numbers(color, column.to_numpy(np.float64, na_value=np.nan)) if numeric else _labels(adata, column)
    for table in tables:
        for source in (table.raw, table):
            if source is not None and color in source.var_names:
                values = _expression(source, color)
                if table is not adata:
                    values = pd.Series(values, table.obs_names).reindex(adata.obs_names).to_numpy()
                return _numbers(color, values)
    raise missing_key("adata.obs (and the genes)", color, [*adata.obs.columns, *adata.var_names])


def _numbers(name: str, values: Float[np.ndarray, " cells"]) -> Numbers:
    return Numbers(name, np.where(np.isfinite(values), values, np.nan))


def _expression(source: Any, gene: str) -> Float[np.ndarray, " cells"]:
    found = source[:, gene].X
    dense = np.asarray(found.toarray() if hasattr(found, "toarray") else found, dtype=np.float64)
    if dense.ndim == 2 and dense.shape[1] > 1:
        raise ValueError(f"{dense.shape[1]} genes are named {gene!r}; make them unique: adata.var_names_make_unique()")
    return dense.reshape(-1)


def _labels(adata: AnnData, column: pd.Series) -> Labels:
    """Categories in their order (other columns in natural sort order), with the colours that scanpy would use."""
    from natsort import natsorted

    if not isinstance(column.dtype, pd.CategoricalDtype):
        texts = column.astype(str).where(column.notna())
        column = pd.Series(pd.Categorical(texts, categories=natsorted(texts.dropna().unique())), name=column.name)
    codes = column.cat.codes.to_numpy().astype(np.int64)
    used = np.unique(codes[codes >= 0])
    names = [str(column.cat.categories[i]) for i in used]
    colours = _colours_in_uns(adata, str(column.name), len(column.cat.categories))
    chosen = palette(len(used)) if colours is None else [colours[i] for i in used]
    place = np.full(len(column.cat.categories) + 1, -1)  # the last entry is for the code -1
    place[used] = np.arange(len(used))
    return Labels(str(column.name), place[codes], tuple(names), tuple(chosen))


def _colours_in_uns(adata: AnnData, name: str, n: int) -> list[str] | None:
    from matplotlib.colors import is_color_like, to_hex

    found = adata.uns.get(f"{name}_colors")
    if found is None or isinstance(found, str) or len(found) < n or not all(is_color_like(c) for c in found):
        return None
    return [to_hex(colour, keep_alpha=True) for colour in found]


def palette(n: int) -> list[str]:
    """Colours for `n` categories: colour-blind-safe up to 8, scanpy's beyond."""
    if n <= len(SAFE):
        return list(SAFE[:n])
    from scanpy.plotting import palettes

    longest = palettes.default_102
    colours = next((p for p in (palettes.default_20, palettes.default_28, longest) if len(p) >= n), longest)
    return [colours[i % len(colours)] for i in range(n)]


def visible_labels(by: Labels, axes: Axes) -> Labels:
    """The labels in colours that are visible on the axes."""
    return replace(by, colours=tuple(visible(colour, axes) for colour in by.colours))


def draw_points(
    axes: Axes, x: Float[np.ndarray, " cells"], y: Float[np.ndarray, " cells"], by: Colouring
) -> Line2D | Any:
    """Draws one point per cell: cells without a value at the bottom, high numbers on top."""
    size = float(np.clip(30_000 / max(len(x), 1), 1.0, 30.0))
    common: dict[str, Any] = {"s": size, "linewidths": 0, "rasterized": True}
    if by is None:
        return axes.scatter(x, y, c=visible(PLAIN, axes), **common)
    missing = np.isnan(by.values) if isinstance(by, Numbers) else by.codes < 0
    if missing.any():
        axes.scatter(x[missing], y[missing], c=visible(GREY, axes), **common)
    there = np.flatnonzero(~missing)
    if isinstance(by, Numbers):
        there = there[np.argsort(by.values[there], kind="stable")]
        return axes.scatter(x[there], y[there], c=by.values[there], cmap=visible_shades(axes), **common)
    return axes.scatter(x[there], y[there], c=np.array(by.colours, dtype=object)[by.codes[there]].tolist(), **common)


def write_marks(axes: Axes, x: Float[np.ndarray, " cells"], y: Float[np.ndarray, " cells"], by: Labels) -> None:
    """Writes the mark of each category at the median of its cells, larger categories first, if there is room.

    Letters that the legend does not explain are left out.
    """
    from matplotlib import patheffects

    texts: list[Text] = []
    marks = by.marks
    outline = patheffects.withStroke(linewidth=2.5, foreground=axes.get_facecolor())
    for code in np.argsort(-np.bincount(by.codes[by.codes >= 0], minlength=len(by.categories)), kind="stable"):
        if code >= LISTED and marks[code] != by.categories[code]:
            continue
        cells = by.codes == code
        text = axes.text(
            float(np.median(x[cells])),
            float(np.median(y[cells])),
            shortened(marks[code]),
            ha="center",
            va="center",
            fontsize="small",
            fontweight="bold",
            color=visible(INK, axes),
            path_effects=[outline],
        )
        texts.append(text)
    keep_apart(axes, texts)


def entries(axes: Axes, by: Labels) -> tuple[list[Line2D], list[str]]:
    """Handles and texts for a legend."""
    from matplotlib import rcParams
    from matplotlib.lines import Line2D

    def dot(colour: str) -> Line2D:
        return Line2D([], [], linestyle="none", marker="o", markersize=0.6 * rcParams["font.size"], color=colour)

    shown = list(zip(by.colours, by.categories, by.marks, strict=True))[:LISTED]
    handles = [dot(colour) for colour, _, _ in shown]
    texts = [f"{mark}: {shortened(name)}" if by.marked and mark != name else shortened(name) for _, name, mark in shown]
    if len(by.categories) > LISTED:
        handles.append(Line2D([], [], linestyle="none"))
        texts.append(f"and {len(by.categories) - LISTED} more")
    if (by.codes < 0).any():
        handles.append(dot(visible(GREY, axes)))
        texts.append("missing")
    return handles, texts


def legend_below(axes: Axes, by: Labels) -> Legend:
    """Adds a legend below all axes, in as many columns as fit; the figure grows by the legend's height."""
    figure = whole_figure(axes)
    handles, texts = entries(axes, by)
    width, height = figure.get_size_inches()
    for n_columns in range(min(len(texts), MOST_COLUMNS), 0, -1):
        legend = figure.legend(
            handles, texts, loc="outside lower left", ncols=n_columns, fontsize="small", handlelength=2.0, **_look(by)
        )
        extent = legend.get_window_extent()
        if extent.width < 0.98 * figure.dpi * width or n_columns == 1:
            break
        legend.remove()
    figure.set_size_inches(width, height + extent.height / figure.dpi)
    return legend


def legend_beside(axes: Axes, by: Labels, scale: float) -> None:
    """Adds a legend to the right of axes that the user passed, no taller than these."""
    room = (WIDEST * whole_figure(axes).bbox.width, axes.get_window_extent().height)
    handles, texts = entries(axes, by)
    look = {"handles": handles, "labels": texts, "loc": "upper left", "bbox_to_anchor": (1.0, 1.0)}
    legend(axes, room, range(1, MOST_COLUMNS_BESIDE + 1), scale, **look, **_look(by))


def _look(by: Labels) -> dict[str, Any]:
    return {"frameon": False, "title": shortened(by.name), "alignment": "left", "handletextpad": 0.2}
