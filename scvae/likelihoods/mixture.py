"""The head for antibody counts: each cell has background, and some have foreground."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..data.batches import Batch
from ..data.summary import GeneSummary
from ..kernels import autograd, reference
from ..kernels.autograd import WeightedLogProb, repeat_cells
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .base import LEAST_SHARE, Likelihood, OutputLayer, dense, log_library, of_genes, table_log_prob
from .counts import NegativeBinomialTable

START_BACKGROUND, START_FOREGROUND = 0.3, 1.7  # of the mean counts of a protein, with even odds


@dataclass(frozen=True, eq=False, slots=True)
class BackgroundTable:
    """NB(background, theta) with probability sigmoid(background_logit), otherwise NB(foreground, theta)."""

    background: NegativeBinomialTable
    foreground: NegativeBinomialTable
    background_logit: Float[Tensor, "rows genes"]

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        share = torch.sigmoid(self.background_logit)
        return share * self.background.mean + (1.0 - share) * self.foreground.mean

    def above_background(self, share: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        """Expected counts above the background, given the probability of the foreground."""
        return share * (self.foreground.mean - self.background.mean)

    def foreground_share(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        """Probability of the foreground, given each value."""
        evidence = self.foreground.log_prob(value) - self.background.log_prob(value)
        return torch.sigmoid(evidence.to(self.background_logit) - self.background_logit)

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        share = torch.sigmoid(self.background_logit)
        between = share * (1.0 - share) * (self.foreground.mean - self.background.mean).square()
        return share * self.background.variance + (1.0 - share) * self.foreground.variance + between

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        background, foreground = self.background.log_prob(value), self.foreground.log_prob(value)
        return reference.mixture_log_prob(background, foreground, self.background_logit)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        logit = self.background_logit
        uniform = torch.rand(logit.shape, generator=generator, device=logit.device, dtype=logit.dtype)
        background, foreground = self.background.sample(generator), self.foreground.sample(generator)
        return torch.where(uniform < torch.sigmoid(logit), background, foreground)


class BackgroundMixture(Likelihood):
    """x ~ pi NB(b, theta) + (1 - pi) NB(b a, theta), with a > 1 and pi from the decoder, b and theta per protein.

    After Gayoso et al. 2021 ("Joint probabilistic modeling of single-cell multi-omic data with totalVI"), whose
    background b is a further latent variable of each cell. Here it is a parameter of each protein and batch, so that it
    cannot explain what differs between cells. As there, the means are counts, not proportions: the sum over a panel of
    a few proteins is no measure of the depth.
    """

    kind = "counts"
    n_encoder_covariates = 1
    mean_log_library: Tensor

    def __init__(self, n_features: int, n_genes: int, n_groups: int = 1, *, generator: torch.Generator) -> None:
        super().__init__()
        self.log_background = nn.Parameter(torch.zeros(n_groups, n_genes))
        self.output = OutputLayer(n_features, n_genes, generator=generator)
        self.mixing = OutputLayer(n_features, n_genes, generator=generator)
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(1, n_genes))
        self.register_buffer("mean_log_library", torch.zeros(()))

    def start_from(self, summary: GeneSummary) -> None:
        """Background and foreground below and above the mean counts of each protein, with even odds."""
        ratio = math.log(START_FOREGROUND / START_BACKGROUND)
        with torch.no_grad():
            mean = (summary.total + 0.5) / summary.n_cells
            self.log_background.copy_(torch.log(START_BACKGROUND * mean).expand_as(self.log_background))
            self.output.bias.fill_(math.log(math.expm1(ratio)))
            self.mean_log_library.fill_(summary.mean_log_library)

    @property
    def loadings(self) -> Float[Tensor, "genes features"]:
        """Of what `softplus` turns into the log of a."""
        return self.output.weight

    def encoder_input(self, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
        log_depth = log_library(batch, self.mean_log_library)
        return autograd.log1p_scaled(batch.x, torch.ones_like(log_depth)), log_depth[:, None]

    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        mean = self.distribution(features, batch).mean
        expected = mean[:, missing]
        return torch.log1p(expected), (1.0 - expected.sum(1) / mean.sum(1)).clamp_min(LEAST_SHARE)

    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        log_depth = log_library(batch, self.mean_log_library)
        return torch.log1p(self.distribution(features, batch).mean), log_depth[:, None]

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> BackgroundTable:
        group = batch.group if len(self.log_background) > 1 else torch.zeros_like(batch.group)
        log_background = of_genes(self.log_background, genes)[repeat_cells(group, len(features))]
        log_foreground = log_background + softplus(self.output(features, genes))
        log_theta = of_genes(self.log_inverse_dispersion, genes).expand_as(log_background)
        return BackgroundTable(
            NegativeBinomialTable(log_background, log_theta),
            NegativeBinomialTable(log_foreground, log_theta),
            self.mixing(features, genes),
        )

    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        """Expected counts above the background, which is that of the measurement.

        Whether a protein is foreground in a cell follows from its count, too, where the cell has it; else from z alone.
        """
        table = self.distribution(features, batch, genes)
        known = torch.sigmoid(-table.background_logit)
        if batch.present is not None and batch.x.n_columns:
            given = table.foreground_share(repeat_cells(of_genes(dense(batch.x), genes), len(features)))
            known = torch.where(repeat_cells(batch.present, len(features))[:, None], given, known)
        return table.above_background(known)

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        return table_log_prob(self.distribution(features, batch), batch, row_weight)
