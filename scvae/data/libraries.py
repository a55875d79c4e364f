"""How large the libraries of a fit were, batch by batch: what cells drawn from the prior are given."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

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
    def of(cls, library: Float[np.ndarray, " cells"], batch: Int[np.ndarray, " cells"], n_batches: int) -> LibrarySizes:
        """Those of some cells, with the code of the batch of each; a batch may be without cells."""
        log_library = np.log(np.maximum(library, 1.0).astype(np.float64))
        groups = [log_library[batch == code] for code in range(n_batches)]
        quantiles = (np.quantile(group, PROBABILITIES).tolist() if len(group) else () for group in groups)
        return cls(tuple(map(len, groups)), tuple(tuple(group) for group in quantiles))

    def followed_by(self, others: LibrarySizes) -> LibrarySizes:
        """These batches as they are, and after them those of `others`, which counts from the same first batch."""
        n = len(self.n_cells)
        return LibrarySizes(self.n_cells + others.n_cells[n:], self.log_quantiles + others.log_quantiles[n:])

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
