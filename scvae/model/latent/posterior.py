"""The approximate posterior of the latent variables of a cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

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
