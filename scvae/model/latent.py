"""The latent space: prior, approximate posterior and the KL divergence between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

LOG_2_PI = math.log(2.0 * math.pi)


@dataclass(frozen=True, eq=False, slots=True)
class DiagonalNormal:
    """q(z | x) = N(mean, diag(exp(log_variance))), one row per cell."""

    mean: Float[Tensor, "cells latent"]
    log_variance: Float[Tensor, "cells latent"]

    @property
    def variance(self) -> Float[Tensor, "cells latent"]:
        """Variances."""
        return self.log_variance.exp()

    def reparameterize(self, noise: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells latent"]:
        """mean + sigma * noise, with noise from N(0, I) (Kingma & Welling 2014, section 2.4)."""
        return self.mean + (0.5 * self.log_variance).exp() * noise

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        """log q(z | x) in nats."""
        square = (z - self.mean).square() * (-self.log_variance).exp()
        return -0.5 * (square + self.log_variance + LOG_2_PI).sum(-1)

    def kl_to_standard_normal(self) -> Float[Tensor, "cells latent"]:
        """KL(q || N(0, 1)) per dimension: (mean^2 + variance - 1 - log variance) / 2 (Kingma & Welling, appendix B)."""
        return 0.5 * torch.addcmul(self.log_variance.expm1() - self.log_variance, self.mean, self.mean)


def standard_normal_log_prob(z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
    """log N(z | 0, I), the prior, in nats."""
    return -0.5 * (z.square() + LOG_2_PI).sum(-1)
