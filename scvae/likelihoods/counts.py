"""The heads for counts: Poisson, negative binomial and zero-inflated negative binomial."""

from __future__ import annotations

import dataclasses
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import softplus

from ..data.batches import Batch
from ..data.beta_range import BetaRange
from ..data.schema import Kind
from ..data.summary import GeneSummary
from ..kernels import autograd, reference
from ..kernels.autograd import WeightedLogProb, repeat_cells
from ..kernels.block import Dense
from ..kernels.csr import CSR
from .base import LEAST_SHARE, Likelihood, OutputLayer, log_library, of_genes

N_LEVELS = 5  # of theta along β, because the kernels take one theta per group of cells
OFFSET = 0.3  # unit of the offsets of log theta at large β, whose prior sd is then 0.15 around their mean over genes
DEEPEST = 2.0  # library size, in means of the fit, up to which the counts of a mapped cell are taken as they are
LOG_DISPERSION_SPREAD = 0.5  # prior standard deviation of log theta around its mean over genes


@dataclass(frozen=True, eq=False, slots=True)
class PoissonTable:
    """Poisson(mean)."""

    log_mean: Float[Tensor, "rows genes"]

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        return self.log_mean.exp()

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        return self.mean

    @property
    def zero_probability(self) -> Float[Tensor, "rows genes"]:
        """P(x = 0)."""
        return torch.exp(-self.mean)

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        return reference.poisson_log_prob(value, self.log_mean)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        return torch.poisson(self.mean, generator=generator)


@dataclass(frozen=True, eq=False, slots=True)
class NegativeBinomialTable:
    """NB(mean, inverse dispersion theta): variance mean + mean^2 / theta."""

    log_mean: Float[Tensor, "rows genes"]
    log_inverse_dispersion: Float[Tensor, "rows genes"]

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        return self.log_mean.exp()

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        return self.mean + torch.exp(2.0 * self.log_mean - self.log_inverse_dispersion)

    @property
    def zero_probability(self) -> Float[Tensor, "rows genes"]:
        """P(x = 0) = (1 + mean / theta)^-theta."""
        log_theta = self.log_inverse_dispersion
        return torch.exp(-log_theta.exp() * softplus(self.log_mean - log_theta))

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        return reference.negative_binomial_log_prob(value, self.log_mean, self.log_inverse_dispersion)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        """Poisson with a Gamma(theta, theta / mean) rate."""
        theta = self.log_inverse_dispersion.exp().expand_as(self.log_mean)
        log_rate = log_gamma_draw(theta, generator) - self.log_inverse_dispersion + self.log_mean
        return torch.poisson(log_rate.exp(), generator=generator)


@dataclass(frozen=True, eq=False, slots=True)
class ZeroInflatedTable:
    """0 with probability pi = sigmoid(zero_logit), otherwise a draw from `base`."""

    base: NegativeBinomialTable
    zero_logit: Float[Tensor, "rows genes"]

    @property
    def mean(self) -> Float[Tensor, "rows genes"]:
        return torch.sigmoid(-self.zero_logit) * self.base.mean

    @property
    def variance(self) -> Float[Tensor, "rows genes"]:
        keep = torch.sigmoid(-self.zero_logit)
        return keep * self.base.variance + keep * (1.0 - keep) * self.base.mean.square()

    @property
    def zero_probability(self) -> Float[Tensor, "rows genes"]:
        """P(x = 0)."""
        return torch.sigmoid(self.zero_logit) + torch.sigmoid(-self.zero_logit) * self.base.zero_probability

    def log_prob(self, value: Float[Tensor, "rows genes"]) -> Float[Tensor, "rows genes"]:
        return reference.zero_inflated_log_prob(value, self.base.log_prob(value), self.zero_logit)

    def sample(self, generator: torch.Generator) -> Float[Tensor, "rows genes"]:
        value = self.base.sample(generator)
        uniform = torch.rand(value.shape, generator=generator, device=value.device, dtype=value.dtype)
        return torch.where(uniform < torch.sigmoid(self.zero_logit), 0.0, value)


CountTable = PoissonTable | NegativeBinomialTable | ZeroInflatedTable


def log_gamma_draw(shape: Float[Tensor, "..."], generator: torch.Generator) -> Float[Tensor, "..."]:
    """log of a Gamma(shape, 1) draw.

    Gamma(a) = Gamma(a + 1) U^(1/a) in logarithms, so that even a shape of 1e-6, whose draws underflow, gives a finite
    number (Marsaglia & Tsang 2000 for a + 1 >= 1).
    """
    boosted = torch._standard_gamma((shape + 1.0).double(), generator=generator)
    uniform = torch.rand(shape.shape, generator=generator, device=shape.device, dtype=torch.float64)
    return (boosted.log() + torch.log1p(-uniform) / shape.double()).to(shape.dtype)


