"""The layers of a further measurement of the cells: its part of the encoder's first layer, and its head."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.batches import Batch
from ..kernels.block import Dense
from ..kernels.csr import CSR
from ..likelihoods import Likelihood
from ..likelihoods.base import dense
from .blocks import Linear, Weights, add_product

Seen = tuple[CSR | Dense, Float[Tensor, "cells _"]]  # as `Likelihood.encoder_input` returns it


class ViewLayers(nn.Module):
    """What a network has for one further measurement of the cells.

    The encoder's first layer adds what each measurement says of a cell, and nothing for one that the cell lacks. All
    heads have the features of the same decoder.

    Parameters
    ----------
    head
        The head.
    n_features
        Number of features of the measurement.
    width
        Units of the encoder's first layer.
    term_weight
        Factor of the log-likelihood in training.
    """

    centre: Tensor

    def __init__(
        self, head: Likelihood, n_features: int, *, width: int, term_weight: float, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.head, self.term_weight = head, term_weight
        self.values = Linear(n_features, width, generator=generator)
        self.covariates = Weights(head.n_encoder_covariates, width, generator=generator)
        self.register_buffer("centre", torch.zeros(n_features))

    @torch.no_grad()
    def start_at(self, centre: Float[Tensor, " features"], spread: float) -> None:
        """Starts the first layer at inputs with a mean of 0 over cells and a mean square of 1 over features.

        Parameters
        ----------
        centre
            Mean of each input over the training cells.
        spread
            Root mean square of the inputs around these means.
        """
        self.centre.copy_(centre)
        self.values.weight.div_(spread)
        self.values.bias.copy_(-centre @ self.values.weight)

    def seen(self, batch: Batch) -> Seen:
        """What the encoder sees of the measurement, which is the first of the batch; see `Likelihood.encoder_input`.

        Features that were not measured are at their mean over the cells of the fit.
        """
        x, covariates = self.head.encoder_input(batch)
        return (x if batch.missing is None else self._filled(x, batch.missing)), covariates

    def _filled(self, x: CSR | Dense, missing: Int[Tensor, " missing"]) -> Dense:
        values = dense(x)
        return Dense(values.index_copy(1, missing, self.centre[missing].expand(len(values), -1)))

    def first_layer(
        self, x: CSR | Dense, covariates: Float[Tensor, "cells covariates"], present: Bool[Tensor, " cells"]
    ) -> Float[Tensor, "cells width"]:
        """What the measurement adds to the outputs of the encoder's first layer: 0 in cells that lack it."""
        start: Tensor = self.values.bias
        if covariates.shape[1]:
            start = torch.addmm(start, covariates, self.covariates.weight)
        return present[:, None] * add_product(start, x, self.values.weight)


def of_present(seen: Seen, present: Bool[Tensor, " cells"] | None) -> Seen:
    """What the encoder sees of a measurement, 0 in cells that lack it; None if none does."""
    if present is None:
        return seen
    x, covariates = seen
    kept = present[x.row_of_stored()] if isinstance(x, CSR) else present[:, None]
    return x.with_values(x.values * kept), covariates * present[:, None]


def start_of_inputs(inputs: list[Float[Tensor, "cells features"]]) -> tuple[Float[Tensor, " features"], float]:
    """Mean of each input over cells, and the root mean square around these means over cells and features."""
    n = sum(map(len, inputs))
    centre = torch.stack([block.double().sum(0) for block in inputs]).sum(0) / n
    square = sum(float((block.double() - centre).square().sum()) for block in inputs) / (n * len(centre))
    return centre.float(), math.sqrt(square) or 1.0
