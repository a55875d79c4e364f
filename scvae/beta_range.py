"""Many β in one model: where it learns what β does, and which β each cell of a batch is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

MARGIN = 0.1  # of the range in log β, at both ends: a β at the very end would have neighbours on one side only
LEAN = 0.8  # below 1, larger β are drawn more often: there a small change of the rate costs most
GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


@dataclass(frozen=True, slots=True)
class BetaRange:
    """The β's that one model is trained for (Bae et al. 2023, "Multi-rate VAE").

    Parameters
    ----------
    low, high
        Smallest and largest β, 0 < low < high.
    """

    low: float
    high: float

    @property
    def default(self) -> float:
        """The β that stands for all: 1 if it is among them, else their geometric middle."""
        return 1.0 if self.low <= 1.0 <= self.high else math.sqrt(self.low * self.high)

    @property
    def n_knots(self) -> int:
        """One knot for each factor of 10 and one more, at least 2."""
        return 1 + max(1, round(math.log10(self.high / self.low)))

    def hats(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, "cells knots"]:
        """Weights of the knots, evenly spaced in log β: a β between two knots belongs to both in part, and to no other.

        The weights of a cell add up to 1. Beyond the outermost knots they stay as they are there.
        """
        last = self.n_knots - 1
        place = (last * self._share(log_beta)).clamp(0.0, float(last))
        knots = torch.arange(last + 1, device=log_beta.device, dtype=log_beta.dtype)
        return (1.0 - (place[:, None] - knots).abs()).clamp_min(0.0)

    def draw(self, n: int, offset: Float[Tensor, ""]) -> Float[Tensor, " n"]:
        """log β of `n` cells of a training batch: one from each of n strata, at the same place in all of them.

        Parameters
        ----------
        n
            Number of cells; their order is taken to be random.
        offset
            Uniform in [0, 1).
        """
        share = ((torch.arange(n, device=offset.device) + offset) / n) ** LEAN
        width = math.log(self.high / self.low)
        return math.log(self.low) + width * ((1.0 + 2.0 * MARGIN) * share - MARGIN)

    def spread(self, n: int) -> Float[Tensor, " n"]:
        """log β of `n` cells to be judged by: evenly over the range, independent of the order of the cells."""
        share = (torch.arange(n, dtype=torch.float64) * GOLDEN).remainder(1.0).float()
        return math.log(self.low) + math.log(self.high / self.low) * share

    def _share(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        return (log_beta - math.log(self.low)) / math.log(self.high / self.low)
