"""Colours of the explorer's cells as compact arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import UInt8, UInt16

from .._color import PLAIN, Colouring, Labels, Numbers, colouring, palette

if TYPE_CHECKING:
    from anndata import AnnData

MOST_CATEGORIES = 40
MOST_COLUMNS = 12  # most columns chosen by default
MISSING_CODE, MISSING_LEVEL = 255, 65_535  # stand for no category and no number in the page
SHOWN = (1.0, 99.0)  # percentiles of the values other than 0 at the ends of the colour bar


@dataclass(frozen=True, slots=True, eq=False)
class Colour:
    """One choice of colours.

    Parameters
    ----------
    record
        Its name, kind and scale, in types that JSON can store.
    values
        Each cell's category (`MISSING_CODE` for none) or level within the range (`MISSING_LEVEL` for none).
    """

    record: dict[str, Any]
    values: UInt8[np.ndarray, " cells"] | UInt16[np.ndarray, " cells"]


def colours_of(adata: AnnData, color: str | Sequence[str] | None) -> list[Colour]:
    """The requested choices of colours; a single plain colour if there are none.

    Raises
    ------
    MissingKeyError
        If a name is neither a column of `obs` nor a gene.
    """
    if color is None:
        color = [name for name in adata.obs.columns if _is_shown_unasked(adata.obs[name])][:MOST_COLUMNS]
    names = [color] if isinstance(color, str) else list(dict.fromkeys(color))
    return [_packed(colouring(adata, name), adata.n_obs) for name in names or [None]]


def _is_shown_unasked(column: pd.Series | pd.DataFrame) -> bool:
    if not isinstance(column, pd.Series) or not isinstance(column.name, str):
        return False  # a duplicated name, or a name that is not a string
    if pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column):
        return bool(column.notna().any())
    return bool(2 <= column.nunique() <= MOST_CATEGORIES)


def _packed(by: Colouring, n_cells: int) -> Colour:
    if isinstance(by, Numbers):
        return _of_numbers(by)
    if by is None:
        by = Labels("all cells", np.zeros(n_cells, dtype=np.int64), ("all cells",), (PLAIN,))
    return _of_categories(by)


def _of_categories(by: Labels) -> Colour:
    """Categories in their order; beyond `MOST_CATEGORIES`, the smallest are merged."""
    codes, names, colours = by.codes, list(by.categories), [colour[:7] for colour in by.colours]  # without opacity
    if len(names) > MOST_CATEGORIES:
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        kept = np.sort(np.argsort(-sizes, kind="stable")[: MOST_CATEGORIES - 1])
        place = np.full(len(names) + 1, len(kept))
        place[kept], place[-1] = np.arange(len(kept)), -1
        codes = place[codes]
        names = [*(names[i] for i in kept), f"{len(names) - len(kept):,} others"]
        colours = [colour[:7] for colour in palette(MOST_CATEGORIES)]
    record = {"name": by.name, "kind": "category", "categories": names, "colors": colours}
    return Colour(record, np.where(codes < 0, MISSING_CODE, codes).astype(np.uint8))


def _of_numbers(by: Numbers) -> Colour:
    """Numbers as integer levels between the smallest and the largest value."""
    known = np.isfinite(by.values)
    low, high = (float(by.values[known].min()), float(by.values[known].max())) if known.any() else (0.0, 0.0)
    levels = np.full(len(known), MISSING_LEVEL)
    levels[known] = np.rint((by.values[known] - low) / ((high - low) or 1.0) * (MISSING_LEVEL - 1))
    apart = by.values[known & (by.values != 0)]
    shown = np.percentile(apart, SHOWN).tolist() if len(apart) else [low, high]
    if low == 0 or shown[0] == shown[1]:
        shown[0] = low  # scales of counts start at 0
    if high == 0 or shown[0] == shown[1]:
        shown[1] = high
    record = {"name": by.name, "kind": "number", "low": low, "high": high, "shown": shown}
    return Colour(record, levels.astype(np.uint16))
