"""Mixtures of normals as priors: one that was fitted to the cells, and one that is trained with the network."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .posterior import LOG_2_PI, DiagonalNormal
from .prior import Prior

# the start of a mixture that is trained, and what its variances are held in
CENTRE_SD, VARIANCE = 0.8, 0.36
LOG_VARIANCES = (-8.0, 4.0)
AT_ONCE = 2**22  # draws x components x dimensions


class NormalMixture(Prior):
    """sum_k weight_k N(centre_k, covariance_k)."""

    weight: Tensor
    centre: Tensor

    @property
    @abstractmethod
    def within(self) -> Float[Tensor, "components latent"]:
        """Variances of each component."""

    @abstractmethod
    def joint(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells components"]:
        """log weight + log density of each component, in nats; softmax gives the responsibilities."""

    @abstractmethod
    def draw(self, component: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n latent"]:
        """One draw from each of the given components."""

    @property
    def mean(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Mean of the mixture."""
        return self.weight @ self.centre

    @property
    def variance(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Variances of the mixture: within the components, and between their means."""
        between = (self.centre - self.mean).square()
        return self.weight @ (self.within + between)

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        return torch.logsumexp(self.joint(z), dim=-1)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        return self.draw(torch.multinomial(self.weight, n, replacement=True, generator=generator), generator)


class Mixture(NormalMixture):
    """A mixture with full covariance matrices that is not trained: the density of the cells of a fit.

    Parameters
    ----------
    weight
        Weights of the components, which sum to 1.
    centre
        Means of the components.
    factor
        Lower Cholesky factors of their covariance matrices.
    """

    factor: Tensor

    def __init__(
        self,
        weight: Float[Tensor, " components"],
        centre: Float[Tensor, "components latent"],
        factor: Float[Tensor, "components latent latent"],
    ) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("centre", centre)
        self.register_buffer("factor", factor)

    @property
    def within(self) -> Float[Tensor, "components latent"]:
        return self.factor.square().sum(-1)

    def joint(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells components"]:
        n_latent = self.centre.shape[1]
        unit = torch.eye(n_latent, dtype=z.dtype, device=z.device).expand_as(self.factor)
        whiten = torch.linalg.solve_triangular(self.factor, unit, upper=False)
        parts = zip(self.centre, whiten, strict=True)  # one by one, so that memory is rows x components
        square = torch.stack([((z - centre) @ to_white.mT).square().sum(-1) for centre, to_white in parts], -1)
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        joint: Tensor = self.weight.log() - log_volume - 0.5 * (square + n_latent * LOG_2_PI)
        return joint

    def draw(self, component: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n latent"]:
        centre = self.centre[component]
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return centre + (self.factor[component] @ noise[..., None])[..., 0]

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        kept = ~dropped
        covariance = (self.factor @ self.factor.mT)[:, kept][:, :, kept]
        self.centre, self.factor = self.centre[:, kept], torch.linalg.cholesky(covariance)


class TrainedMixture(NormalMixture):
    """A mixture of diagonal normals that is trained with the network (Dilokthanakul et al. 2016 and Jiang et al. 2017).

    Its centres travel through all of the latent space in one run, for which the learning rate of the network is too
    small.

    Parameters
    ----------
    n_latent
        Number of latent dimensions.
    n_components
        Number of components.
    generator
        Draws the centres to start from.
    """

    learning_rate = 10.0  # centres start anywhere, and have some 600 steps to get to the cells

    def __init__(self, n_latent: int, n_components: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.log_weight = nn.Parameter(torch.zeros(n_components))  # up to a constant
        self.centre = nn.Parameter(CENTRE_SD * torch.randn(n_components, n_latent, generator=generator))
        self.log_variance = nn.Parameter(torch.full((n_components, n_latent), math.log(VARIANCE)))

    @property
    def weight(self) -> Float[Tensor, " components"]:  # type: ignore[override]
        """Weights of the components, which sum to 1."""
        return torch.softmax(self.log_weight, 0)

    @property
    def within(self) -> Float[Tensor, "components latent"]:
        return self.log_variance.clamp(*LOG_VARIANCES).exp()

    def joint(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells components"]:
        log_variance = self.log_variance.clamp(*LOG_VARIANCES)
        precision = torch.exp(-log_variance)
        parts = z.reshape(-1, z.shape[-1]).split(max(1, AT_ONCE // self.centre.numel()))
        square = torch.cat([((part[:, None] - self.centre).square() * precision).sum(-1) for part in parts])
        constant = torch.log_softmax(self.log_weight, 0) - 0.5 * (log_variance + LOG_2_PI).sum(-1)
        return constant - 0.5 * square.view(*z.shape[:-1], -1)

    def responsibilities(self, posterior: DiagonalNormal) -> Float[Tensor, "cells components"]:
        """Shares of the components in each cell, with its uncertainty.

        softmax of E_q[log weight_k p(z | k)]: the expectation step for a cell whose z is known up to its posterior.
        """
        uncertain = posterior.variance @ self.within.reciprocal().mT
        return torch.softmax(self.joint(posterior.mean) - 0.5 * uncertain, dim=-1)

    def draw(self, component: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n latent"]:
        centre = self.centre[component]
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return centre + self.within[component].sqrt() * noise

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        self.centre = nn.Parameter(self.centre.detach()[:, ~dropped])
        self.log_variance = nn.Parameter(self.log_variance.detach()[:, ~dropped])
