"""The prior of the latent variables: what is asked of any, and N(0, I)."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .posterior import LOG_2_PI, DiagonalNormal


class Prior(nn.Module, ABC):
    """p(z): where a cell lies before its data are seen. `mean` and `variance` are those of each dimension."""

    mean: Tensor
    variance: Tensor
    learning_rate = 1.0  # of its parameters, relative to that of the network
    n_noise = 0  # standard normal numbers for each cell, besides those of its draw, that `rate` takes in training

    @abstractmethod
    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        """log p(z) in nats."""

    @abstractmethod
    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        """`n` draws, without a gradient."""

    def kl(
        self, posterior: DiagonalNormal, draws: Float[Tensor, "*draws cells latent"]
    ) -> Float[Tensor, "cells summands"]:
        """KL(q || p) of each cell in nats as summands: one for each dimension if p factorises, else a single one.

        Exact where there is a closed form; otherwise the mean of log q - log p over `draws` from q, with its gradient.
        """
        log_ratio = posterior.log_prob(draws) - self.log_prob(draws)
        return log_ratio.reshape(-1, len(posterior.mean)).mean(0)[:, None]

    def usage(self, posterior: DiagonalNormal) -> Float[Tensor, "cells latent"]:
        """KL of q from a normal with the prior's mean and variance, in each dimension alone, in nats.

        The mean over cells is an upper bound on the information that a dimension has about them.
        """
        mean, variance = self.mean, self.variance
        relative = posterior.log_variance - variance.log()
        return 0.5 * (relative.expm1() - relative + (posterior.mean - mean).square() / variance)

    @abstractmethod
    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        """Removes latent dimensions: what remains is the marginal law of the others.

        Raises
        ------
        ValueError
            If that has no closed form.
        """

    def inferred(self, encoded: DiagonalNormal) -> DiagonalNormal:
        """q(z | x), given what the encoder says."""
        return encoded

    def decoded(self, z: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """What the decoder sees of z."""
        return z

    def rate(
        self,
        posterior: DiagonalNormal,
        draws: Float[Tensor, "cells latent"],
        noise: Float[Tensor, "cells noise"],
    ) -> Float[Tensor, "cells summands"]:
        """`kl`, or in training an estimate of it that takes `n_noise` standard normal numbers for each cell."""
        return self.kl(posterior, draws)

    def penalty(self, draws: Float[Tensor, "cells latent"]) -> Float[Tensor, " cells"] | None:
        """What training adds to the negative ELBO of each cell; None for nothing."""
        return None

    def follow(
        self,
        draws: Float[Tensor, "cells latent"],
        cell_weight: Float[Tensor, " cells"],
        noise: Float[Tensor, "cells noise"],
    ) -> None:
        """What is learnt from the draws of a training step without a gradient."""

    def anneal(self, done: float) -> None:
        """Sets what changes over a training, of which this fraction is done."""

    @property
    def is_ready(self) -> bool:
        """Whether a network with this prior can be kept; before `start_at` it may not be what was asked for."""
        return True

    def wants_start(self, done: float) -> bool:
        """Whether it is time for `start_at` before the epoch after which this fraction of the training is done."""
        return False

    def start_at(self, z: Float[Tensor, "cells latent"], group: Int[Tensor, " cells"]) -> None:
        """Starts what the prior learns at groups of cells."""

    def values(self) -> tuple[Float[Tensor, " values"], Float[Tensor, "values latent"]] | None:
        """Log probability and place of each value that the decoder sees; None if there are infinitely many."""
        return None


class StandardNormal(Prior):
    """N(0, I)."""

    def __init__(self, n_latent: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_latent), persistent=False)
        self.register_buffer("variance", torch.ones(n_latent), persistent=False)

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        return -0.5 * (z.square() + LOG_2_PI).sum(-1)

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        return torch.randn((n, len(self.mean)), generator=generator, device=generator.device)

    def kl(
        self, posterior: DiagonalNormal, draws: Float[Tensor, "*draws cells latent"]
    ) -> Float[Tensor, "cells latent"]:
        return self.usage(posterior)

    def usage(self, posterior: DiagonalNormal) -> Float[Tensor, "cells latent"]:
        """(mean^2 + variance - 1 - log variance) / 2 (Kingma & Welling 2014, appendix B)."""
        mean, log_variance = posterior.mean, posterior.log_variance
        return 0.5 * torch.addcmul(log_variance.expm1() - log_variance, mean, mean)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        self.mean, self.variance = self.mean[~dropped], self.variance[~dropped]
