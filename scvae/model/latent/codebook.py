"""Quantised latent variables: the decoder sees the nearest of some codes (VQ-VAE)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .discrete import MEMORY, Discrete
from .posterior import DiagonalNormal

COMMITMENT = 0.25  # van den Oord et al. 2017, section 3.2
DEAD = 0.1  # share of the cells, relative to equal shares, below which a code starts again at a cell
REBORN = 0.3  # that it then has
SMOOTHING = 0.01  # cells, relative to equal shares, added to every code, so that none has probability 0
NARROWEST = 1e-6  # added to the variance within codes
RESTARTS_UNTIL = 0.7  # of the training: later ones would not have settled at its end


@dataclass(frozen=True, eq=False, slots=True)
class Rounded(DiagonalNormal):
    """The encoder's output before it is rounded to a code; it has no noise, and the variance is that within codes."""

    def reparameterize(self, noise: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells latent"]:
        """The mean."""
        return self.mean.expand_as(noise)


class Codebook(Discrete):
    """One of `n_codes` codes, the nearest to the encoder's output (van den Oord et al. 2017, "VQ-VAE").

    z is the encoder's output before it is rounded. The decoder sees the nearest code, and its gradient goes straight
    through to z (section 3.1). Codes are moving averages of the z of their cells (appendix A.1; Razavi et al. 2019).
    The commitment, 0.25 times the squared distance, draws z towards its code. A code that few cells use starts again at
    a cell of the batch. p(code) is the share of its cells, so the mean rate is the cross entropy of the codes with
    their usage: log n_codes nats if all are used alike, and less otherwise. Until the codes start (see `Discrete`), the
    decoder sees z itself.

    Parameters
    ----------
    n_codes
        Number of codes.
    n_latent
        Number of latent dimensions.
    """

    kind = "code"
    codes: Tensor
    spread: Tensor

    def __init__(self, n_codes: int, n_latent: int) -> None:
        super().__init__(n_codes)
        self.register_buffer("codes", torch.zeros(n_codes, n_latent))
        self.register_buffer("spread", torch.ones(n_latent))
        self.restarting = True

    @property
    def log_weight(self) -> Float[Tensor, " codes"]:
        """log p(code)."""
        smooth = self.share + SMOOTHING / len(self.share)
        log_weight: Tensor = (smooth / smooth.sum()).log()
        return log_weight

    @property
    def mean(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Mean of the codes by their probability."""
        return self.log_weight.exp() @ self.codes

    @property
    def variance(self) -> Float[Tensor, " latent"]:  # type: ignore[override]
        """Variance between codes."""
        return self.log_weight.exp() @ (self.codes - self.mean).square()

    def nearest(self, z: Float[Tensor, "rows latent"]) -> Int[Tensor, " rows"]:
        """The code of each row."""
        distance = self.codes.square().sum(1) - 2.0 * (z @ self.codes.T)  # but for |z|^2
        return distance.argmin(1)

    def membership(self, posterior: DiagonalNormal) -> Float[Tensor, "cells codes"]:
        """1 for the code of the cell, else 0."""
        return torch.nn.functional.one_hot(self.nearest(posterior.mean), len(self.codes)).to(posterior.mean)

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        """log p of the code of z: a probability, not a density."""
        return self.log_weight[self.nearest(z.reshape(-1, z.shape[-1]))].view(z.shape[:-1])

    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        return self.codes[torch.multinomial(self.log_weight.exp(), n, replacement=True, generator=generator)]

    def usage(self, posterior: DiagonalNormal) -> Float[Tensor, "cells latent"]:
        """-log p(code), shared out among the dimensions by the variance between codes in each."""
        return self.in_proportion(-self.log_prob(posterior.mean), self.variance)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        self.codes, self.spread = self.codes[:, ~dropped], self.spread[~dropped]

    def inferred(self, encoded: DiagonalNormal) -> Rounded:
        return Rounded(encoded.mean, self.spread.log().expand_as(encoded.mean))

    def decoded(self, z: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """The code of z, with the gradient of z."""
        return z + self.started * (self.codes[self.nearest(z)] - z).detach()

    def penalty(self, draws: Float[Tensor, "cells latent"]) -> Float[Tensor, " cells"]:
        """The commitment."""
        return self.started * COMMITMENT * (draws - self.codes[self.nearest(draws)]).square().sum(1)

    def values(self) -> tuple[Float[Tensor, " codes"], Float[Tensor, "codes latent"]]:
        return self.log_weight, self.codes

    @torch.no_grad()
    def start_at(self, z: Float[Tensor, "cells latent"], group: Int[Tensor, " cells"]) -> None:
        for k in group.unique():
            own = z[group == k]
            self.codes[k], self.share[k] = own.mean(0), len(own) / len(z)
        self.spread.copy_((z - self.codes[group]).square().mean(0) + NARROWEST)
        self.started.fill_(1.0)

    def anneal(self, done: float) -> None:
        self.restarting = done < RESTARTS_UNTIL

    @torch.no_grad()
    def follow(
        self,
        draws: Float[Tensor, "cells latent"],
        cell_weight: Float[Tensor, " cells"],
        noise: Float[Tensor, "cells noise"],
    ) -> None:
        """Moves the codes towards the mean of their cells, and starts dead codes again at cells drawn at random."""
        if not self.training or not bool(self.started) or not bool(torch.isfinite(draws).all()):
            return
        code = self.nearest(draws)
        here = torch.zeros_like(self.share).index_add_(0, code, cell_weight)
        total = torch.zeros_like(self.codes).index_add_(0, code, cell_weight[:, None] * draws)
        self.spread.lerp_((cell_weight @ (draws - self.codes[code]).square()) + NARROWEST, 1.0 - MEMORY)
        self.share.lerp_(here, 1.0 - MEMORY)
        step = (1.0 - MEMORY) / self.share.clamp_min(1e-30)
        self.codes += step[:, None] * (total - here[:, None] * self.codes)
        if self.restarting:
            dead = torch.nonzero(self.share < DEAD / len(self.share))[:, 0]
            chosen = noise[:, 0].argsort()[: len(dead)]
            self.codes[dead[: len(chosen)]] = draws[chosen]
            self.share[dead[: len(chosen)]] = REBORN / len(self.share)
