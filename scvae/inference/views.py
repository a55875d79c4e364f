"""A fitted model of several measurements: seen from one of them, or given some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from ..common.checks import check_choice, listing
from ..config import ViewLikelihood
from ..data.cells import Cells
from ..data.schema import Schema, ViewSchema
from ..model.turned import TurnedVAE
from .fitted import FittedModel


def check_view(model: FittedModel, view: str | None) -> int | None:
    """The place of a measurement among the further ones; None for the first, and for None.

    Raises
    ------
    ValueError
        If the model has no measurement of this name.
    """
    if view is None:
        return None
    check_choice(view, model.schema.view_names, "view")
    place = model.schema.view_names.index(view)
    return place - 1 if place else None


def facing(model: FittedModel, place: int | None) -> FittedModel:
    """The model as one of the further measurement at `place`, for cells that are turned too; itself for None."""
    if place is None:
        return model
    return replace(
        model,
        network=TurnedVAE(model.network, place),
        schema=_turned(model.schema, model.likelihood, place),
        likelihood=model.schema.views[place].likelihood,
        libraries=None if model.schema.views[place].kind == "real" else model.view_libraries[place],
    )


def every_view(model: FittedModel, cells: Cells) -> Iterator[tuple[FittedModel, Cells]]:
    """The model and the cells, seen from each measurement: the first one first."""
    for place in (None, *range(len(model.schema.views))):
        yield facing(model, place), cells.turned(place)


def _turned(schema: Schema, likelihood: ViewLikelihood, place: int) -> Schema:
    view, views = schema.views[place], list(schema.views)
    views[place] = ViewSchema(schema.name, schema.genes, schema.kind, likelihood, obsm="")
    return replace(
        schema,
        genes=view.features,
        kind=view.kind,
        name=view.name,
        views=tuple(views),
        layer=None,
        size_factor_key=None,
        size_factor_scale=1.0,
    )


def given_views(cells: Cells, schema: Schema, views: str | Sequence[str] | None) -> Cells:
    """The cells with some of their measurements alone; the same cells for None.

    Raises
    ------
    ValueError
        If the model has no measurement of a name, if there are no names, or if a cell has none of them.
    """
    if views is None:
        return cells
    names = (views,) if isinstance(views, str) else tuple(views)
    for name in names:
        check_choice(name, schema.view_names, "views")
    if not names:
        raise ValueError(f"views is empty; name one or several of {listing(schema.view_names)}")
    if not schema.views:
        return cells
    kept = [name in names for name in schema.view_names]
    having = [present & keep for present, keep in zip(cells.having, kept, strict=True)]
    empty = ~np.any(having, axis=0)
    if empty.any():
        raise ValueError(
            f"{empty.sum():,} cells have no value in the views {listing(names)}: {listing(cells.names[empty], 3)}; "
            "leave these cells out, or name another view"
        )
    further = zip(cells.views, having[1:], strict=True)
    return replace(cells, present=having[0], views=tuple(replace(view, present=present) for view, present in further))


def views_of_cells(cells: Cells, schema: Schema) -> dict[str, int]:
    """The number of cells that have each measurement; empty for a model of one."""
    if not schema.views:
        return {}
    return {name: int(present.sum()) for name, present in zip(schema.view_names, cells.having, strict=True)}
