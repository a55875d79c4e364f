"""What the explorer colours cells by: columns of `obs` and genes, as small arrays."""

from __future__ import annotations

import colorsys
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, UInt8, UInt16

from .._checks import check_obs_column, missing_key

if TYPE_CHECKING:
    from anndata import AnnData

MOST_CATEGORIES = 40
MOST_COLUMNS = 12  # of those taken unasked
MISSING_CODE, MISSING_LEVEL = 255, 65_535  # what the page takes for no category and no number
SHOWN = (1.0, 99.0)  # percentiles of the values other than 0 at the ends of the colour bar
# Okabe & Ito's, told apart by all kinds of colour vision, without those that vanish on a white or a dark ground and
# vermilion, which is for the β recommended; and a wine red
HUES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#882255")
SHADES = (1.0, 0.66, 1.38, 0.45, 1.62, 0.82, 1.9)  # of their lightness, round by round
HEX = re.compile(r"#[0-9a-fA-F]{6}")


@dataclass(frozen=True, slots=True, eq=False)
class Colour:
    """One choice of colours.

    Parameters
    ----------
    record
        Its name, kind and scale, as JSON can hold it.
    values
        For each cell its category (`MISSING_CODE` for none) or level within the range (`MISSING_LEVEL` for none).
    """

    record: dict[str, Any]
    values: UInt8[np.ndarray, " cells"] | UInt16[np.ndarray, " cells"]


def colours_of(adata: AnnData, names: str | Sequence[str] | None, layer: str | None) -> list[Colour]:
    """The choices that were asked for; one without colours if there are none.

    Raises
    ------
    MissingKeyError
        If a name is neither a column of `obs` nor a gene.
    """
    if names is None:
        names = [name for name in adata.obs.columns if _is_shown_unasked(adata.obs[name])][:MOST_COLUMNS]
    chosen = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    found = [_colour(adata, name, layer) for name in chosen]
    return found or [_of_categories("all cells", pd.Series(["all cells"] * adata.n_obs), None)]


def _is_shown_unasked(column: pd.Series | pd.DataFrame) -> bool:
    if not isinstance(column, pd.Series) or not isinstance(column.name, str):
        return False  # a name that is there twice, or none that could be asked for
    if _is_number(column):
        return bool(column.notna().any())
    return bool(2 <= column.nunique() <= MOST_CATEGORIES)


def _is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column))


def _colour(adata: AnnData, name: str, layer: str | None) -> Colour:
    if name in adata.obs.columns:
        column = check_obs_column(adata, name)
        if _is_number(column):
            return _of_numbers(name, column.to_numpy(dtype=float, na_value=np.nan))
        return _of_categories(name, column, adata.uns.get(f"{name}_colors"))
    if name not in adata.var_names:
        raise missing_key("adata.obs and adata.var_names", name, [*adata.obs.columns, *adata.var_names])
    if not adata.var_names.is_unique:
        raise ValueError("adata.var_names has names that are there twice; call adata.var_names_make_unique() first")
    one = adata[:, [name]]
    values = one.X if layer is None else one.layers[layer]
    dense = values.toarray() if sp.issparse(values) else np.asarray(values)
    return _of_numbers(name, dense.ravel().astype(float))


def _of_categories(name: str, column: pd.Series, stored: Any) -> Colour:
    """Categories in their order; beyond `MOST_CATEGORIES`, the small ones are one."""
    categories = column.astype("category").cat.remove_unused_categories()
    full = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else categories.cat.categories
    codes, names = categories.cat.codes.to_numpy(dtype=np.int64), categories.cat.categories
    paint = dict(zip(full, _stored_colours(stored, len(full)) or palette(len(full)), strict=True))
    colours = [paint[category] for category in names]
    shown = [str(category) for category in names]
    if len(names) > MOST_CATEGORIES:
        sizes = np.bincount(codes[codes >= 0], minlength=len(names))
        kept = np.sort(np.argsort(-sizes, kind="stable")[: MOST_CATEGORIES - 1])
        place = np.full(len(names), len(kept))
        place[kept] = np.arange(len(kept))
        codes = np.where(codes < 0, -1, place[codes])
        shown = [*(shown[i] for i in kept), f"{len(names) - len(kept):,} others"]
        colours = palette(MOST_CATEGORIES)
    record = {"name": name, "kind": "category", "categories": shown, "colors": colours}
    return Colour(record, np.where(codes < 0, MISSING_CODE, codes).astype(np.uint8))


def _of_numbers(name: str, values: Float[np.ndarray, " cells"]) -> Colour:
    """Numbers as levels between the smallest and the largest; what is not finite is missing."""
    known = np.isfinite(values)
    low, high = (float(values[known].min()), float(values[known].max())) if known.any() else (0.0, 0.0)
    levels = np.full(len(values), MISSING_LEVEL)
    levels[known] = np.rint((values[known] - low) / ((high - low) or 1.0) * (MISSING_LEVEL - 1))
    apart = values[known & (values != 0)]
    shown = np.percentile(apart, SHOWN).tolist() if len(apart) else [low, high]
    if low == 0 or shown[0] == shown[1]:
        shown[0] = low  # a count's scale begins at 0
    if high == 0 or shown[0] == shown[1]:
        shown[1] = high
    record = {"name": name, "kind": "number", "low": low, "high": high, "shown": shown}
    return Colour(record, levels.astype(np.uint16))


def _stored_colours(stored: Any, n: int) -> list[str] | None:
    """The colours of scanpy, if there is one for each category and the page can read them."""
    if stored is None or len(stored) < n:
        return None
    colours = [str(colour)[:7] for colour in list(stored)[:n]]
    return colours if all(HEX.fullmatch(colour) for colour in colours) else None


def palette(n: int) -> list[str]:
    """Colours for `n` categories: the hues, then lighter and darker ones of them."""
    return [_shade(HUES[i % len(HUES)], SHADES[(i // len(HUES)) % len(SHADES)]) for i in range(n)]


def _shade(colour: str, factor: float) -> str:
    red, green, blue = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    hue, lightness, saturation = colorsys.rgb_to_hls(red, green, blue)
    lighter = lightness * factor if factor <= 1 else 1 - (1 - lightness) / factor
    shaded = colorsys.hls_to_rgb(hue, lighter, saturation)
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in shaded)
