"""A path around the latent space: from the input of the encoder into the decoder."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import relu

from ..config import Norm
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .blocks import Linear, Weights, add_product, make_norm


class Skip(nn.Module):
    """A layer of units that read the data of a cell: features of the decoder beside those of z.

    Gated, each unit is multiplied by a number that is linear in z, without a constant, and another such number is added
    (FiLM, Perez et al. 2018, equation 1). If z says nothing of a cell, its draws from the prior multiply the units by
    noise of mean 0.

    Parameters
    ----------
    n_genes
        Number of genes in the input.
    n_latent
        Number of latent dimensions.
    width
        Number of units.
    gated
        Whether z scales and shifts the units.
    norm
        Normalisation of the units.
    """

    def __init__(
        self, n_genes: int, n_latent: int, *, width: int, gated: bool, norm: Norm, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.genes = Linear(n_genes, width, generator=generator)
        self.norm = make_norm(norm, width)
        self.scale = Weights(n_latent, width, generator=generator) if gated else None
        self.shift = Weights(n_latent, width, generator=generator) if gated else None

    def forward(self, x: CSR | Dense, z: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows width"]:
        """The units of each row of z; row i belongs to cell i % cells."""
        units = relu(self.norm(add_product(self.genes.bias, x, self.genes.weight)))
        units = units.repeat(len(z) // max(len(units), 1), 1)
        if self.scale is None or self.shift is None:
            return units
        return units * (z @ self.scale.weight) + z @ self.shift.weight
