"""The rule by which values of `obs` are the same category: in one AnnData, in several files, and in later cells.

A category is known by its text. A number is one category however it is stored: 1, 1.0, "1" and "1.0", or 0.1 in single
and in double precision, because pandas and file formats change the type of a column of numbers. Any other text is a
name, which must agree to the letter: "P1.0" is not "P1", "007" is not "7", "1e3" is not "1000", " P1" is not "P1".
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ..common.checks import listing, warn

MISSING = ("nan", "<NA>", "NaT")  # what pandas makes of a missing value in a column of text


def spelling(name: str) -> str:
    """The text by which categories are compared: a number in its shortest form, any other text as it is."""
    try:
        number = float(name)
    except ValueError:
        return name
    if name != str(number):  # an integer, or not written by Python
        return name
    if number.is_integer():
        return str(int(number))
    single = np.float32(number)
    return str(single) if single == number else name


def as_text(column: pd.Series) -> pd.Series:
    """The column with text in place of other values; missing values stay missing."""
    return column.astype(object).map(
        lambda value: value if isinstance(value, str) else spelling(str(value)), na_action="ignore"
    )


def distinct(values: Iterable[object]) -> tuple[str, ...]:
    """The names of different categories among the values, each as it is first written."""
    names: dict[str, str] = {}
    for name in map(str, values):
        names.setdefault(spelling(name), name)
    return tuple(names.values())


def check_names(key: str, names: Iterable[str], new: Iterable[str]) -> None:
    """Checks the names of all categories of a column, some of which are new.

    Raises
    ------
    ValueError
        If there are truth values next to 0 or 1.

    Warns
    -----
    UserWarning
        If a new name is the text of a missing value.
    """
    names = list(names)
    truths = [name for name in names if name in ("True", "False")]
    numbers = [name for name in names if spelling(name) in ("0", "1")]
    if truths and numbers:
        raise ValueError(
            f"adata.obs[{key!r}] mixes types: {listing(truths)} and {listing(numbers)} may mean the same; write the "
            "column in one way"
        )
    missing = [name for name in new if name in MISSING]
    if missing:
        warn(
            f"adata.obs[{key!r}] has the category {listing(missing)}, which is how pandas writes missing values; these "
            "cells are treated as a category of their own"
        )
