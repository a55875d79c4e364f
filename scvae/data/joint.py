"""Reading of further measurements of cells that have been read: those of a fit, and later ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool

from ..common.checks import listing
from ..config import View
from ..kernels.csr import CSR
from .cells import Cells
from .intake import DataKeys, read_fit, read_query
from .modalities import beside
from .rows import DenseRows, Rows, SparseRows
from .schema import RNA, Kind, Schema, ViewSchema
from .views import ViewCells, speaking_of_view, table_of, typical_library

FEWEST = 2  # cells with a measurement, from which its features start


def learn_views(
    adata: AnnData,
    views: Mapping[str, View],
    kinds: Mapping[str, Kind],
    schema: Schema,
    cells: Cells,
    *,
    name: str = RNA,
) -> tuple[Schema, Cells]:
    """The schema and the cells of a fit with further measurements; the same ones without any.

    Parameters
    ----------
    adata
        The cells.
    views
        The measurements by name.
    kinds
        Kind of the values of each.
    schema, cells
        As `read_fit` returns them.
    name
        What to call the first measurement.

    Raises
    ------
    ValueError, TypeError, MissingKeyError
        As `read_fit` and `table_of`, with the name of the view; if two measurements have one name, too few cells have
        one, or a cell has none at all.
    """
    if not views:
        return schema, cells
    if name in views:
        raise ValueError(f"also has a view {name!r}, which is the name of the values of adata; choose another")
    learned, read = [], []
    for key, view in views.items():
        where = f"mod.{'X' if view.layer is None else f'layers[{view.layer!r}]'}" if view.mod is not None else ""
        with speaking_of_view(key, where or f"obsm[{view.obsm!r}]"):
            table, present = table_of(adata, key, view)
            if not present.any():
                raise ValueError(f"no cell has it: it is NaN, or not measured, in all {adata.n_obs:,}")
            alone, some = read_fit(table, DataKeys(layer=view.layer), kind=kinds[key], memory=math.inf)
            found = _placed(some, present)
            if found.present.sum() < FEWEST:
                raise ValueError(f"{found.present.sum()} cells have it; pass at least {FEWEST}")
        slot = key if view.obsm is None else view.obsm
        learned.append(ViewSchema(key, alone.genes, alone.kind, view.likelihood, slot, view.measured, view.weight))
        read.append(found)
    return replace(schema, views=tuple(learned), name=name), _joint(cells, read, name, tuple(views))


def with_views(cells: Cells, adata: AnnData, schema: Schema, also: Mapping[str, AnnData] | None = None) -> Cells:
    """The cells with the further measurements of a schema that `adata` has; features are found by name.

    Parameters
    ----------
    cells
        As `read_query` returns them.
    adata
        The same cells. Those of an `adata` without the slot of a measurement lack it.
    schema
        The schema of the fit.
    also
        A second AnnData for some of the measurements, in place of the slots, or of a modality `beside` the cells.

    Raises
    ------
    ValueError, TypeError, MissingKeyError
        As `read_query`, with the name of the view; if `also` names another view, or a cell has no measurement at all.
    """
    unknown = [name for name in also or {} if name not in schema.view_names[1:]]
    given = {
        name: mod
        for name, mod in beside(adata).items()
        if name in schema.view_names[1:] and mod.obs_names.isin(adata.obs_names).any()
    } | dict(also or {})
    if unknown:
        raise ValueError(
            f"also has {listing(unknown)}, but the views of the model are {listing(schema.view_names[1:])}"
        )
    if not schema.views:
        return cells
    read = [_read(adata, view, given.get(view.name)) for view in schema.views]
    return _joint(cells, read, schema.name, schema.view_names[1:])


def _read(adata: AnnData, view: ViewSchema, mod: AnnData | None) -> ViewCells:
    if mod is None and view.obsm not in adata.obsm:
        return _absent(adata.n_obs, view)
    where = f"obsm[{view.obsm!r}]" if mod is None else "X"
    measured = view.measured if view.measured in adata.obs else None
    with speaking_of_view(view.name, where):
        names = None if mod is not None or isinstance(adata.obsm[view.obsm], pd.DataFrame) else view.features
        if names is not None and (width := adata.obsm[view.obsm].shape[-1]) != len(names):
            raise ValueError(
                f"{where} has {width:,} features without names, but the model has {len(names):,}; pass a DataFrame, "
                "whose columns are matched by name"
            )
        place = View(obsm=view.obsm, names=names, measured=measured) if mod is None else View(mod=mod)
        table, present = table_of(adata, view.name, place)
        return _placed(read_query(table, view.alone), present) if present.any() else _absent(adata.n_obs, view)


def _absent(n: int, view: ViewSchema) -> ViewCells:
    """The measurement of cells that all lack it."""
    rows: Rows = SparseRows(
        np.zeros(n + 1, np.int64), np.empty(0, np.int32), np.empty(0, np.float32), len(view.features)
    )
    if view.kind == "real":
        rows = DenseRows(np.broadcast_to(np.float32(0.0), (n, len(view.features))))
    return ViewCells(rows, np.ones(n, dtype=np.float32), np.zeros(n, dtype=bool))


def _placed(some: Cells, present: Bool[np.ndarray, " cells"]) -> ViewCells:
    """The measurement of all cells, given that of those which are `present`; cells without counts lack it, too."""
    filled = some.library > 0
    rows, library = some.rows, np.ones(len(present), dtype=np.float32)
    library[present] = some.library
    if not present.all():
        rows = _spread(rows, present)
    present = present.copy()
    present[np.flatnonzero(present)] = filled
    return ViewCells(rows, typical_library(library, present), present, some.missing)


def _spread(rows: Rows, present: Bool[np.ndarray, " cells"]) -> Rows:
    """The rows of the cells that are present, and empty ones in place of the others."""
    if isinstance(rows, DenseRows):
        values = np.zeros((len(present), rows.n_genes), dtype=np.float32)
        values[present] = rows.values
        return DenseRows(values)
    x = rows.take(np.arange(rows.n_cells))
    assert isinstance(x, CSR)
    lengths = np.zeros(len(present), dtype=np.int64)
    lengths[present] = np.diff(x.indptr.numpy())
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return SparseRows(indptr, x.indices.numpy(), x.values.numpy(), rows.n_genes)


def _joint(cells: Cells, views: list[ViewCells], name: str, others: tuple[str, ...]) -> Cells:
    """The cells with further measurements; those without counts of the first lack it."""
    present = cells.library > 0
    joint = replace(cells, library=typical_library(cells.library, present), present=present, views=tuple(views))
    empty = ~np.any(joint.having, axis=0)
    if empty.any():
        raise ValueError(
            f"{empty.sum():,} cells have no value in any view ({listing((name, *others))}): "
            f"{listing(cells.names[empty], 3)}; remove them"
        )
    return joint
