"""A flow as prior: a normal variable, moved through invertible layers whose volume change is known."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import silu

from ...common.rng import even_noise
from ..blocks import Linear
from .posterior import LOG_2_PI
from .prior import Prior

COUPLINGS, WIDTH = 4, 64
STEEPEST = 2.0  # bound of the log of a coupling's scale; without one, a single odd cell can break a training
MOMENTS, POINTS = 7, 2**12  # random stream and number of the points behind mean and variance


class Coupling(nn.Module):
    """An affine coupling: some dimensions are scaled and shifted by functions of the others (Dinh et al. 2017).

    Parameters
    ----------
    moves
        Which dimensions are moved.
    generator
        Draws the weights of the hidden layer. The last layer starts at 0, so that nothing is moved at first.
    """

    moved: Tensor
    fixed: Tensor

    def __init__(self, moves: Bool[Tensor, " latent"], *, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("moved", moves.nonzero()[:, 0], persistent=False)
        self.register_buffer("fixed", (~moves).nonzero()[:, 0], persistent=False)
        self.hidden = Linear(len(self.fixed), WIDTH, generator=generator)
        self.output = Linear(WIDTH, 2 * len(self.moved), generator=generator)
        nn.init.zeros_(self.output.weight)

    def _terms(
        self, rows: Float[Tensor, "rows latent"]
    ) -> tuple[Float[Tensor, "rows moved"], Float[Tensor, "rows moved"]]:
        """Shift and log scale, which follow from the dimensions that are not moved."""
        shift, steepness = self.output(silu(self.hidden(rows[:, self.fixed]))).chunk(2, dim=1)
        return shift, STEEPEST * torch.tanh(steepness / STEEPEST)

    def forward(self, noise: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """From the normal variable towards z."""
        shift, log_scale = self._terms(noise)
        return noise.index_copy(1, self.moved, noise[:, self.moved] * log_scale.exp() + shift)

    def inverse(self, z: Float[Tensor, "rows latent"]) -> tuple[Float[Tensor, "rows latent"], Float[Tensor, " rows"]]:
        """From z towards the normal variable, with the log-determinant of this map."""
        shift, log_scale = self._terms(z)
        return z.index_copy(1, self.moved, (z[:, self.moved] - shift) * torch.exp(-log_scale)), -log_scale.sum(1)


class Flow(Prior):
    """The law of a normal variable after affine couplings, trained with the network (Chen et al. 2017).

    log p(z) is exact, by change of variables (Dinh et al. 2017, equation 2): log N(u; 0, I) + log |det du / dz|. Mean
    and variance have no closed form. They are those of fixed points, renewed whenever the network is set to evaluation.

    Parameters
    ----------
    n_latent
        Number of latent dimensions, at least 2.
    generator
        Draws the weights to start from, at which z has the law N(0, I).
    """

    noise: Tensor

    def __init__(self, n_latent: int, *, generator: torch.Generator) -> None:
        super().__init__()
        place = torch.arange(n_latent)
        halves = (place % 2 == 0, place % 2 == 1, place < n_latent // 2, place >= n_latent // 2)
        self.couplings = nn.ModuleList(Coupling(halves[i], generator=generator) for i in range(COUPLINGS))
        self.register_buffer("noise", even_noise(POINTS, n_latent, 0, MOMENTS), persistent=False)
        self.register_buffer("mean", torch.zeros(n_latent), persistent=False)
        self.register_buffer("variance", torch.ones(n_latent), persistent=False)

    def train(self, mode: bool = True) -> Flow:
        super().train(mode)
        if not mode:
            with torch.no_grad():
                z = self.moved(self.noise)
                self.mean, self.variance = z.mean(0), z.var(0)
        return self

    def moved(self, noise: Float[Tensor, "rows latent"]) -> Float[Tensor, "rows latent"]:
        """z from a normal variable."""
        for coupling in self.couplings:
            noise = coupling(noise)
        return noise

    def normal(self, z: Float[Tensor, "rows latent"]) -> tuple[Float[Tensor, "rows latent"], Float[Tensor, " rows"]]:
        """The normal variable behind z, and the log-determinant of this map."""
        log_volume = z.new_zeros(len(z))
        for coupling in reversed(self.couplings):
            assert isinstance(coupling, Coupling)
            z, change = coupling.inverse(z)
            log_volume = log_volume + change
        return z, log_volume

    def log_prob(self, z: Float[Tensor, "*draws cells latent"]) -> Float[Tensor, "*draws cells"]:
        noise, log_volume = self.normal(z.reshape(-1, z.shape[-1]))
        log_density: Tensor = log_volume - 0.5 * (noise.square() + LOG_2_PI).sum(-1)
        return log_density.view(z.shape[:-1])

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Float[Tensor, "n latent"]:
        like = self.noise
        noise = torch.randn((n, like.shape[1]), generator=generator, dtype=like.dtype, device=generator.device)
        return self.moved(noise)

    def drop_dimensions(self, dropped: Bool[Tensor, " latent"]) -> None:
        raise ValueError("a flow has no closed form without some of its dimensions")
