"""The library sizes of a fit in each batch, for cells drawn from the prior."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int

PROBABILITIES = np.linspace(0.0, 1.0, 65)  # of the stored quantiles


@dataclass(frozen=True, slots=True)
class LibrarySizes:
    """Number of cells and quantiles of the log library size of each batch; without batches, all cells are one batch.

    Quantiles are stored instead of mean and variance, because filters on the library size cut its distribution off.

    Parameters
    ----------
    n_cells
        Number of cells of each batch.
    log_quantiles
        Evenly spaced quantiles of log(max(library size, 1)), from the smallest to the largest.
    """

    n_cells: tuple[int, ...]
    log_quantiles: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, library: Float[np.ndarray, " cells"], batch: Int[np.ndarray, " cells"], n_batches: int) -> LibrarySizes:
        """The library sizes of some cells, given the batch code of each cell; a batch may be empty."""
        log_library = np.log(np.maximum(library, 1.0).astype(np.float64))
        groups = [log_library[batch == code] for code in range(n_batches)]
        quantiles = (np.quantile(group, PROBABILITIES).tolist() if len(group) else () for group in groups)
        return cls(tuple(map(len, groups)), tuple(tuple(group) for group in quantiles))

    def followed_by(self, others: LibrarySizes) -> LibrarySizes:
        """These batches, followed by the further batches of `others`, which has the same first batches."""
        n = len(self.n_cells)
        return LibrarySizes(self.n_cells + others.n_cells[n:], self.log_quantiles + others.log_quantiles[n:])

    def measured(self, codes: Int[np.ndarray, " cells"], rng: np.random.Generator) -> Int[np.ndarray, " cells"]:
        """These batches, and in place of those without cells others, drawn by their numbers of cells."""
        n_cells = np.array(self.n_cells)
        others = rng.choice(len(n_cells), len(codes), p=n_cells / n_cells.sum())
        found: Int[np.ndarray, " cells"] = np.where(n_cells[codes] > 0, codes, others)
        return found

    def at(self, codes: Int[np.ndarray, " cells"], share: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
        """The library sizes, float32, with these shares of smaller ones in the given batches."""
        library = np.empty(len(codes), np.float32)
        for code in np.unique(codes):
            here = codes == code
            library[here] = np.exp(np.interp(share[here], PROBABILITIES, self.log_quantiles[code]))
        return library

    def to_json(self) -> dict[str, Any]:
        """The numbers as lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> LibrarySizes:
        """The inverse of `to_json`."""
        return cls(tuple(record["n_cells"]), tuple(tuple(group) for group in record["log_quantiles"]))
