"""The choice of the columns of a matrix that are modelled genes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData, Raw
from numpy.typing import NDArray
from pandas.api.types import is_bool_dtype

from ..common.checks import check_var_column, is_raw, listing, warn
from .gene_names import better_match
from .schema import Schema

LEAST_COVERAGE = 0.5  # of the modelled genes; with fewer, most of the encoder's input was not measured
DEFAULT_MASK = "highly_variable"


def gene_mask(adata: AnnData, mask_var: Any) -> NDArray[np.bool_]:
    """The genes to model as one bool per gene."""
    if mask_var is None:
        if DEFAULT_MASK not in adata.var.columns:
            return np.ones(adata.n_vars, dtype=bool)
        mask_var = DEFAULT_MASK
    if isinstance(mask_var, str):
        name, values = f"adata.var[{mask_var!r}]", check_var_column(adata, mask_var)
    else:
        name, values = "mask_var", mask_var
        if isinstance(values, pd.Series) and not values.index.equals(adata.var_names):
            raise ValueError("mask_var is a Series whose index is not adata.var_names; reindex it or pass .to_numpy()")
    mask = pd.Series(np.asarray(values) if not isinstance(values, pd.Series) else values)
    if len(mask) != adata.n_vars:
        raise ValueError(f"{name} has {len(mask):,} values for {adata.n_vars:,} genes; pass one bool per gene")
    if mask.isna().any():
        raise ValueError(f"{name} has {int(mask.isna().sum()):,} missing values; fill them with True or False")
    if not is_bool_dtype(mask) and not mask.map(lambda value: isinstance(value, bool | np.bool_)).all():
        raise ValueError(f"{name} has type {mask.dtype}; pass True or False for each gene, e.g. values > 0")
    chosen: NDArray[np.bool_] = mask.to_numpy(dtype=bool)
    if not chosen.any():
        raise ValueError(f"{name} selects none of the {adata.n_vars:,} genes; mark the genes to model with True")
    return chosen


def refuse_duplicates(names: pd.Index, wanted: pd.Index) -> None:
    """Raises ValueError if a gene to model could not be found by its name because other genes share this name."""
    twice = names[names.isin(wanted) & names.duplicated()].unique()
    if len(twice):
        raise ValueError(
            f"{len(twice):,} names of genes to model occur more than once in adata.var_names ({listing(twice, 5)}); "
            "call adata.var_names_make_unique() first, because later data are matched by gene name"
        )


def columns_of(adata: AnnData, layer: str | None, mask: NDArray[np.bool_]) -> NDArray[np.intp]:
    """The column of each gene of `mask` in the matrix of a layer; genes of `adata.raw` are found by name.

    Raises
    ------
    ValueError
        If `adata.raw` lacks some of these genes, or has several genes of one name.
    """
    if not is_raw(adata, layer):
        return np.flatnonzero(mask)
    wanted, names = adata.var_names[mask].astype(str), adata.raw.var_names.astype(str)
    refuse_duplicates(adata.var_names.astype(str), wanted)
    columns = np.flatnonzero(names.isin(wanted))
    twice = names[columns][names[columns].duplicated()].unique()
    if len(twice):
        raise ValueError(f"{len(twice):,} names occur more than once in adata.raw.var_names ({listing(twice, 5)})")
    places = names[columns].get_indexer(wanted)
    missing = wanted[places < 0]
    if len(missing):
        raise ValueError(
            f"adata.raw lacks {len(missing):,} of the {len(wanted):,} genes to read from it ({listing(missing, 5)}); "
            "leave them out with mask_var, or remove them from adata"
        )
    found: NDArray[np.intp] = columns[places]
    return found


def find_genes(adata: AnnData | Raw, schema: Schema) -> NDArray[np.intp]:
    """The column of each modelled gene, -1 if `adata` lacks it; warns of missing genes, and raises if too many are."""
    wanted = pd.Index(schema.genes, dtype=object)
    names = pd.Index([str(name) for name in adata.var_names], dtype=object)
    columns = np.flatnonzero(names.isin(wanted))
    refuse_duplicates(names, wanted)
    places = names[columns].get_indexer(wanted)
    genes: NDArray[np.intp] = np.where(places >= 0, np.append(columns, -1)[places], -1)
    missing = wanted[genes < 0]
    if len(missing) == 0:
        return genes
    better = better_match(adata.var, wanted)
    remedy = "" if better is None else f"{better.where('adata')} has {better.n:,} of them: {better.rename()}"
    n_found = len(wanted) - len(missing)
    found = f"{n_found:,} of the {len(wanted):,} modelled genes ({100 * n_found / len(wanted):.1f} %)"
    if n_found == 0:
        raise ValueError(
            f"adata has none of the {len(wanted):,} modelled genes: its genes are {listing(names, 3)}, those of the "
            f"model {listing(wanted, 3)}; {remedy or 'set adata.var_names to the same kind of name'}"
        )
    if schema.kind == "real" or n_found < LEAST_COVERAGE * len(wanted):
        why = "real values need all of them" if schema.kind == "real" else "at least half are needed"
        remedy = remedy or f"pass data with the missing genes: {listing(missing, 5)}"
        raise ValueError(f"adata has {found}, but {why}; {remedy}")
    others = f"the {len(missing):,} others are filled in by the model: {listing(missing, 5)}"
    warn(f"adata has {found}; {others}" + (f". But {remedy}" if remedy else ""))
    return genes
