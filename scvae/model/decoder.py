"""The decoders: from z and the conditions s to the features from which a likelihood head predicts expression."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import relu

from ..config import Norm
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .blocks import Linear, make_norm
from .gates import make_gate
from .skip import Skip

WEIGHT_SD = 0.07  # prior sd of the head's weights for hidden units, a hundred of which are summed
LOADING_SD = 0.3  # prior sd of the head's weights for z itself
LOADING_RATE = 10.0  # at a rate of 1, the scale of z was still moving between loadings and encoder when a fit ended
OFFSET_SD = 0.7  # prior sd of a gene's offset by condition; between technologies, log offsets are 1 or 2


class LinearDecoder(nn.Module):
    """A decoder without layers: the features are z and the conditions, so the head's weights are gene loadings.

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    n_conditions
        Number of condition columns.
    """

    weight_sd, weight_rate, condition_scale = LOADING_SD, LOADING_RATE, OFFSET_SD / LOADING_SD
    skip, is_chain, z_is_feature = None, True, True  # as in `Decoder`

    def __init__(self, n_latent: int, *, n_conditions: int) -> None:
        super().__init__()
        self.n_features = n_latent + n_conditions

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"], constant: Float[Tensor, " latent"]) -> None:
        """Removes latent dimensions; the head must remove the same features."""
        self.n_features -= int(dropped.sum())

    def forward(
        self,
        z: Float[Tensor, "rows latent"],
        conditions: Float[Tensor, "rows columns"],
        knots: None = None,
        x: None = None,
    ) -> Float[Tensor, "rows features"]:
        """Features of each row."""
        return _beside(z, self.condition_scale * conditions)


class Decoder(nn.Module):
    """A multilayer perceptron; the conditions are inputs of every layer and part of the features.

    As features, they give each gene its own offset per batch in the head. There they are scaled up, because the head's
    weights have a tight prior (`OutputLayer`) and z should not have to encode an offset between technologies.

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    width, n_layers
        Units of a hidden layer, and number of hidden layers.
    n_conditions
        Number of condition columns.
    norm
        Normalisation of the hidden layers.
    n_knots
        Number of knots of β (see `BetaRange`); 0 for one β. The knots' weights are features too, so that each gene has
        its own offset by β.
    z_to_every
        Whether every layer receives z, and the features begin with it; else the first layer alone.
    skip
        Further features that read the data of a cell; None without.
    """

    weight_sd, weight_rate, condition_scale = WEIGHT_SD, 1.0, OFFSET_SD / WEIGHT_SD

    def __init__(
        self,
        n_latent: int,
        *,
        width: int,
        n_layers: int,
        n_conditions: int,
        norm: Norm,
        n_knots: int = 0,
        z_to_every: bool = False,
        skip: Skip | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.z_is_feature, self.skip = z_to_every, skip
        again = n_latent if z_to_every else 0
        inputs = [n_latent, *[again + width] * (n_layers - 1)]
        self.hidden = nn.ModuleList(
            Linear(n + n_conditions, width, n_knots=n_knots, generator=generator) for n in inputs
        )
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in inputs)
        self.gates = nn.ModuleList(make_gate(n_knots, width, generator=generator) for _ in inputs)
        self.n_features = again + width + (width if skip else 0) + n_knots + n_conditions

    @property
    def is_chain(self) -> bool:
        """Whether z and conditions are all that the decoder reads, and only the first layer reads z."""
        return self.skip is None and not self.z_is_feature

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"], constant: Float[Tensor, " latent"]) -> None:
        """Removes latent dimensions and fixes them at the given values; if z is a feature, the head must, too."""
        assert self.skip is None
        for layer in self.hidden if self.z_is_feature else self.hidden[:1]:
            assert isinstance(layer, Linear)
            layer.drop_inputs(dropped, constant)
        self.n_features -= int(dropped.sum()) if self.z_is_feature else 0

    def forward(
        self,
        z: Float[Tensor, "rows latent"],
        conditions: Float[Tensor, "rows columns"],
        knots: Float[Tensor, "rows knots"] | None = None,
        x: CSR | Dense | None = None,
    ) -> Float[Tensor, "rows features"]:
        """Features of each row; `x` is the input of a skip."""
        h = z
        for layer, norm, gate in zip(self.hidden, self.norms, self.gates, strict=True):
            h = relu(gate(norm(layer(_beside(h, conditions), knots)), knots))
            if self.z_is_feature:
                h = torch.cat([z, h], dim=1)
        if self.skip is not None:
            assert x is not None
            h = torch.cat([h, self.skip(x, z)], dim=1)
        if knots is not None:
            h = torch.cat([h, knots], dim=1)
        return _beside(h, self.condition_scale * conditions)


def _beside(rows: Float[Tensor, "rows _"], columns: Float[Tensor, "rows _"]) -> Float[Tensor, "rows _"]:
    """The rows with further columns appended; the rows themselves, without a copy, if there are none."""
    return torch.cat([rows, columns], dim=1) if columns.shape[1] else rows