def measured_share(logits: Float[Tensor, "cells genes"], missing: Int[Tensor, " missing"]) -> Float[Tensor, " cells"]:
    """Expected fraction of the counts in the measured genes; at least `LEAST_SHARE`."""
    return (1.0 - torch.softmax(logits, 1)[:, missing].sum(1)).clamp_min(LEAST_SHARE)


def expected_log1p(
    table: CountTable, scale: Float[Tensor, " cells"], genes: Int[Tensor, " chosen"] | None = None
) -> Float[Tensor, "cells genes"]:
    """E log1p(scale * count) of all genes or some, approximated with all positive counts at their mean.

    The log1p of the mean would be too high because most counts are 0 and log1p is concave.
    """
    mean = of_genes(table.mean, genes)
    above_zero = (1.0 - of_genes(table.zero_probability, genes)).clamp_min(torch.finfo(mean.dtype).eps)
    return above_zero * torch.log1p(scale[:, None] * mean / above_zero)


class CountLikelihood(Likelihood):
    """Base class of the count heads, whose means are proportions x library size.

    The input of the encoder is log1p of the counts, scaled to a common library size, and the log of the cell's library
    size. With log1p of unscaled counts, the encoder would first have to learn to divide.
    """

    kind: ClassVar[Kind] = "counts"
    n_encoder_covariates: ClassVar[int] = 1
    output: OutputLayer
    mean_log_library: Tensor

    def start_from(self, summary: GeneSummary) -> None:
        """Bias = log of the mean proportions; half a count is added, so that the bias of every gene is finite."""
        with torch.no_grad():
            self.output.bias.copy_(torch.log((summary.total + 0.5) / (summary.total + 0.5).sum()))
            self.mean_log_library.fill_(summary.mean_log_library)

    @property
    def loadings(self) -> Float[Tensor, "genes features"]:
        return self.output.weight - self.output.weight.mean(0)

    def shallow(self, batch: Batch, chosen: Bool[Tensor, " cells"]) -> Batch:
        """Scales counts and library size of the chosen cells down to `DEEPEST`, where they are deeper.

        Encoder and dispersions were fitted at the depths of the fit. Read counts are a hundred times as large as counts
        of molecules, but they are not a hundred times as precise, so at their own depth they would outweigh the prior.
        """
        if not isinstance(batch.x, CSR):  # selected on a device for training, whose cells are scaled before
            return batch
        log_depth = log_library(batch, self.mean_log_library.to(batch.library.device))
        scale = torch.exp(-(log_depth - math.log(DEEPEST)).clamp_min(0.0) * chosen)
        x = batch.x.with_values(batch.x.values * scale[batch.x.row_of_stored()])
        return dataclasses.replace(batch, x=x, library=batch.library * scale)

    def encoder_input(self, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
        log_depth = log_library(batch, self.mean_log_library)
        return autograd.log1p_scaled(batch.x, torch.exp(-log_depth)), log_depth[:, None]

    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        share = measured_share(self.output(features), missing)
        whole = dataclasses.replace(batch, library=batch.library / share)
        log_depth = log_library(whole, self.mean_log_library)
        return expected_log1p(self.distribution(features, whole), torch.exp(-log_depth), missing), share

    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        log_depth = log_library(batch, self.mean_log_library)
        return expected_log1p(self.distribution(features, batch), torch.exp(-log_depth)), log_depth[:, None]

    @abstractmethod
    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> PoissonTable | NegativeBinomialTable:
        """See `Likelihood.distribution`."""

    def log_mean(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        """log(library * softmax(logits)); the softmax is over all genes, even if only some are chosen."""
        library = repeat_cells(batch.library, features.shape[0])
        return of_genes(reference.log_softmax_mean(self.output(features), library).to(features.dtype), genes)

    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        """library * softmax(logits)."""
        proportions = of_genes(torch.softmax(self.output(features), dim=1), genes)
        return proportions * repeat_cells(batch.library, features.shape[0])[:, None]


class Poisson(CountLikelihood):
    """x ~ Poisson(library * rho)."""

    def __init__(self, n_features: int, n_genes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.output = OutputLayer(n_features, n_genes, generator=generator)
        self.register_buffer("mean_log_library", torch.zeros(()))

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> PoissonTable:
        return PoissonTable(self.log_mean(features, batch, genes))

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        output = self.output
        bias = output.measured_bias(batch.missing)
        return autograd.poisson(features, output.weight, bias, batch.x, batch.library, row_weight)


class NegativeBinomial(CountLikelihood):
    """x ~ NB(library * rho, theta), with theta per gene, or per gene and group of cells.

    In a model of a range of β, theta per gene depends on β in the upper half of the range: variation that z does not
    explain is dispersion, and z explains little there. One theta for all β cost 3 and 6 nats at β = 10 (worm_embryo,
    sc_mixology). A slope over the whole range of log β would be wrong at small β, where theta hardly changes: it cost
    5 nats at β = 0.1 (sc_mixology).
    """

    def __init__(
        self,
        n_features: int,
        n_genes: int,
        n_groups: int = 1,
        betas: BetaRange | None = None,
        *,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.output = OutputLayer(n_features, n_genes, generator=generator)
        self.register_buffer("mean_log_library", torch.zeros(()))
        self.log_inverse_dispersion = nn.Parameter(torch.zeros(n_groups, n_genes))
        self.betas = betas if n_groups == 1 else None
        self.log_inverse_dispersion_offset = nn.Parameter(torch.zeros(1, n_genes)) if self.betas else None

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> NegativeBinomialTable:
        log_theta, group = self.dispersions(batch)
        log_theta = of_genes(log_theta, genes)[repeat_cells(group, features.shape[0])]
        return NegativeBinomialTable(self.log_mean(features, batch, genes), log_theta)

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        log_theta, group = self.dispersions(batch)
        return autograd.negative_binomial(
            features,
            self.output.weight,
            self.output.measured_bias(batch.missing),
            log_theta,
            batch.x,
            batch.library,
            group,
            row_weight,
        )

    def dispersions(self, batch: Batch) -> tuple[Float[Tensor, "groups genes"], Int[Tensor, " cells"]]:
        """log theta per group of cells and gene, and the group of each cell: its batch or the level of its β."""
        if self.betas is None or self.log_inverse_dispersion_offset is None:
            one = self.log_inverse_dispersion.shape[0] == 1
            return self.log_inverse_dispersion, torch.zeros_like(batch.group) if one else batch.group
        assert batch.log_beta is not None
        levels = torch.linspace(0.0, OFFSET, N_LEVELS, device=batch.library.device)[:, None]
        level = ((N_LEVELS - 1) * self.betas.above_middle(batch.log_beta)).round().long()
        return self.log_inverse_dispersion + levels * self.log_inverse_dispersion_offset, level


class ZeroInflated(Likelihood):
    """A zero-inflated negative binomial: each count becomes 0 with probability pi, which depends on z.

    Parameters
    ----------
    base
        The negative binomial head.
    """

    kind: ClassVar[Kind] = "counts"
    n_encoder_covariates: ClassVar[int] = 1

    def __init__(self, base: NegativeBinomial, n_features: int, n_genes: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.zero_logit = OutputLayer(n_features, n_genes, generator=generator)

    def start_from(self, summary: GeneSummary) -> None:
        """Starts as `base` does, with a zero inflation of 5 %."""
        self.base.start_from(summary)
        nn.init.constant_(self.zero_logit.bias, -3.0)

    @property
    def loadings(self) -> Float[Tensor, "genes features"]:
        return self.base.loadings

    def shallow(self, batch: Batch, chosen: Bool[Tensor, " cells"]) -> Batch:
        return self.base.shallow(batch, chosen)

    def encoder_input(self, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
        return self.base.encoder_input(batch)

    def expected_input(
        self, features: Float[Tensor, "cells features"], batch: Batch, missing: Int[Tensor, " missing"]
    ) -> tuple[Float[Tensor, "cells missing"], Float[Tensor, " cells"]]:
        share = measured_share(self.base.output(features), missing)
        whole = dataclasses.replace(batch, library=batch.library / share)
        log_depth = log_library(whole, self.base.mean_log_library)
        return expected_log1p(self.distribution(features, whole), torch.exp(-log_depth), missing), share

    def expected_encoder_input(
        self, features: Float[Tensor, "cells features"], batch: Batch
    ) -> tuple[Float[Tensor, "cells genes"], Float[Tensor, "cells covariates"]]:
        log_depth = log_library(batch, self.base.mean_log_library)
        return expected_log1p(self.distribution(features, batch), torch.exp(-log_depth)), log_depth[:, None]

    def distribution(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> ZeroInflatedTable:
        return ZeroInflatedTable(self.base.distribution(features, batch, genes), self.zero_logit(features, genes))

    def expected(
        self, features: Float[Tensor, "rows features"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
    ) -> Float[Tensor, "rows genes"]:
        return self.base.expected(features, batch, genes)

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        log_theta, group = self.base.dispersions(batch)
        return autograd.zero_inflated(
            features,
            self.base.output.weight,
            self.base.output.measured_bias(batch.missing),
            self.zero_logit.weight,
            self.zero_logit.bias,
            log_theta,
            batch.x,
            batch.library,
            group,
            row_weight,
        )
