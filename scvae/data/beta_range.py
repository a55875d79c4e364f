"""The range of β of one model: its knots, and the β that each cell of a batch gets."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from ..common.checks import check_positive

# fractions of the range in log β by which training extends beyond its ends, so that a β there has neighbours on both
# sides; twice as much at the upper end, where too high a rate costs most
MARGIN_BELOW, MARGIN_ABOVE = 0.1, 0.2
LEAN = 0.85  # below 1, larger β are drawn more often, because a small change of the rate costs most there
GOLDEN = 0.5 * (math.sqrt(5.0) - 1.0)


@dataclass(frozen=True, slots=True)
class BetaRange:
    """The range of β that one model is trained for (Bae et al. 2023, "Multi-rate VAE").

    Parameters
    ----------
    low, high
        Smallest and largest β, 0 < low < high.
    """

    low: float
    high: float

    @property
    def default(self) -> float:
        """The β used by default: 1 if it is in the range, otherwise the geometric mean of its ends."""
        return 1.0 if self.low <= 1.0 <= self.high else math.sqrt(self.low * self.high)

    @property
    def n_knots(self) -> int:
        """Number of knots: one for each factor of 10 and one more, at least 2."""
        return 1 + max(1, round(math.log10(self.high / self.low)))

    def hats(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, "cells knots"]:
        """Weights of the knots, which are evenly spaced in log β; only the two knots around a β have weight.

        The weights of a cell sum to 1. Beyond the outermost knots they stay constant.
        """
        last = self.n_knots - 1
        knots = torch.arange(last + 1, device=log_beta.device, dtype=log_beta.dtype)
        return (1.0 - (last * self.share(log_beta)[:, None] - knots).abs()).clamp_min(0.0)

    def relative(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """β of each cell as a multiple of the default."""
        return (log_beta - math.log(self.default)).exp()

    def above_middle(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """Position in the upper half of the range of log β: 0 in the lower half, 1 at the upper end."""
        return (2.0 * self.share(log_beta) - 1.0).clamp_min(0.0)

    def share(self, log_beta: Float[Tensor, " cells"]) -> Float[Tensor, " cells"]:
        """Position in the range of log β: 0 at the lower end and below it, 1 at the upper end and above."""
        return ((log_beta - math.log(self.low)) / math.log(self.high / self.low)).clamp(0.0, 1.0)

    def draw(self, n: int, offset: Float[Tensor, ""]) -> Float[Tensor, " n"]:
        """log β of `n` cells of a training batch: one from each of n strata, at the same position in each stratum.

        Parameters
        ----------
        n
            Number of cells, which are assumed to be in random order.
        offset
            Uniform in [0, 1).
        """
        share = ((torch.arange(n, device=offset.device) + offset) / n) ** LEAN
        width = math.log(self.high / self.low)
        return math.log(self.low) + width * ((1.0 + MARGIN_BELOW + MARGIN_ABOVE) * share - MARGIN_BELOW)

    def spread(self, n: int) -> Float[Tensor, " n"]:
        """log β of `n` cells for evaluation: evenly over the range, independent of the order of the cells."""
        share = (torch.arange(n, dtype=torch.float64) * GOLDEN).remainder(1.0).float()
        return math.log(self.low) + math.log(self.high / self.low) * share


def evenly_spaced(low: float, high: float, n: int) -> list[float]:
    """`n` values of β over a range, evenly on a log scale, rounded to four digits."""
    return [min(max(float(f"{beta:.4g}"), low), high) for beta in np.geomspace(low, high, n)]


def given_betas(betas: ArrayLike) -> list[float]:
    """The user's values of β in ascending order.

    Raises
    ------
    ValueError
        If there are fewer than two different values, or if one is not positive.
    """
    points = sorted({check_positive(beta, "each of betas") for beta in np.asarray(betas).ravel().tolist()})
    if len(points) < 2:
        raise ValueError(
            f"betas has {len(points)} different value(s); pass at least 2, or use scvae.fit(adata, beta=…)"
        )
    return points
