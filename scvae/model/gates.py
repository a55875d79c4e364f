"""Gates through which a hidden layer depends on β."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FIRST_SPREAD = 3.0  # sd of the logits at the ends of the range; most units start specialised for large or small β


class Gate(nn.Module):
    """Scales each unit up or down by β: rows * 2 sigmoid(weights of the knots of β).

    Gates follow the normalisation of a layer, as in Bae et al. 2023 ("Multi-rate VAE", section 4), so that values of β
    do not mix in its statistics. The logits start as lines in log β with a random slope for each unit. If they started
    at 0, all units would keep serving all β equally, which cost 1 to 2 nats at the largest β.

    Parameters
    ----------
    n_knots
        Number of knots of β; see `BetaRange`.
    width
        Number of units.
    """

    def __init__(self, n_knots: int, width: int, *, generator: torch.Generator) -> None:
        super().__init__()
        slope = FIRST_SPREAD * torch.randn(width, generator=generator)
        self.logit = nn.Parameter(torch.linspace(-1.0, 1.0, n_knots)[:, None] * slope)

    def forward(
        self, rows: Float[Tensor, "rows width"], knots: Float[Tensor, "rows knots"]
    ) -> Float[Tensor, "rows width"]:
        return rows * (2.0 * torch.sigmoid(knots @ self.logit))


class Ungated(nn.Module):
    """Takes the place of a gate in a model of one β, and changes nothing."""

    def forward(self, rows: Float[Tensor, "rows width"], knots: object) -> Float[Tensor, "rows width"]:
        return rows


def make_gate(n_knots: int, width: int, *, generator: torch.Generator) -> Gate | Ungated:
    """A gate if there are knots of β; otherwise, a layer that changes nothing."""
    return Gate(n_knots, width, generator=generator) if n_knots else Ungated()
