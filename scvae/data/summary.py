"""Per-gene statistics of the training cells, which initialise a model."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.csr import CSR
from .batches import chunks
from .cells import Cells

CHUNK = 1024  # cells


@dataclass(frozen=True, eq=False, slots=True)
class GeneSummary:
    """Statistics of each gene from one pass over the training cells.

    Parameters
    ----------
    n_cells
        Number of cells.
    total
        Sum of the values of each gene.
    total_square
        Sum of the squared values of each gene.
    mean_log_library
        Mean of log(max(library size, 1)) over cells.
    """

    n_cells: int
    total: Float[Tensor, " genes"]
    total_square: Float[Tensor, " genes"]
    mean_log_library: float

    @property
    def mean(self) -> Float[Tensor, " genes"]:
        """Mean of each gene."""
        return self.total / self.n_cells

    @property
    def standard_deviation(self) -> Float[Tensor, " genes"]:
        """Population standard deviation of each gene."""
        return (self.total_square / self.n_cells - self.mean.square()).clamp_min(0.0).sqrt()


def summarize(cells: Cells, positions: Int[np.ndarray, " cells"]) -> GeneSummary:
    """Statistics of the cells at `positions`, in one pass over chunks of them."""
    total = np.zeros(cells.rows.n_genes)
    total_square = np.zeros(cells.rows.n_genes)
    for part in chunks(len(positions), CHUNK):
        x = cells.rows.take(positions[part])
        if isinstance(x, CSR):
            values = x.values.numpy().astype(np.float64)
            total += np.bincount(x.indices.numpy(), values, minlength=len(total))
            total_square += np.bincount(x.indices.numpy(), values**2, minlength=len(total))
        else:
            values = x.values.numpy().astype(np.float64)
            total += values.sum(axis=0)
            total_square += (values**2).sum(axis=0)
    log_library = np.log(np.maximum(cells.library[positions], 1.0))
    return GeneSummary(
        len(positions),
        torch.from_numpy(total).float(),
        torch.from_numpy(total_square).float(),
        float(log_library.mean()),
    )
