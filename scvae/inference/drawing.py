"""Cells drawn from a model: their values, and the AnnData that holds them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..data.schema import Kind
from .decoding import decode
from .fitted import FittedModel

if TYPE_CHECKING:
    from anndata import AnnData

TABLES = 8.0  # float32 tables that drawing one of a negative binomial takes


Values: TypeAlias = sp.csr_matrix | np.ndarray


def draw_values(
    model: FittedModel, z: Float[Tensor, "cells latent"], batch: Batch, generator: torch.Generator
) -> Values:
    """One draw x ~ p(x | z, s) a cell: sparse but for real values, float32."""
    values = decode(model, z, batch).sample(generator).cpu().numpy()
    return values if model.schema.kind == "real" else sp.csr_matrix(values)


def stacked(pieces: list[Values], kind: Kind) -> Values:
    """Pieces one below the other."""
    whole: Values = np.concatenate(pieces) if kind == "real" else sp.vstack(pieces, format="csr")
    return whole


def drawn_cells(
    model: FittedModel, values: Values, obs: pd.DataFrame, *, obsm: dict[str, np.ndarray], uns: dict[str, Any]
) -> AnnData:
    """Drawn cells as the model would read them: values in `X`, and in the layer of the fit where it had one."""
    from anndata import AnnData

    layer = model.schema.layer
    layers = {} if layer is None else {layer: values.copy()}
    return AnnData(values, obs=obs, var=pd.DataFrame(index=model.genes), layers=layers, obsm=obsm, uns=uns)
