"""How large the libraries of a fit were, batch by batch: what cells drawn from the prior are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from .intake import Cells

PROBABILITIES = np.linspace(0.0, 1.0, 65)  # of the quantiles that are kept


@dataclass(frozen=True, slots=True)
class LibrarySizes:
    """Cells and quantiles of the log library size of each batch; without batches, of all cells as one.

    Quantiles and no mean and variance: cells are filtered by their library size, so its distribution has sharp ends.

    Parameters
    ----------
    n_cells
        Cells of each batch.
    log_quantiles
        Evenly spaced quantiles of log(max(library size, 1)), from the smallest to the largest.
    """

    n_cells: tuple[int, ...]
    log_quantiles: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, cells: Cells, n_batches: int) -> LibrarySizes:
        """Those of the cells of a fit, each of whose batches has a cell."""
        log_library = np.log(np.maximum(cells.library, 1.0).astype(np.float64))
        codes = cells.codes[:, 0] if cells.has_batch else np.zeros(len(cells), np.int64)
        groups = [log_library[codes == code] for code in range(n_batches)]
        quantiles = (np.quantile(group, PROBABILITIES).tolist() if len(group) else () for group in groups)
        return cls(tuple(map(len, groups)), tuple(tuple(group) for group in quantiles))

    def draw(self, codes: Int[np.ndarray, " cells"], rng: np.random.Generator) -> Float[np.ndarray, " cells"]:
        """A float32 library size for cells of the given batches, by the inverse of the distribution function."""
        share = rng.random(len(codes))
        library = np.empty(len(codes), np.float32)
        for code in np.unique(codes):
            here = codes == code
            library[here] = np.exp(np.interp(share[here], PROBABILITIES, self.log_quantiles[code]))
        return library

    def to_json(self) -> dict[str, Any]:
        """Numbers in lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LibrarySizes:
        """The inverse of `to_json`."""
        return cls(tuple(record["n_cells"]), tuple(tuple(group) for group in record["log_quantiles"]))
