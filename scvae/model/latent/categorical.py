"""A category for every cell, and a normal state given the category."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ...config import Relaxation
from .discrete import MEMORY, Discrete
from .posterior import LOG_2_PI, DiagonalNormal

LOG_VARIANCE_RANGE = (-8.0, 4.0)
NARROWEST = 0.05  # variance added to that of the cells that a category starts with
HOTTEST, COLDEST, COLD_AT = 1.0, 0.3, 0.7  # temperatures, and the fraction of the training at which the last is reached


class Categorical(Discrete):
    """p(y) = 1 / n, p(z | y) = N(centre_y, diag(exp(log_variance_y))), learnt; the decoder sees z.

    q(y, z | x) = q(y | x) q(z | x). The best q(y | x) for any q(z | x) is proportional to exp(-KL_y), with KL_y that of
    q(z | x) from p(z | y). It is used, so that no network has to learn it (as in VaDE, Jiang et al. 2017, equation 16).
    The KL of y and z is then -log mean_y exp(-KL_y), an upper bound on that of z from the mixture (Hershey & Olsen
    2007). `relaxation` replaces this sum over categories in training by a draw of y, with a temperature that falls from
    1 to 0.3 (Jang et al. 2017; Maddison et al. 2017): the same in the limit of small temperatures, with noise.

    Until the categories start (see `Discrete`), p(z) = N(0, I).

    Parameters
    ----------
    n_categories
        Number of categories.
    n_latent
        Number of latent dimensions.
    relaxation
        ``"none"``: the exact sum; ``"gumbel"``: weights from a Gumbel-softmax; ``"straight_through"``: the category of
        the largest weight, with the gradient of the weights.
    """

    kind = "category"
    temperature: Tensor

    def __init__(self, n_categories: int, n_latent: int, *, relaxation: Relaxation = "none") -> None:
        super().__init__(n_categories)
        self.relaxation = relaxation
        self.n_noise = 0 if relaxation == "none" else n_categories
        self.centre = nn.Parameter(torch.zeros(n_categories, n_latent))
        self.log_variance = nn.Parameter(torch.zeros(n_categories, n_latent))
        self.register_buffer("temperature", torch.tensor(HOTTEST), persistent=False)

    @property
    def _centre(self) -> Float[Tensor, "categories latent"]:
        return self.started * self.centre

    @property
    def _log_variance(self) -> Float[Tensor, "categories latent"]:
        return self.started * self.log_variance.clamp(*LOG_VARIANCE_RANGE)

    @property
    def mean(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Mean over categories."""
        return self._centre.detach().mean(0)

    @property
    def variance(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Variance within categories and between them."""
        return self._log_variance.detach().exp().mean(0) + self.between

    @property
    def between(self) -> Float[Tensor, " latent"]:
        """Variance between the centres of categories."""
        return self._centre.detach().var(0, correction=0)

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        return torch.logsumexp(self.joint(z), dim=-1)

    def joint(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells categories"]:
        """log p(y) + log p(z | y)."""
        log_variance = self._log_variance
        square = (z[..., None, :] - self._centre).square() * (-log_variance).exp()
        joint: Tensor = -0.5 * (square + log_variance + LOG_2_PI).sum(-1) - math.log(len(self.centre))
        return joint

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        centre, sd = self._centre.detach(), (0.5 * self._log_variance.detach()).exp()
        category = torch.randint(len(centre), (n,), generator=generator, device=centre.device)
        noise = torch.randn((n, centre.shape[1]), generator=generator, dtype=centre.dtype, device=centre.device)
        return centre[category] + sd[category] * noise

    def kl_of_each(self, posterior: DiagonalNormal) -> Float[Tensor, "cells categories latent"]:
        """KL(q(z | x) || p(z | y)) for every y, in each dimension."""
        log_variance = self._log_variance
        relative = posterior.log_variance[:, None] - log_variance
        square = (posterior.mean[:, None] - self._centre).square() * (-log_variance).exp()
        return 0.5 * (relative.expm1() - relative + square)

    def membership(self, posterior: DiagonalNormal) -> Float[Tensor, "cells categories"]:
        """q(y | x)."""
        return torch.softmax(-self.kl_of_each(posterior).sum(-1), dim=1)

    def kl(
        self, posterior: DiagonalNormal, draws: Float[Tensor, "*draws cells latent"]
    ) -> Float[Tensor, "cells summands"]:
        """KL(q(y, z | x) || p(y, z)), the sum over categories: a summand for each dimension, and one for y."""
        each = self.kl_of_each(posterior)
        return self._summands(each, torch.softmax(-each.sum(-1), dim=1))

    def usage(self, posterior: DiagonalNormal) -> Float[Tensor, "cells latent"]:
        """The same, with the KL of y shared out among the dimensions."""
        summands = self.kl(posterior, posterior.mean)
        return summands[:, :-1] + self.in_proportion(summands[:, -1], self.between)

    def rate(
        self, posterior: DiagonalNormal, draws: Float[Tensor, "cells latent"], noise: Float[Tensor, "cells noise"]
    ) -> Float[Tensor, "cells summands"]:
        """With a relaxation, in training, the KL of z at a relaxed draw of y."""
        if not self.n_noise or not self.training:
            return self.kl(posterior, draws)
        each = self.kl_of_each(posterior)
        gumbel = -(-torch.special.log_ndtr(noise)).log()
        weight = torch.softmax((gumbel - each.sum(-1)) / self.temperature, dim=1)
        if self.relaxation == "straight_through":
            chosen = torch.nn.functional.one_hot(weight.argmax(1), len(self.centre)).to(weight)
            weight = weight + (chosen - weight).detach()
        return self._summands(each, weight)

    def _summands(
        self, each: Float[Tensor, "cells categories latent"], weight: Float[Tensor, "cells categories"]
    ) -> Float[Tensor, "cells summands"]:
        """KL of z in each dimension with these weights of the categories, and KL of y."""
        log_q = torch.log_softmax(-each.sum(-1), dim=1)
        of_type = (log_q.exp() * (log_q + math.log(len(self.centre)))).sum(1, keepdim=True)
        return torch.cat([torch.einsum("ck,ckd->cd", weight, each), of_type], dim=1)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        self.centre = nn.Parameter(self.centre.detach()[:, ~dropped])
        self.log_variance = nn.Parameter(self.log_variance.detach()[:, ~dropped])

    @torch.no_grad()
    def start_at(self, z: Float[Tensor, "cells latent"], group: Int[Tensor, " cells"]) -> None:
        for k in group.unique():
            own = z[group == k]
            self.centre[k] = own.mean(0)
            self.log_variance[k] = (own.var(0, correction=0) + NARROWEST).log()
        self.started.fill_(1.0)

    def anneal(self, done: float) -> None:
        cold = min(1.0, done / COLD_AT)
        self.temperature.fill_(HOTTEST ** (1.0 - cold) * COLDEST**cold)

    @torch.no_grad()
    def follow(
        self,
        draws: Float[Tensor, "cells latent"],
        cell_weight: Float[Tensor, " cells"],
        noise: Float[Tensor, "cells noise"],
    ) -> None:
        """Counts the cells of each category."""
        here = cell_weight @ torch.softmax(self.joint(draws), dim=-1)
        if self.training and bool(torch.isfinite(here).all()):
            self.share.lerp_(here, 1.0 - MEMORY)
