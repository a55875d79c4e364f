"""Columns of `obs` that say of which group or donor each cell is."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Int
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_float_dtype

from ..common.checks import check_obs_column, listing, warn

if TYPE_CHECKING:
    from anndata import AnnData

OF_DONORS = re.compile(
    r"(?:^|[^a-z])(?:donor|patient|subject|individual|participant|sample|mouse|animal|replicate)"
    r"(?:s|id|ids|name|no|nr|number)?(?:$|[^a-z])"
)
FEWEST_CELLS = 2  # on average, of a donor: a column with a value for each cell names cells


def groups_of(adata: AnnData, key: str) -> tuple[Int[np.ndarray, " cells"], list[str]]:
    """Group of each cell in a column of `adata.obs`, -1 for none, and the names of the groups in order.

    Whole numbers are names, also where missing values have made them floating-point numbers.

    Raises
    ------
    ValueError
        If the column has no values, or numbers that are no categories, or dates (MissingKeyError if there is none).
    """
    column = check_obs_column(adata, key)
    if column.isna().all():
        raise ValueError(f"adata.obs[{key!r}] has no values; pass a column of categories")
    if is_float_dtype(column) and (column.dropna() % 1 == 0).all():
        column = column.astype("Int64")
    if (is_float_dtype(column) and not is_bool_dtype(column)) or is_datetime64_any_dtype(column):
        raise ValueError(f"adata.obs[{key!r}] has type {column.dtype}; pass a column of categories")
    categories = column.astype("category").cat.remove_unused_categories()
    names = [str(name) for name in categories.cat.categories]
    return categories.cat.codes.to_numpy(dtype=np.int64), names


def check_apart(**keys: str | None) -> None:
    """Raises ValueError if two of these arguments name the same column."""
    given = {name: key for name, key in keys.items() if key is not None}
    for name, key in given.items():
        twin = next((other for other, its in given.items() if other != name and its == key), None)
        if twin is not None:
            raise ValueError(f"{name} and {twin} are both {key!r}; pass two different columns")


def donors_of(adata: AnnData, sample_key: str) -> tuple[Int[np.ndarray, " cells"], list[str]]:
    """Donor of each cell, -1 for none, and the names of at least two donors; errors as in `groups_of`."""
    codes, names = groups_of(adata, sample_key)
    if len(names) < 2:
        raise ValueError(
            f"adata.obs[{sample_key!r}] has {len(names)} donor(s), {listing(names)}; donors are the sample here, so at "
            "least two are needed in each group"
        )
    return codes, names


def warn_of_donors(adata: AnnData, codes: Int[np.ndarray, " cells"], *not_these: str | None) -> None:
    """Warns if a column of `obs` looks like donors, several of them in each group, where the cells are the sample."""
    cells = np.flatnonzero(codes >= 0)
    for key in adata.obs.columns:
        column = adata.obs[key]
        if key in not_these or not isinstance(key, str) or not isinstance(column, pd.Series):
            continue
        words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", key).lower()
        if not OF_DONORS.search(words) or is_float_dtype(column):
            continue
        values = column.iloc[cells]
        if values.nunique() * FEWEST_CELLS > len(cells):
            continue
        per_group = values.groupby(codes[cells]).nunique()
        if per_group.min() >= 2:
            warn(
                f"adata.obs[{key!r}] looks like donors, but without sample_key the cells are the sample, so that "
                f"differences between donors pass for differences between groups; pass sample_key={key!r} to compare "
                "donors"
            )
            return
