"""Columns of `obs` as category codes, standardised numbers and library sizes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype, is_complex_dtype, is_datetime64_any_dtype, is_numeric_dtype

from ..common.checks import check_obs_column, listing, warn
from .categories import check_names, distinct, spelling
from .schema import Categorical, Numeric, Schema

MOST_LISTED = 20  # categories listed in an error about an unknown one
FAR = 20  # standard deviations of a numeric covariate


def covariate_names(batch_key: str | None, covariate_keys: Sequence[str] | str) -> tuple[str, ...]:
    """The covariate keys as a tuple.

    Raises
    ------
    TypeError
        If a key is not a string.
    ValueError
        If a key is given twice or is also the batch.
    """
    if not isinstance(covariate_keys, Iterable):
        raise TypeError(f"covariate_keys is {covariate_keys!r}; pass names of columns in adata.obs")
    keys = (covariate_keys,) if isinstance(covariate_keys, str) else tuple(covariate_keys)
    for key in keys if batch_key is None else (batch_key, *keys):
        if not isinstance(key, str):
            raise TypeError(f"{key!r} is not a column name; pass names of columns in adata.obs as strings")
    if batch_key in keys:
        raise ValueError(f"{batch_key!r} is the batch_key and in covariate_keys; name it once")
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"covariate_keys names {listing(twice)} twice; name each column once")
    return keys


def learn_columns(
    adata: AnnData, batch_key: str | None, keys: tuple[str, ...]
) -> tuple[Categorical | None, tuple[Categorical, ...], tuple[Numeric, ...]]:
    """Determines the categories of the batch and of the categorical covariates, and means and scales of numeric ones.

    Raises
    ------
    MissingKeyError
        If a column does not exist.
    ValueError
        If a column has missing values, or holds neither categories nor numbers.

    Warns
    -----
    UserWarning
        If a category has a single cell.
    """
    batch = None if batch_key is None else categories_of(adata, batch_key)
    categorical, numeric = [], []
    for key in keys:
        column = _complete(adata, key)
        if isinstance(column.dtype, pd.CategoricalDtype) or is_bool_dtype(column) or not is_numeric_dtype(column):
            categorical.append(categories_of(adata, key))
        else:
            numeric.append(_standard(key, column))
    _warn_of_single_cells(adata, categorical if batch is None else [batch, *categorical])
    return batch, tuple(categorical), tuple(numeric)


def widened(adata: AnnData, schema: Schema, *, mapped: bool) -> Schema:
    """The schema with the new categories of `adata` appended to its own.

    Parameters
    ----------
    adata
        Data with every categorical column of the schema.
    mapped
        Whether the new categories will be mapped onto a fitted model (see `Categorical.mapped`).

    Raises
    ------
    MissingKeyError
        If a column does not exist.
    ValueError
        If a column has missing values, or does not hold categories.

    Warns
    -----
    UserWarning
        If a new category has a single cell.
    """
    columns, new = [], []
    for column in schema.categoricals:
        more = categories_of(adata, column.key, column.categories)
        new.append(more)
        columns.append(
            replace(
                column,
                categories=column.categories + more.categories,
                mapped=column.mapped + (more.categories if mapped else ()),
            )
        )
    _warn_of_single_cells(adata, new)
    batch = None if schema.batch is None else columns.pop(0)
    return replace(schema, batch=batch, categorical=tuple(columns))


def with_new_batches(adata: AnnData, schema: Schema) -> tuple[Schema, Schema]:
    """Two schemas in which all batches of `adata` are new: one to read `adata` with, and one to keep.

    They differ if `adata` has names of known batches: the first hides the known batches, and in the second the new ones
    have names of their own, which end in "-query" (or "-query2", ...). Errors and warnings are those of `widened`.
    """
    batch = schema.batch
    assert batch is not None
    hidden = replace(batch, categories=tuple(f"{name}\0" for name in batch.categories))  # as no cell has it
    to_read = widened(adata, replace(schema, batch=hidden), mapped=True)
    assert to_read.batch is not None
    new = to_read.batch.categories[len(batch.categories) :]
    is_known = batch.codes(pd.Series(new, dtype=object)) >= 0
    taken = {*batch.categories, *new}
    for number in itertools.count(1):
        ending = f"-query{number if number > 1 else ''}"
        named = [f"{spelling(name)}{ending}" if known else name for name, known in zip(new, is_known, strict=True)]
        if taken.isdisjoint(np.array(named)[is_known]):
            break
    kept = replace(batch, categories=(*batch.categories, *named), mapped=(*batch.mapped, *named))
    to_keep = replace(to_read, batch=kept)
    return (to_read if is_known.any() else to_keep), to_keep


def categories_of(adata: AnnData, key: str, known: Sequence[str] = ()) -> Categorical:
    """The categories of a column, without those known: in their own order, numbers ascending, or text sorted.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    ValueError
        If it has missing values, holds neither categories nor numbers, or has True or False next to 0 or 1.

    Warns
    -----
    UserWarning
        If a category has the name that pandas gives to missing values.
    """
    column = _complete(adata, key)
    if is_datetime64_any_dtype(column) or is_complex_dtype(column):
        raise ValueError(f"adata.obs[{key!r}] has type {column.dtype}; pass a column of categories or numbers")
    if isinstance(column.dtype, pd.CategoricalDtype):
        present = column.cat.remove_unused_categories().cat.categories
    else:
        values = column.astype(object)
        present = sorted((values if is_numeric_dtype(column) else values.map(str)).unique())
    found = pd.Series(distinct(present), dtype=object)
    new = tuple(found[Categorical(key, tuple(known)).codes(found) < 0])
    if new:
        check_names(key, (*known, *new), new)
    return Categorical(key, new)


def codes_of(adata: AnnData, schema: Schema) -> NDArray[np.int64]:
    """int64 code of the category of each cell in each categorical column, cells x columns.

    Raises
    ------
    MissingKeyError
        If a column does not exist.
    ValueError
        If a value is missing or is not one of the categories of the fit.
    """
    codes = np.empty((adata.n_obs, len(schema.categoricals)), dtype=np.int64)
    for place, column in enumerate(schema.categoricals):
        values = _complete(adata, column.key)
        codes[:, place] = column.codes(values)
        unknown = values[codes[:, place] < 0].astype(object).map(str)
        if len(unknown):
            raise ValueError(
                f"adata.obs[{column.key!r}] has {listing(unknown.unique())} in {len(unknown):,} of {adata.n_obs:,} "
                f"cells, unknown to the model; it knows {listing(column.categories, MOST_LISTED)}. "
                "Use scvae.tl.map_query to add new categories to the model"
            )
    return codes


def numbers_of(adata: AnnData, schema: Schema) -> NDArray[np.float32]:
    """float32 standardised numeric covariates, cells x columns; errors as in `codes_of`."""
    numbers = np.empty((adata.n_obs, len(schema.numeric)), dtype=np.float32)
    for place, column in enumerate(schema.numeric):
        values = _numbers(column.key, _complete(adata, column.key))
        numbers[:, place] = (values - column.mean) / column.scale
    return numbers


def warn_of_far(numbers: NDArray[np.float32], adata: AnnData, schema: Schema) -> None:
    """Warns of numeric covariates so far from those of the fit that the decoder has learnt nothing about them."""
    for place, column in enumerate(schema.numeric):
        distance = np.abs(numbers[:, place])
        n_far, worst = int((distance > FAR).sum()), int(distance.argmax())
        if n_far:
            value, cell = adata.obs[column.key].iloc[worst], adata.obs_names[worst]
            warn(
                f"adata.obs[{column.key!r}] is more than {FAR} standard deviations ({column.scale:.4g}) from the mean "
                f"of the fit ({column.mean:.4g}) in {n_far:,} cells ({value:.6g} at cell {cell!r}); "
                "the model was not trained on such values: check the unit"
            )


def size_factors(adata: AnnData, key: str) -> NDArray[np.float64]:
    """Size factor of each cell.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    ValueError
        If a value is missing, not a number, infinite or not above 0.
    """
    values = _numbers(key, _complete(adata, key))
    wrong = np.flatnonzero(values <= 0)
    if len(wrong):
        raise ValueError(
            f"adata.obs[{key!r}] has {len(wrong):,} size factors that are not above 0 "
            f"({values[wrong[0]]:.6g} at cell {adata.obs_names[wrong[0]]!r}); remove these cells or correct them"
        )
    return values


def _complete(adata: AnnData, key: str) -> pd.Series:
    column = check_obs_column(adata, key)
    missing = np.flatnonzero(column.isna().to_numpy())
    if len(missing):
        raise ValueError(
            f"adata.obs[{key!r}] has {len(missing):,} missing values (the first at cell "
            f"{adata.obs_names[missing[0]]!r}); fill them or remove these cells"
        )
    return column


def _numbers(key: str, column: pd.Series) -> NDArray[np.float64]:
    if isinstance(column.dtype, pd.CategoricalDtype) or not is_numeric_dtype(column) or is_complex_dtype(column):
        raise ValueError(f"adata.obs[{key!r}] has type {column.dtype}; the model needs numbers in this column")
    values: NDArray[np.float64] = column.to_numpy(dtype=np.float64)
    if not np.isfinite(values).all():
        cell = column.index[int(np.argmin(np.isfinite(values)))]
        raise ValueError(f"adata.obs[{key!r}] is infinite at cell {cell!r}; correct it or remove the cell")
    return values


def _standard(key: str, column: pd.Series) -> Numeric:
    values = _numbers(key, column)
    mean, scale = float(values.mean()), float(values.std())
    # rounding errors may give a constant column a small standard deviation
    return Numeric(key, mean, scale if scale > 1e-12 * max(abs(mean), np.finfo(float).tiny) else 1.0)


def _warn_of_single_cells(adata: AnnData, columns: Sequence[Categorical]) -> None:
    single = []
    for column in columns:
        codes = column.codes(adata.obs[column.key])
        sizes = np.bincount(codes[codes >= 0], minlength=len(column.categories))
        names = [name for name, size in zip(column.categories, sizes, strict=True) if size == 1]
        if names:
            single.append(f"adata.obs[{column.key!r}]: {listing(names)}")
    if single:
        warn(
            f"some categories have a single cell, too few to learn their effect ({'; '.join(single)}); "
            "merge or remove these categories if their effect matters"
        )
