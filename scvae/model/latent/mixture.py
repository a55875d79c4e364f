"""A mixture of normals as prior."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .posterior import LOG_2_PI, DiagonalNormal
from .prior import Prior


class Mixture(Prior):
    """sum_k weight_k N(centre_k, covariance_k), with full covariance matrices.

    Parameters
    ----------
    weight
        Weights of the components, which sum to 1.
    centre
        Means of the components.
    factor
        Lower Cholesky factors of their covariance matrices.
    """

    weight: Tensor
    centre: Tensor
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
    def mean(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Mean of the mixture."""
        return self.weight @ self.centre

    @property
    def variance(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Variances of the mixture: within the components, and between their means."""
        between = (self.centre - self.mean).square()
        return self.weight @ (self.factor.square().sum(-1) + between)

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        return torch.logsumexp(self.joint(z), dim=-1)

    def joint(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells components"]:
        """log weight + log density of each component, in nats; softmax gives the responsibilities."""
        n_latent = self.centre.shape[1]
        unit = torch.eye(n_latent, dtype=z.dtype, device=z.device).expand_as(self.factor)
        whiten = torch.linalg.solve_triangular(self.factor, unit, upper=False)
        parts = zip(self.centre, whiten, strict=True)  # one by one, so that memory is rows x components
        square = torch.stack([((z - centre) @ to_white.mT).square().sum(-1) for centre, to_white in parts], -1)
        log_volume = self.factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        joint: Tensor = self.weight.log() - log_volume - 0.5 * (square + n_latent * LOG_2_PI)
        return joint

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        return self.draw(torch.multinomial(self.weight, n, replacement=True, generator=generator), generator)

    def draw(self, component: Int[Tensor, " n"], generator: torch.Generator) -> Float[Tensor, "n latent"]:
        """One draw from each of the given components."""
        centre = self.centre[component]
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        return centre + (self.factor[component] @ noise[..., None])[..., 0]

    def kl(self, posterior: DiagonalNormal, draws: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "cells 1"]:
        log_ratio = posterior.log_prob(draws) - self.log_prob(draws)
        return log_ratio.reshape(-1, len(posterior.mean)).mean(0)[:, None]

    def usage(self, posterior: DiagonalNormal) -> Float[Tensor, "cells latent"]:
        mean, variance = self.mean, self.variance
        relative = posterior.log_variance - variance.log()
        return 0.5 * (relative.expm1() - relative + (posterior.mean - mean).square() / variance)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        kept = ~dropped
        covariance = (self.factor @ self.factor.mT)[:, kept][:, :, kept]
        self.centre, self.factor = self.centre[:, kept], torch.linalg.cholesky(covariance)
