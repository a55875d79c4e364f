"""The interface of all likelihood heads, their output layer, and helpers that they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.schema import Kind
from ..data.summary import GeneSummary
from ..kernels.autograd import WeightedLogProb, repeat_cells, weighted
from ..kernels.block import Block, Dense
from ..kernels.csr import CSR
from ..kernels.fused_cuda import densify
from ..kernels.selection import SelectedRows


@runtime_checkable
class Distribution(Protocol):
    """A table of independent distributions, one per row and gene."""

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        """Expected values."""
        ...

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        """Variances."""
        ...

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        """Log-probability (or log density) of each value in nats, including all constants, in float64."""
        ...

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        """One draw for every entry."""
        ...


class Likelihood(nn.Module, ABC):
    """An output layer and the distribution that it parametrises: p(x | z, s), given the decoder's features of z and s.

    If several rows of features belong to one cell (draws of its latent variables), row i belongs to cell i % cells.
    """

    kind: ClassVar[Kind]
    n_encoder_covariates: ClassVar[int]

    @abstractmethod
    def start_from(self, summary: GeneSummary) -> None:
        """Sets biases (and scales) from the training cells, so that training starts at the marginal means."""

    @property
    @abstractmethod
    def loadings(self) -> Float[Tensor, "genes features"]:
        """Change of each gene's predicted expression, on the scale given below, per unit of each feature.

        For counts, the scale is the log proportion before normalisation. Adding the same number to all genes has no
        effect there, so the mean over genes is set to 0. For binary data it is the logit, for real values the mean.
        """

    def shallow(self, batch: Batch, chosen: Bool[Tensor, " cells"]) -> Batch:
        """The batch, with the chosen cells no deeper than those of the fit; only counts are changed."""
        return batch

    @abstractmethod
    def encoder_input(self, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
        """Input of the encoder: values per gene, and `n_encoder_covariates` numbers per cell."""

    @abstractmethod
    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        """Expected encoder input for genes that were not measured, and the measured fraction of the library size.

        Returns
        -------
        tuple
            Values for the encoder, as in `encoder_input`, and the library size of the measured genes as a fraction of
            that of all genes of the model.
        """

    @abstractmethod
    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        """Expected encoder input of cells with these features and library sizes; ignores the values of the batch."""

    @abstractmethod
    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Distribution:
        """p(x | features) as a dense table, for all genes or those in `genes`; only for blocks of cells."""

    @abstractmethod
    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        """Expected values of all genes or some; with zero inflation, those of the counts before any zeros are added."""

    @abstractmethod
    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        """log p(x | features) summed over genes: the value of each row, and the differentiable weighted total."""


LEAST_SHARE = 0.01  # lower bound of the expected fraction of a cell's library size in the measured genes
NEVER = -1e4  # a logit whose exponential is 0 in float32, so that it adds nothing to sums and products


class OutputLayer(nn.Module):
    """One number per gene from the features: features @ weight.T + bias.

    The weights have the prior N(0, `weight_sd`^2), whose gradient the optimizer adds to theirs. They are most of the
    decoder's parameters and would fit the noise of the training cells without a prior. Adam moves them at `weight_rate`
    times the learning rate. The right values of both depend on the features, so the decoder sets them (`suit`).
    """

    def __init__(self, n_features: int, n_genes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight_sd, self.weight_rate = math.inf, 1.0
        scale = 0.3 / n_features**0.5  # small: the first decoder output is close to the marginal means in the bias
        self.weight = nn.Parameter(torch.randn(n_genes, n_features, generator=generator) * scale)
        self.bias = nn.Parameter(torch.zeros(n_genes))

    def suit(self, *, weight_sd: float, weight_rate: float, n_conditions: int) -> None:
        """Sets the prior and rate of the weights, and those of the conditions to 0, so that no gene has an offset."""
        self.weight_sd, self.weight_rate = weight_sd, weight_rate
        with torch.no_grad():
            self.weight[:, self.weight.shape[1] - n_conditions :] = 0.0

    def measured_bias(self, missing: Int[Tensor, " missing"] | None) -> Float[Tensor, " genes"]:
        """The bias, with values for unmeasured genes that make them 0 with certainty and give them no softmax weight.

        Their zeros then add nothing to a log-likelihood, and the library size is that of the measured genes.
        """
        return self.bias if missing is None else self.bias.index_fill(0, missing, NEVER)

    @torch.no_grad()
    def drop_features(self, dropped: Bool[Tensor, " first"], constant: Float[Tensor, " first"]) -> None:
        """Removes some of the first features and fixes them at the given values."""
        first, others = self.weight[:, : len(dropped)], self.weight[:, len(dropped) :]
        self.bias.add_(first @ (constant * dropped))
        self.weight = nn.Parameter(torch.cat([first[:, ~dropped], others], dim=1))

    def forward(
        self, features: Float[Tensor, "rows features"], genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        return torch.addmm(of_genes(self.bias, genes), features, of_genes(self.weight, genes, 0).T)


def of_genes(
    values: Float[Tensor, "..."], genes: Int[Tensor, " chosen"] | None, axis: int = -1
) -> Float[Tensor, "..."]:
    """The values of the chosen genes, or of all genes if `genes` is None."""
    return values if genes is None else values.index_select(axis, genes)


def log_library(batch: Batch, mean_log_library: Float[Tensor, ""]) -> Float[Tensor, " cells"]:
    """log library size of each cell minus its mean over training cells; a library size below 1 is set to 1."""
    return torch.log(batch.library.clamp_min(1.0)) - mean_log_library


def dense(x: Block) -> Float[Tensor, "cells genes"]:
    """Data of a block of cells as a dense tensor."""
    return densify(x) if isinstance(x, SelectedRows) else x.to_dense()


def table_log_prob(distribution: Distribution, batch: Batch, row_weight: Float[Tensor, "rows"]) -> WeightedLogProb:
    """Sums a dense table of log-probabilities over genes, for heads without a fused kernel."""
    values = repeat_cells(dense(batch.x), row_weight.shape[0])
    table = distribution.log_prob(values)
    total, per_row = weighted(table if batch.missing is None else table.index_fill(1, batch.missing, 0.0), row_weight)
    return WeightedLogProb(total.to(row_weight), per_row)
