"""How every tool reads its cells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.intake import SAME_LAYER, Cells, read_query
from ..data.schema import Schema
from ..fitted import FittedModel

if TYPE_CHECKING:
    from anndata import AnnData


def read_cells(adata: AnnData, model: FittedModel | Schema, layer: str | None) -> Cells:
    """Cells for a model or schema, from the layer of the fit (None), from `X` (``"X"``), or from another layer."""
    schema = model if isinstance(model, Schema) else model.schema
    if layer is None:
        return read_query(adata, schema, layer=SAME_LAYER)
    return read_query(adata, schema, layer=None if layer == "X" else layer)
