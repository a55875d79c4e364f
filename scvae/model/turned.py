"""A network seen from a further measurement: what decodes and judges the first one then does so for that one."""

from __future__ import annotations

import copy
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..kernels.autograd import WeightedLogProb
from .latent.posterior import DiagonalNormal
from .vae import VAE
from .views import ViewLayers


class TurnedVAE(VAE):
    """The same network with the head of a further measurement as its `likelihood`.

    Its batches have this measurement in the place of the first, and the first in its place (`Batch.turned`). Posteriors
    and bounds are those of the network itself, of all measurements.

    Parameters
    ----------
    network
        The network.
    place
        Place of the measurement among the further ones.
    """

    def __init__(self, network: VAE, place: int) -> None:
        torch.nn.Module.__init__(self)
        layers = network.views[place]
        assert isinstance(layers, ViewLayers)
        self.place, self.origin = place, network
        self.encode_conditions, self.betas = network.encode_conditions, network.betas
        self.encoder, self.decoder, self.likelihood = network.encoder, network.decoder, layers.head
        self.conditions, self.prior, self.classifier = network.conditions, network.prior, network.classifier
        self.views = network.views
        self.eval()

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        """That of the network itself, so that it is known as the same model."""
        return self.origin.state_dict(*arguments, **options)

    def encode(self, batch: Batch, generator: torch.Generator | None = None) -> DiagonalNormal:
        return self.origin.encode(batch.turned(self.place), generator)

    def shallow(self, batch: Batch) -> Batch:
        return self.origin.shallow(batch.turned(self.place)).turned(self.place)

    def encode_expected(self, z: Float[Tensor, "cells latent"], batch: Batch) -> DiagonalNormal:
        return self.origin.encode_expected(z, batch.turned(self.place))

    def features(self, z: Float[Tensor, "rows latent"], batch: Batch) -> Float[Tensor, "rows features"]:
        return self.origin.features(z, batch.turned(self.place))

    def log_likelihood(
        self, z: Float[Tensor, "rows latent"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        return self.origin.log_likelihood(z, batch.turned(self.place), row_weight)

    def __deepcopy__(self, memo: dict[int, Any]) -> TurnedVAE:
        return TurnedVAE(copy.deepcopy(self.origin, memo), self.place)
