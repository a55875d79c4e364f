"""Argument checks shared by many functions. Every message says what was found, where, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from numbers import Integral, Real
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from mudata import MuData

LISTED = 10  # names shown in a message
PART_OF = {
    "MuData": ": one of its modalities, e.g. mdata['rna']",
    "SpatialData": ": one of its tables, e.g. sdata.tables['table']",
    "Raw": ", e.g. adata.raw.to_adata()",
}
RAW = "raw"  # as a layer: the matrix of `adata.raw`, unless a layer has this name
PACKAGE = Path(__file__).parents[1]
Settings = TypeVar("Settings")
_wording: ContextVar[Callable[[str], str]] = ContextVar("wording", default=str)  # rewords a warning


class MissingKeyError(KeyError, ValueError):
    """The requested layer, column or other key does not exist."""

    def __str__(self) -> str:
        """The message without the quotes that KeyError adds."""
        return str(self.args[0])


def listing(names: Iterable[object], limit: int = LISTED) -> str:
    """The first names, quoted, and the number of further ones; "none" if the list is empty."""
    names = list(names)
    shown = ", ".join(repr(str(name)) for name in names[:limit])
    if len(names) > limit:
        shown += f" and {len(names) - limit:,} more"
    return shown or "none"


def warn(message: str) -> None:
    """Issues a UserWarning that points at the user's line, however deep in the package it is raised."""
    frame: FrameType | None = sys._getframe()
    depth, level, inside = 1, 1, False
    while frame is not None:
        path = frame.f_code.co_filename
        # a function decorated by contextlib has a contextlib frame above it
        inside = Path(path).is_relative_to(PACKAGE) or (inside and path == contextlib.__file__)
        depth += 1
        level = depth if inside else level
        frame = frame.f_back
    warnings.warn(_wording.get()(message), UserWarning, stacklevel=level)


@contextlib.contextmanager
def reworded(about: Callable[[str], str]) -> Iterator[None]:
    """Within this block, the messages of errors and warnings are what `about` makes of them."""
    token = _wording.set(about)
    try:
        yield
    except (MissingKeyError, ValueError, TypeError) as error:
        raise type(error)(about(str(error))) from None
    finally:
        _wording.reset(token)


def speaking_of(argument: str, *, layer: str = "layer") -> contextlib.AbstractContextManager[None]:
    """Within this block, errors and warnings call the AnnData and its layer by the names of the user's arguments."""

    def about(text: str) -> str:
        text = text.replace("adata", argument).replace("layer=", f"{layer}=")
        return text if text.startswith(argument) else f"{argument}: {text}"

    return reworded(about)


