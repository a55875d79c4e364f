"""Cells drawn from a model, and the AnnData that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.keys import can_be_key
from ..data.batches import Batch
from ..data.schema import Kind
from .decoding import decode
from .fitted import FittedModel

if TYPE_CHECKING:
    from anndata import AnnData

TABLES = 8.0  # float32 tables in memory while one negative binomial table is drawn


Values: TypeAlias = sp.csr_matrix | np.ndarray


def draw_values(
    model: FittedModel, z: Float[Tensor, "cells latent"], batch: Batch, generator: torch.Generator
) -> Values:
    """One draw x ~ p(x | z, s) per cell, float32; dense for real values and sparse otherwise."""
    values = decode(model, z, batch).sample(generator).cpu().numpy()
    return values if model.schema.kind == "real" else sp.csr_matrix(values)


def stacked(pieces: list[Values], kind: Kind) -> Values:
    """The pieces, concatenated along the cells."""
    whole: Values = np.concatenate(pieces) if kind == "real" else sp.vstack(pieces, format="csr")
    return whole


def further_slots(model: FittedModel, drawn: list[list[Values]], names: pd.Index) -> dict[str, Any]:
    """The tables of the further measurements of cells with these names, where the model finds them again."""
    slots: dict[str, Any] = {}
    for view, pieces in zip(model.schema.views, drawn, strict=True):
        values: Any = stacked(pieces, view.kind)
        values = values.toarray() if sp.issparse(values) else values
        framed = all(map(can_be_key, view.features))
        slots[view.obsm] = pd.DataFrame(values, index=names, columns=list(view.features)) if framed else values
    return slots


def drawn_cells(
    model: FittedModel, values: Values, obs: pd.DataFrame, *, obsm: dict[str, Any], uns: dict[str, Any]
) -> AnnData:
    """An AnnData of drawn cells that the model can read: values in `X`, and in the layer of the fit if it used one."""
    from anndata import AnnData

    layer = model.schema.layer
    layers = {} if layer is None else {layer: values.copy()}
    return AnnData(values, obs=obs, var=pd.DataFrame(index=model.genes), layers=layers, obsm=obsm, uns=uns)
