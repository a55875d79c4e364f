"""The record of how training ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float

ACTIVE_ABOVE = 0.05  # nats of mean KL above which a latent dimension counts as used


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How training ended.

    Parameters
    ----------
    converged
        Whether the validation ELBO had stopped changing.
    reason
        Why training ended and how `converged` was decided, in one sentence.
    beta_attained
        KL weight of the last step.
    best_epoch
        Epoch (from 1) whose weights were kept.
    epochs
        Number of epochs trained.
    seconds
        Wall-clock seconds of the training.
    skipped_steps
        Number of steps skipped because the loss or its gradient was not finite.
    kl_per_dimension
        Mean KL of each dimension of the network in nats, over the validation cells (training cells if there are none).
    held_out_elbo
        ELBO per validation cell in nats, at β = 1, with the weights kept; NaN without validation cells.
    pruned_from
        Number of latent dimensions before unused ones were removed; None if none were.
    """

    converged: bool
    reason: str
    beta_attained: float
    best_epoch: int
    epochs: int
    seconds: float
    skipped_steps: int
    kl_per_dimension: tuple[float, ...]
    held_out_elbo: float
    pruned_from: int | None = None

    @property
    def active_dimensions(self) -> int:
        """Number of latent dimensions in use: those with a mean KL above 0.05 nats."""
        return int(in_use(self.kl_per_dimension).sum())


def in_use(kl_per_dimension: Sequence[float] | Float[np.ndarray, " latent"]) -> Bool[np.ndarray, " latent"]:
    """Which latent dimensions carry information about the cells: those with a mean KL above 0.05 nats."""
    used: Bool[np.ndarray, " latent"] = np.asarray(kl_per_dimension) > ACTIVE_ABOVE
    return used
