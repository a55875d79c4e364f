"""z, s -> the features that a likelihood head turns into gene expression."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from ..config import Norm
from .blocks import Linear, make_norm

CONDITION_SCALE = 10.0


class Decoder(nn.Module):
    """A multilayer perceptron; the conditions join every layer, and the features themselves.

    As columns of the features they give each gene its own offset per batch in the head. There they are multiplied by
    `CONDITION_SCALE`: the head's weights have a tight prior (`OutputLayer`), and an offset between technologies, of 1
    or 2 in logarithms, must not have to go through z.

    Parameters
    ----------
    n_latent
        Latent dimensions.
    width, n_layers
        Units of a hidden layer, and number of hidden layers.
    n_conditions
        Condition columns.
    norm
        Normalisation of the hidden layers.
    """

    def __init__(
        self,
        n_latent: int,
        *,
        width: int,
        n_layers: int,
        n_conditions: int,
        norm: Norm,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        inputs = [n_latent, *[width] * (n_layers - 1)]
        self.hidden = nn.ModuleList(Linear(n + n_conditions, width, generator=generator) for n in inputs)
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in inputs)
        self.n_features = width + n_conditions

    def forward(
        self,
        z: Float[Tensor, "rows latent"],
        conditions: Float[Tensor, "rows columns"],
    ) -> Float[Tensor, "rows features"]:
        """Features of each row."""
        h = z
        for layer, norm in zip(self.hidden, self.norms, strict=True):
            h = relu(norm(layer(_beside(h, conditions))))
        return _beside(h, CONDITION_SCALE * conditions)


def _beside(rows: Float[Tensor, "rows _"], columns: Float[Tensor, "rows _"]) -> Float[Tensor, "rows _"]:
    """Rows with more columns; without any, the rows themselves, so that no step copies them for nothing."""
    return torch.cat([rows, columns], dim=1) if columns.shape[1] else rows
