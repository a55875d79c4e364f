"""Reading of the cells that a tool works on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast

from ..common.checks import listing, warn
from ..data.cells import Cells
from ..data.intake import read_query
from ..data.joint import with_views
from ..data.modalities import beside, modalities_of
from ..data.on_disk import Joined
from ..data.schema import Schema
from .needs import check_without_skip
from .trained import Trained

if TYPE_CHECKING:
    from anndata import AnnData

Tool = TypeVar("Tool", bound=Callable[..., Any])


def taking_mudata(tool: Tool) -> Tool:
    """The tool of cells and a model, which then also takes a MuData with the modalities of the model.

    What it writes is where muon users look (see `modalities_of`).
    """

    @functools.wraps(tool)
    def taking(adata: Any, model: Any, *arguments: Any, **options: Any) -> Any:
        if not isinstance(model, Trained):  # which the tool refuses
            return tool(adata, model, *arguments, **options)
        with modalities_of(adata, model.schema.name) as cells:
            return tool(cells, model, *arguments, **options)

    return cast(Tool, taking)


def read_cells(
    adata: AnnData,
    model: Trained | Schema,
    layer: str | None,
    matrix: Joined | None = None,
    also: Mapping[str, AnnData] | None = None,
) -> Cells:
    """Cells for a model or schema, from the layer of the fit (None), from `X` (``"X"``) or from another layer.

    If `adata` does not hold the values, `matrix` does. Further measurements are those of `also` and of the slots of
    `adata`.
    """
    schema = model if isinstance(model, Schema) else model.schema
    cells = read_query(adata, schema, layer=schema.layer_of(layer), matrix=matrix)
    cells = with_views(cells, adata, schema, also)
    if cells.missing is not None and isinstance(model, Trained):
        check_without_skip(model, f"adata lacks {len(cells.missing):,} modelled genes; filling them in")
    return cells


def read_new(adata: AnnData, model: Trained, layer: str | None, *, batch_key: str | None) -> Cells:
    """Cells whose batch is in the column `batch_key`; warns of further measurements of the model that they lack."""
    cells = read_cells(adata, with_batch_key(model.schema, batch_key), layer)
    warn_of_absent(adata, model.schema, None)
    return cells


def warn_of_absent(adata: AnnData, schema: Schema, also: Mapping[str, AnnData] | None) -> None:
    """Warns of further measurements of the model that the cells lack, perhaps because their slot has another name."""
    for view in schema.views:
        if view.obsm not in adata.obsm and view.name not in {*(also or {}), *beside(adata)}:
            warn(
                f"adata.obsm has no {view.obsm!r} (it has {listing(adata.obsm)}), so these cells are embedded without "
                f"the view {view.name!r}; rename the slot if they have this measurement"
            )


def with_batch_key(schema: Schema, batch_key: str | None) -> Schema:
    """The schema with the batch read from the column `batch_key`; unchanged if `batch_key` is None.

    Raises
    ------
    ValueError
        If the schema has no batch, or uses this column as a covariate.
    """
    if batch_key is None:
        return schema
    if schema.batch is None:
        raise ValueError(f"batch_key is {batch_key!r}, but the model was fitted without batch_key; leave it out")
    covariates = [column.key for column in schema.categorical] + [column.key for column in schema.numeric]
    if batch_key in covariates:
        raise ValueError(
            f"batch_key is {batch_key!r}, which is a covariate of the model ({listing(covariates)}); pass the column "
            "that holds the batch"
        )
    return replace(schema, batch=replace(schema.batch, key=batch_key))
