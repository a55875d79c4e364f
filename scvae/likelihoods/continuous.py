"""The head for real values: proteins after CLR, mass cytometry after arcsinh, z-scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ..data.batches import Batch
from ..data.beta_range import BetaRange
from ..data.schema import Kind
from ..data.summary import GeneSummary
from ..kernels import reference
from ..kernels.autograd import WeightedLogProb, repeat_cells
from ..kernels.block import Dense
from .base import Likelihood, OutputLayer, dense, of_genes, table_log_prob


@dataclass(frozen=True, eq=False, slots=True)
class GaussianTable:
    """N(mean, scale^2)."""

    mean: Float[Tensor, "rows genes"]
    log_scale: Float[Tensor, "#rows genes"] | Float[Tensor, " genes"]

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        return torch.exp(2.0 * self.log_scale).expand_as(self.mean)

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        return reference.gaussian_log_prob(value, self.mean, self.log_scale)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        noise = torch.randn(self.mean.shape, generator=generator, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + self.log_scale.exp() * noise


class Gaussian(Likelihood):
    """x ~ N(decoder, scale^2), with an unconstrained mean and one learnt scale per gene.

    scale^2 = floor^2 + exp(2 s). Without the floor, the likelihood of a gene that the decoder reproduces exactly grows
    without limit as its scale approaches 0, and the model degenerates into a plain autoencoder.

    Parameters
    ----------
    minimum_scale
        The floor, as a fraction of the gene's standard deviation over the training cells.
    """

    kind: ClassVar[Kind] = "real"
    n_encoder_covariates: ClassVar[int] = 0
    centre: Tensor
    spread: Tensor

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        *,
        minimum_scale: float = 0.1,
        betas: BetaRange | None = None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.minimum_scale = minimum_scale
        self.output = OutputLayer(n_features, n_genes, generator=generator)
        self.log_free_scale = nn.Parameter(torch.zeros(n_genes))
        self.betas = betas
        self.log_free_scale_offset = nn.Parameter(torch.zeros(n_genes)) if betas else None
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("spread", torch.ones(n_genes))

    def start_from(self, summary: GeneSummary) -> None:
        """Centre and spread = mean and standard deviation of each gene (1 for a constant gene); scale = spread."""
        with torch.no_grad():
            spread = summary.standard_deviation
            self.centre.copy_(summary.mean)
            self.spread.copy_(torch.where(spread > 0, spread, 1.0))

    @property
    def loadings(self) -> Float[Tensor, "genes features"]:
        return self.spread[:, None] * self.output.weight

    def encoder_input(self, batch: Batch) -> tuple[Dense, Float[Tensor, "cells covariates"]]:
        return Dense((dense(batch.x) - self.centre) / self.spread), batch.library.new_zeros(len(batch), 0)

    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        return self.output(features)[:, missing], torch.ones_like(batch.library)

    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        return self.output(features), batch.library.new_zeros(len(batch), 0)

    def log_scale(
        self, log_beta: Float[Tensor, " cells"] | None = None
    ) -> Float[Tensor, " genes"] | Float[Tensor, "cells genes"]:
        """log of the bounded scale, in the units of the data."""
        free: Tensor = self.log_free_scale
        if self.betas is not None and self.log_free_scale_offset is not None:
            assert log_beta is not None
            free = free + self.betas.above_middle(log_beta)[:, None] * self.log_free_scale_offset
        floor = torch.full_like(free, self.minimum_scale).log()
        return 0.5 * torch.logaddexp(2.0 * floor, 2.0 * free) + self.spread.log()

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> GaussianTable:
        log_scale = of_genes(self.log_scale(batch.log_beta), genes)
        if log_scale.dim() > 1:
            log_scale = repeat_cells(log_scale, features.shape[0])
        spread = of_genes(self.spread, genes)
        return GaussianTable(of_genes(self.centre, genes) + spread * self.output(features, genes), log_scale)

    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        return self.distribution(features, batch, genes).mean

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        return table_log_prob(self.distribution(features, batch), batch, row_weight)