def missing_key(place: str, key: object, available: Sequence[object]) -> MissingKeyError:
    """The error for a `key` missing from `place`; it lists the available keys and the closest match.

    Parameters
    ----------
    place
        Where the key was looked up, e.g. "adata.layers".
    key
        The requested key.
    available
        The keys that exist.
    """
    close = difflib.get_close_matches(str(key), [str(name) for name in available], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    return MissingKeyError(f"{place} has no {key!r}; it has {listing(available)}{hint}")


def check_adata(adata: object) -> AnnData:
    """`adata` itself, if it is an AnnData with at least one cell and one gene.

    Raises
    ------
    TypeError
        If it is something else.
    ValueError
        If it is empty.
    """
    if not isinstance(adata, AnnData):
        kind = type(adata).__name__
        raise TypeError(f"adata is a {kind}; pass an anndata.AnnData, cells x genes{PART_OF.get(kind, '')}")
    for count, what in ((adata.n_obs, "cells"), (adata.n_vars, "genes")):
        if count == 0:
            raise ValueError(
                f"adata has no {what} (shape {adata.n_obs} x {adata.n_vars}); check what filtered them out"
            )
    return adata


def check_slots(adata: object) -> None:
    """Checks that this is an AnnData, as `check_adata` does, or a MuData, which has `obs`, `obsm` and `uns`, too."""
    if not is_mudata(adata):
        check_adata(adata)


def is_mudata(given: object) -> TypeGuard[MuData]:
    """Whether this is a MuData, without importing mudata, which need not be installed."""
    return any(kind.__name__ == "MuData" and kind.__module__.startswith("mudata") for kind in type(given).__mro__)


def is_raw(adata: AnnData, layer: str | None) -> bool:
    """Whether `layer` stands for `adata.raw`."""
    return layer == RAW and RAW not in adata.layers


def layers_of(adata: AnnData) -> list[str]:
    """The layers of `adata`, and ``"raw"`` if this stands for `adata.raw`."""
    return [*adata.layers, *([RAW] if is_raw(adata, RAW) and adata.raw is not None else [])]


def check_layer(adata: AnnData, layer: str | None) -> None:
    """Raises MissingKeyError if the layer does not exist, or ValueError if `layer` is None and there is no `X`."""
    known = layers_of(adata)
    if layer is not None:
        if layer not in known:
            place = "adata.raw is None, and adata.layers" if layer == RAW else "adata.layers"
            raise missing_key(place, layer, known)
    elif "X" not in adata.file if adata.isbacked else adata.X is None:
        hint = f"pass layer=, one of {listing(known)}" if known else "it has no layers either: store the counts in X"
        raise ValueError(f"adata has no X; {hint}")


def check_obs_column(adata: AnnData, key: str) -> pd.Series:
    """The column `key` of `adata.obs`.

    Raises
    ------
    MissingKeyError
        If there is no such column.
    ValueError
        If several columns have this name.
    """
    return _column(adata.obs, "adata.obs", key)


def check_var_column(adata: AnnData, key: str) -> pd.Series:
    """The column `key` of `adata.var`; errors as in `check_obs_column`."""
    return _column(adata.var, "adata.var", key)


def plain(value: Any) -> Any:
    """A number of numpy or torch, also in an array without dimensions, as that of Python; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () and hasattr(value, "item") else value


def check_bool(value: object, name: str) -> bool:
    """`value` as bool; raises TypeError if it is none."""
    value = plain(value)
    if not isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}; pass True or False")
    return value


def check_positive_int(value: object, name: str, *, least: int = 1) -> int:
    """`value` as int.

    Raises
    ------
    TypeError
        If it is not an integer; a bool does not count as one.
    ValueError
        If it is below 1, or below `least`.
    """
    value = plain(value)
    refusal = f"{name} is {value!r}; pass an integer of at least {least}"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(refusal)
    if value < least:
        raise ValueError(refusal)
    return int(value)


def check_not_negative(value: object, name: str) -> float:
    """`value` as float.

    Raises
    ------
    TypeError
        If it is not a number.
    ValueError
        If it is negative, nan or infinite.
    """
    return _number(value, name, "a finite number of at least 0", lambda number: 0 <= number < math.inf)


def check_positive(value: object, name: str) -> float:
    """`value` as float; raises as `check_not_negative` does, and for 0."""
    return _number(value, name, "a finite number above 0", lambda number: 0 < number < math.inf)


def check_probability(value: object, name: str) -> float:
    """`value` as float; raises as `check_not_negative` does, and above 1."""
    return _number(value, name, "a number in [0, 1]", lambda number: 0 <= number <= 1)


def check_fraction(value: object, name: str) -> float:
    """`value` as float; raises as `check_not_negative` does, and from 1 on."""
    return _number(value, name, "a number in [0, 1)", lambda number: 0 <= number < 1)


def _column(frame: pd.DataFrame, place: str, key: str) -> pd.Series:
    if isinstance(key, list | dict | set | np.ndarray | pd.Index | pd.Series):
        raise TypeError(f"{place}: {key!r} is a {type(key).__name__}; pass the name of one column")
    if key not in frame.columns:
        raise missing_key(place, key, list(frame.columns))
    column = frame[key]
    if isinstance(column, pd.DataFrame):
        raise ValueError(f"{place} has {column.shape[1]} columns named {key!r}; rename all but one")
    return column


def _number(value: object, name: str, wanted: str, is_right: Callable[[float], bool]) -> float:
    value = plain(value)
    refusal = f"{name} is {value!r}; pass {wanted}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(refusal)
    if not is_right(float(value)):
        raise ValueError(refusal)
    return float(value)


def check_settings(value: object, kind: type[Settings], name: str) -> Settings | None:
    """`value` itself, if it is None or an instance of `kind`.

    Raises
    ------
    TypeError
        Otherwise; the message shows what to pass.
    """
    if value is None or isinstance(value, kind):
        return value
    given = ", ".join(f"{key}={setting!r}" for key, setting in value.items()) if isinstance(value, dict) else "..."
    raise TypeError(f"{name} is a {type(value).__name__}; pass scvae.{kind.__name__}({given})")


def check_choice(value: object, choices: Sequence[str], name: str) -> None:
    """Checks that `value` is one of `choices`.

    Raises
    ------
    ValueError
        If it is not; the message lists the choices and the closest one.
    """
    if value not in choices:
        close = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"{name} must be one of {listing(choices)}; found {value!r}{hint}")
