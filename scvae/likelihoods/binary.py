"""The head for binary accessibility (scATAC-seq peaks, 0 or 1)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.schema import Kind
from ..data.summary import GeneSummary
from ..kernels import autograd, reference
from ..kernels.autograd import WeightedLogProb, repeat_cells
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .base import LEAST_SHARE, Likelihood, OutputLayer, dense, log_library, of_genes


@dataclass(frozen=True, eq=False, slots=True)
class BernoulliTable:
    """1 with probability sigmoid(logit)."""

    logit: Float[Tensor, "rows genes"]

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        return torch.sigmoid(self.logit)

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        return torch.sigmoid(self.logit) * torch.sigmoid(-self.logit)

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        return reference.bernoulli_log_prob(value, self.logit)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        return torch.bernoulli(self.mean, generator=generator)


class Bernoulli(Likelihood):
    """x ~ Bernoulli(sigmoid(decoder + feature bias + slope * log depth)).

    Log depth is the log of the cell's number of accessible features, centred on the training cells. Its slope is learnt
    per feature and starts at 1, because the odds of a rarely accessible feature are proportional to depth.
    """

    kind: ClassVar[Kind] = "binary"
    n_encoder_covariates: ClassVar[int] = 1
    mean_log_depth: Tensor

    def __init__(self, n_features: int, n_genes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.output = OutputLayer(n_features, n_genes, generator=generator)
        self.depth_slope = nn.Parameter(torch.ones(n_genes))
        self.register_buffer("mean_log_depth", torch.zeros(()))

    def start_from(self, summary: GeneSummary) -> None:
        """Bias = log odds of each feature over the training cells (half a cell is added to both counts)."""
        with torch.no_grad():
            odds = (summary.total + 0.5) / (summary.n_cells - summary.total + 0.5)
            self.output.bias.copy_(torch.log(odds))
            self.mean_log_depth.fill_(summary.mean_log_library)

    @property
    def loadings(self) -> Float[Tensor, "genes features"]:
        return self.output.weight

    def encoder_input(self, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
        x = batch.x if isinstance(batch.x, CSR) else Dense(dense(batch.x))
        return x, log_library(batch, self.mean_log_depth)[:, None]

    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        probability = self.distribution(features, batch).mean
        expected = probability[:, missing]
        return expected, (1.0 - expected.sum(1) / probability.sum(1)).clamp_min(LEAST_SHARE)

    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        return self.distribution(features, batch).mean, log_library(batch, self.mean_log_depth)[:, None]

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> BernoulliTable:
        depth = repeat_cells(log_library(batch, self.mean_log_depth), features.shape[0])
        slope = of_genes(self.depth_slope, genes)
        return BernoulliTable(torch.addcmul(self.output(features, genes), depth[:, None], slope))

    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        return self.distribution(features, batch, genes).mean

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        # the depth becomes one more feature, so that the output layer's product gives the complete logit
        depth = repeat_cells(log_library(batch, self.mean_log_depth), features.shape[0])
        weight = torch.cat([self.output.weight, self.depth_slope[:, None]], dim=1)
        return autograd.bernoulli(
            torch.cat([features, depth[:, None]], dim=1),
            weight,
            self.output.measured_bias(batch.missing),
            batch.x,
            row_weight,
        )
