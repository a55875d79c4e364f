"""The batch leak: how well the latent space predicts the batch of a cell."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .neighbours import N_NEIGHBOURS, nearest

SMALLEST_BATCH = 10  # cells; a smaller batch cannot fill the neighbourhoods of its own cells


@dataclass(frozen=True, slots=True, kw_only=True)
class Leak:
    """Prediction of the batch from the embedding.

    Parameters
    ----------
    accuracy
        Fraction of correct predictions, mean over batches (balanced accuracy).
    chance
        Accuracy of a random guess: 1 / number of batches.
    """

    accuracy: float
    chance: float

    @property
    def excess(self) -> float:
        """Accuracy on a scale from 0 (chance) to 1 (always correct): Cohen's kappa with equally weighted batches."""
        return (self.accuracy - self.chance) / (1.0 - self.chance)


def batch_leak(mean: Float[np.ndarray, "cells latent"], batch: Int[np.ndarray, " cells"]) -> Leak | None:
    """Predicts each cell's batch from its nearest neighbours, without the cell itself; None for a single batch.

    Each neighbour is weighted by the inverse of its batch's size, so that a large batch does not win every vote.
    Batches with fewer than 10 cells are left out.
    """
    codes, size = np.unique(batch, return_counts=True)
    large = codes[size >= SMALLEST_BATCH]
    kept = np.isin(batch, large)
    if len(large) < 2:
        return None
    number = np.searchsorted(large, batch[kept])
    neighbours = number[nearest(mean[kept], N_NEIGHBOURS).index[:, 1:]]
    counts = np.bincount(number)
    votes = np.stack([(neighbours == b).sum(1) / counts[b] for b in range(len(large))], axis=1)
    right = votes.argmax(1) == number
    accuracy = float(np.mean([right[number == b].mean() for b in range(len(large))]))
    return Leak(accuracy=accuracy, chance=1.0 / len(large))
