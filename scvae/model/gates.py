"""How a hidden layer depends on β."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

FIRST_SPREAD = 3.0  # of the logits at the ends of the range: most units begin as units of large or of small β


class Gate(nn.Module):
    """Turns each unit up or down: rows * 2 sigmoid(weights of the knots of β).

    Put after a layer's normalisation, as in Bae et al. 2023 ("Multi-rate VAE", section 4), so that β's do not mix in
    its statistics. The logits begin as lines in log β with a slope drawn for each unit: from a start at 0, all units
    would go on serving all β alike, which cost 1 to 2 nats at the largest β.

    Parameters
    ----------
    n_knots
        Knots of β; see `BetaRange`.
    width
        Units.
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
    """What stands for a gate in a model of one β."""

    def forward(self, rows: Float[Tensor, "rows width"], knots: object) -> Float[Tensor, "rows width"]:
        return rows


def make_gate(n_knots: int, width: int, *, generator: torch.Generator) -> Gate | Ungated:
    """A gate for a model of many β; without knots, one that is always open."""
    return Gate(n_knots, width, generator=generator) if n_knots else Ungated()
