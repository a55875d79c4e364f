"""Room for titles, labels and legends, whatever the size of the user's letters and axes."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from ._contrast import visible
from ._figure import INK, whole_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.legend import Legend
    from matplotlib.text import Text
    from matplotlib.transforms import BboxBase

SMALL = 0.833  # letters of a legend, in units of the style's
SCALES = (*0.85 ** np.arange(8), 1.0)  # if even the smallest letters have no room, they keep their size
SMALLEST = 0.3  # share that axes have at least of the width and height that they need with their letters
LEAST = 4.0  # points: no text becomes smaller
INSIDE = 0.9  # of the axes are for a legend inside them: the rest is its distance from their edges
TRIES = 4  # smaller labels may bring more ticks: one try may not be enough

Explain: TypeAlias = Callable[[float], object]  # adds a legend with letters of a scale, or smaller ones that fit


def lay_out(axes: Sequence[Axes], explain: Explain | None = None) -> None:
    """Finds room for titles, labels, ticks and a legend; where there is too little, their letters become smaller.

    A figure without a layout engine that needs one gets a tight layout. Call it before `keep_apart`, which needs the
    final frames of the axes.
    """
    from matplotlib.layout_engine import PlaceHolderLayoutEngine

    figure = whole_figure(axes[0])
    is_free = isinstance(figure.get_layout_engine(), PlaceHolderLayoutEngine | None)
    panels = [*axes, *(panel for panel in figure.axes if _is_colour_bar(panel))]
    letters = [letter for panel in panels for letter in _letters(panel)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of layouts: too little room
        for scale in SCALES:
            for resize, size in letters:
                resize(scale * size)
            if explain is not None:
                figure.draw_without_rendering()  # a legend has the room that there is beside, above or in the frame
                explain(scale)
            figure.draw_without_rendering()
            if is_free and (scale < 1 or _crowded(figure, panels)):
                figure.tight_layout()
                figure.draw_without_rendering()
            for panel in panels:
                _fit(panel)
            figure.draw_without_rendering()
            if not _crowded(figure, panels):
                return


def legend_inside(axes: Axes, scale: float, **look: Any) -> None:
    """Adds a legend over the axes, which takes no room from them."""
    frame = axes.get_window_extent()
    room = (INSIDE * frame.width, INSIDE * frame.height)
    legend(axes, room, (1,), scale, **line_look(axes), **look).set_in_layout(False)


def legend(axes: Axes, room: tuple[float, float], columns: Iterable[int], scale: float, **look: Any) -> Legend:
    """Adds a legend with the largest letters, and the first of these numbers of columns, that have room (in pixels)."""
    from matplotlib import rcParams

    for size, n_columns in itertools.product(scale * SMALL * 0.85 ** np.arange(7), columns):
        look |= {"fontsize": size * rcParams["font.size"], "title_fontsize": size / SMALL * rcParams["font.size"]}
        found = axes.legend(ncols=n_columns, markerscale=size / SMALL, handlelength=2.0, **look)
        extent = found.get_window_extent()
        if extent.width <= room[0] and extent.height <= room[1]:
            break
    return found


def line_look(axes: Axes) -> dict[str, Any]:
    """The look of a legend of lines."""
    return {"handletextpad": 0.8, "labelcolor": visible(INK, axes)}


def keep_apart(axes: Axes, texts: Sequence[Text]) -> None:
    """Removes each text that overlaps an earlier one or extends beyond the axes; list the most important first."""
    frame = axes.get_window_extent()
    kept: list[BboxBase] = []
    for text in texts:
        extent = text.get_window_extent()
        if not _contains(frame, extent) or any(extent.overlaps(other) for other in kept):
            text.remove()
        else:
            kept.append(extent)


def _letters(panel: Axes) -> list[tuple[Callable[[float], object], float]]:
    """For each text around the axes, what sets its size, and the size that it has."""
    texts = [*_titles(panel), panel.xaxis.label, panel.yaxis.label]
    found: list[tuple[Callable[[float], object], float]] = [(text.set_fontsize, _size(text)) for text in texts]
    found += [(partial(_set_ticks, panel, "x"), _size(label)) for label in panel.get_xticklabels()[:1]]
    found += [(partial(_set_ticks, panel, "y"), _size(label)) for label in panel.get_yticklabels()[:1]]
    return found


def _set_ticks(panel: Axes, axis: Literal["x", "y"], size: float) -> None:
    panel.tick_params(axis=axis, which="both", labelsize=size)


def _titles(panel: Axes) -> list[Text]:
    from matplotlib.text import Text

    return [child for child in panel.get_children() if isinstance(child, Text) and child not in panel.texts]


def _size(text: Text) -> float:
    return float(text.get_fontsize())


def _is_colour_bar(panel: Axes) -> bool:
    return panel.get_label() == "<colorbar>"


def _crowded(figure: Figure, panels: Sequence[Axes]) -> bool:
    """Whether these axes extend beyond the figure or over others with all that belongs to them, or are small in it."""
    extents = {panel: extent for panel in figure.axes if (extent := panel.get_tightbbox()) is not None}
    drawn = [panel for panel in panels if panel in extents]
    frames = [(figure.bbox, extents[panel]) for panel in drawn]
    inside = [(panel, found) for panel in drawn if (found := panel.get_legend()) and not found.get_in_layout()]
    frames += [(panel.get_window_extent(), found.get_window_extent()) for panel, found in inside]
    pairs = itertools.combinations(extents.items(), 2)
    sizes = ((panel.get_window_extent().size, extents[panel].size) for panel in drawn if not _is_colour_bar(panel))
    return (
        not all(_contains(frame, extent) for frame, extent in frames)
        or any(one.overlaps(other) for (a, one), (b, other) in pairs if a in drawn or b in drawn)
        or any(np.min(np.divide(size, whole)) < SMALLEST for size, whole in sizes)
    )


def _contains(frame: BboxBase, extent: BboxBase) -> bool:
    return bool(np.all(frame.min <= extent.min) and np.all(extent.max <= frame.max))


def _fit(panel: Axes) -> None:
    """Makes letters smaller that take more room than the axes have."""
    panel.set_axisbelow(True)  # the grid lines of some styles
    _shrink_ticks(panel, "x")
    _shrink_ticks(panel, "y")
    frame = panel.get_window_extent()
    for text in (*_titles(panel), panel.xaxis.label):
        if text.get_window_extent().width > frame.width:
            text.set_text(text.get_text().replace(" (", "\n("))
        _shrink([text], text.get_window_extent().width / frame.width)
    _shrink([panel.yaxis.label], panel.yaxis.label.get_window_extent().height / frame.height)


def _shrink(texts: Iterable[Text], share: float) -> None:
    """Makes letters smaller that take this share of the room there is for them, if it is more than 1."""
    for text in texts:
        text.set_fontsize(max(LEAST, _size(text) / max(share, 1.0)))


def _shrink_ticks(panel: Axes, axis: Literal["x", "y"]) -> None:
    """Makes the labels of ticks smaller if neighbours touch."""
    side = f"interval{axis}"
    low, high = getattr(panel.get_window_extent(), side)
    for _ in range(TRIES):
        labels = [label for label in getattr(panel, f"{axis}axis").get_ticklabels(which="both") if label.get_text()]
        ends = np.array([getattr(label.get_window_extent(), side) for label in labels]).reshape(-1, 2)
        ends = ends[(ends.mean(1) > low - 1) & (ends.mean(1) < high + 1)]
        ends = ends[np.argsort(ends.mean(1))]
        if len(ends) < 2:
            return
        size = _size(labels[0])
        between = 0.25 * size if axis == "x" and labels[0].get_rotation() == 0 else 0.0  # numbers are read apart
        lengths = np.diff(ends, axis=1).ravel() + between * whole_figure(panel).dpi / 72
        share = ((lengths[1:] + lengths[:-1]) / (2 * np.diff(ends.mean(1)))).max()
        if share <= 1:
            return
        _set_ticks(panel, axis, max(LEAST, size / share))
