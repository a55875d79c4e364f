"""Many β in one model: where it learns what β does, and which β each cell of a batch is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from ..common.checks import check_positive

# shares of the range in log β by which cells are trained beyond its ends, where a β would have neighbours on one side
# only; twice as much at the upper end, where too high a rate costs most
MARGIN_BELOW, MARGIN_ABOVE = 0.1, 0.2
LEAN = 0.85  # below 1, larger β are drawn more often: there a small change of the rate costs most
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
        knots = torch.arange(last + 1, device=log_beta.device, dtype=log_beta.dtype)
        return (1.0 - (last * self.share(log_beta)[:, None] - knots).abs()).clamp_min(0.0)

    def relative(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """β of each cell as a multiple of the default."""
        return (log_beta - math.log(self.default)).exp()

    def above_middle(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """Place in the upper half of the range of log β: 0 in the lower half, 1 at the upper end."""
        return (2.0 * self.share(log_beta) - 1.0).clamp_min(0.0)

    def share(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """Place in the range of log β: 0 at the lower end and below it, 1 at the upper end and above."""
        return ((log_beta - math.log(self.low)) / math.log(self.high / self.low)).clamp(0.0, 1.0)

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
        return math.log(self.low) + width * ((1.0 + MARGIN_BELOW + MARGIN_ABOVE) * share - MARGIN_BELOW)

    def spread(self, n: int) -> Float[Tensor, " n"]:
        """log β of `n` cells to be judged by: evenly over the range, independent of the order of the cells."""
        share = (torch.arange(n, dtype=torch.float64) * GOLDEN).remainder(1.0).float()
        return math.log(self.low) + math.log(self.high / self.low) * share


def evenly_spaced(low: float, high: float, n: int) -> list[float]:
    """`n` β's over a range, evenly on a log scale, rounded to four digits."""
    return [min(max(float(f"{beta:.4g}"), low), high) for beta in np.geomspace(low, high, n)]


def given_betas(betas: ArrayLike) -> list[float]:
    """The user's β's in rising order.

    Raises
    ------
    ValueError
        If there are not two different ones, or one is not positive.
    """
    points = sorted({check_positive(beta, "each of betas") for beta in np.asarray(betas).ravel().tolist()})
    if len(points) < 2:
        raise ValueError(
            f"betas has {len(points)} different value(s); pass at least 2, or use scvae.fit(adata, beta=…)"
        )
    return points
