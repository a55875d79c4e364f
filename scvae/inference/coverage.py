"""How often central intervals of a predicted measurement hold, kept with the model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

# of the intervals that are counted: closer where a few values are outside
LEVELS = np.concatenate([np.arange(0.0, 0.8, 0.05), np.arange(0.8, 0.98, 0.02), [0.98, 0.985, 0.99, 0.995, 1.0]])


@dataclass(frozen=True, slots=True)
class Coverage:
    """Shares of held-out values in their central intervals.

    Parameters
    ----------
    n_cells
        Number of held-out cells.
    shares
        Share of the values of all features in the interval of each of `LEVELS`, ascending.
    """

    n_cells: int
    shares: tuple[float, ...]

    def level(self, interval: float) -> float:
        """The level of the interval that holds as often as `interval` says.

        By split-conformal prediction with the posterior predictive distribution (Vovk et al. 2005; Chernozhukov et al.
        2021): for a new cell that is like these, it holds with at least this probability, for which the share is raised
        by one part in the number of cells. 1 if no interval of the model holds as often.
        """
        return float(np.interp(interval * (1.0 + 1.0 / self.n_cells), self.shares, LEVELS))

    def to_json(self) -> dict[str, Any]:
        """The numbers as lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any] | None) -> Coverage | None:
        """The inverse of `to_json`."""
        return None if record is None else cls(record["n_cells"], tuple(record["shares"]))
