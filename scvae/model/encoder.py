"""The encoder: from the data of a cell to q(z | x)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import hardtanh, relu

from ..config import Norm
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .blocks import Dropout, Linear, Weights, add_product, make_norm
from .gates import make_gate
from .latent.posterior import DiagonalNormal

LOG_VARIANCE_RANGE = (-12.0, 4.0)  # sigma in [0.0025, 7.4]; without bounds, one bad step could overflow exp


class Encoder(nn.Module):
    """A multilayer perceptron from (sparse) rows to the mean and log variance of each latent dimension.

    Parameters
    ----------
    n_genes
        Number of genes in the input.
    n_latent
        Number of latent dimensions.
    width, n_layers
        Units of a hidden layer, and number of hidden layers.
    n_covariates
        Number of further inputs of the first layer per cell.
    n_mapped
        Number of categories mapped onto the fitted encoder; each shifts the first layer for its cells.
    dropout
        Fraction of the hidden units dropped in training.
    input_dropout
        Fraction of the stored values dropped in training, so that the posterior does not depend on any single count
        (as in Liang et al. 2018, "Variational autoencoders for collaborative filtering").
    norm
        Normalisation of the hidden layers.
    n_knots
        Number of knots of β (see `BetaRange`); 0 for one β.
    """

    def __init__(
        self,
        n_genes: int,
        n_latent: int,
        *,
        width: int,
        n_layers: int,
        n_covariates: int,
        n_mapped: int = 0,
        dropout: float,
        input_dropout: float,
        norm: Norm,
        n_knots: int = 0,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.n_latent = n_latent
        self.input_dropout = Dropout(input_dropout)
        self.genes = Linear(n_genes, width, generator=generator)
        self.covariates = Weights(n_covariates, width, generator=generator)
        self.shifts = Weights(n_mapped, width, generator=generator) if n_mapped else None
        self.hidden = nn.ModuleList(Linear(width, width, generator=generator) for _ in range(n_layers - 1))
        self.norms = nn.ModuleList(make_norm(norm, width) for _ in range(n_layers))
        self.gates = nn.ModuleList(make_gate(n_knots, width, generator=generator) for _ in range(n_layers))
        self.dropout = Dropout(dropout)
        self.mean = Linear(width, n_latent, n_knots=n_knots, generator=generator)
        self.log_variance = Linear(width, n_latent, n_knots=n_knots, generator=generator)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        """Removes latent dimensions."""
        for layer in (self.mean, self.log_variance):
            layer.drop_outputs(dropped)
        self.n_latent -= int(dropped.sum())

    def forward(
        self,
        x: CSR | Dense,
        covariates: Float[Tensor, "cells covariates"],
        generator: torch.Generator | None,
        knots: Float[Tensor, "cells knots"] | None = None,
        mapped: Float[Tensor, "cells mapped"] | None = None,
        added: Float[Tensor, "cells width"] | None = None,
    ) -> DiagonalNormal:
        """The posterior of each cell; `generator` draws the dropout masks and is None outside training.

        `added` is what further measurements add to the outputs of the first layer.
        """
        x = x.with_values(self.input_dropout(x.values, generator))
        first = self.first_layer(x, covariates, mapped)
        return self.onwards(first if added is None else first + added, generator, knots)

    def first_layer(
        self,
        x: CSR | Dense,
        covariates: Float[Tensor, "cells covariates"],
        mapped: Float[Tensor, "cells mapped"] | None = None,
    ) -> Float[Tensor, "cells width"]:
        """The outputs of the first layer, which are linear in `x`."""
        start: Tensor = self.genes.bias
        if covariates.shape[1]:
            start = torch.addmm(start, covariates, self.covariates.weight)
        if self.shifts is not None and mapped is not None:
            # a separate product adds exactly 0 for cells of the fit; wider covariates would change the rounding
            start = start + mapped @ self.shifts.weight
        return add_product(start, x, self.genes.weight)

    def onwards(
        self,
        first: Float[Tensor, "cells width"],
        generator: torch.Generator | None,
        knots: Float[Tensor, "cells knots"] | None = None,
    ) -> DiagonalNormal:
        """The posterior of each cell, from the outputs of the first layer."""
        h = self.dropout(relu(self.gates[0](self.norms[0](first), knots)), generator)
        for layer, norm, gate in zip(self.hidden, self.norms[1:], self.gates[1:], strict=True):
            h = self.dropout(relu(gate(norm(layer(h)), knots)), generator)
        return DiagonalNormal(self.mean(h, knots), hardtanh(self.log_variance(h, knots), *LOG_VARIANCE_RANGE))
