"""What stands in the encoder's place if each cell has a posterior of its own."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.batches import Batch
from .latent.posterior import DiagonalNormal
from .refinement import Decoding, best_posterior

STEPS = 200  # of gradient ascent from the prior
TABLE_RATE = 30.0  # a cell is in one step of an epoch, and its row moves in that step and a few after it


class PerCell(nn.Module):
    """q of each cell without an encoder (stochastic variational inference, Hoffman et al. 2013).

    In training it is a row of two tables, which are trained with the decoder. Any other cell, and each cell once the
    training has ended, gets the q that gradient ascent finds from the prior. The tables are not kept.

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    seed
        Seed of the noise of the ascent.
    """

    beta: Tensor

    def __init__(self, n_latent: int, seed: int) -> None:
        super().__init__()
        self.n_latent, self.seed = n_latent, seed
        self.register_buffer("beta", torch.ones(()))
        self.mean: nn.Parameter | None = None
        self.log_variance: nn.Parameter | None = None

    def open(self, n_cells: int, beta: float) -> None:
        """Makes the tables, all rows at the prior, and sets the β of the objective."""
        self.beta.fill_(beta)
        self.mean, self.log_variance = (nn.Parameter(torch.zeros(n_cells, self.n_latent)) for _ in range(2))

    def close(self) -> None:
        """Removes the tables."""
        self.mean = self.log_variance = None

    def forward(self, network: Decoding, batch: Batch) -> DiagonalNormal:
        """The posterior of each cell: rows of the tables if the batch tells them, or found by gradient ascent."""
        if batch.rows is not None:
            assert self.mean is not None
            assert self.log_variance is not None
            return DiagonalNormal(self.mean[batch.rows], self.log_variance[batch.rows])
        prior: Float[Tensor, "cells latent"] = network.prior.mean.expand(len(batch), -1)
        start = DiagonalNormal(prior, network.prior.variance.log().expand_as(prior))
        return best_posterior(network, batch, start, beta=float(self.beta), seed=self.seed, steps=STEPS)
