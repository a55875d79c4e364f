"""Training settings that depend on the number of cells, for those that the user leaves open."""

from __future__ import annotations

import math
from typing import NamedTuple

from ..config import Decoder, TrainingConfig

MANY_CELLS = 10_000
FEWEST_STEPS = 600
EPOCHS = 40
EPOCHS_WITH_CONDITIONS = 80
# learning rate at batches of 128
PEAK: dict[Decoder, float] = {"mlp": 3e-3, "linear": 1e-2}
PEAK_WITH_CONDITIONS = 9e-3  # of "mlp"
PEAK_OF_MANY_BETAS = 9e-3
WARMUP, WARMUP_WITH_CONDITIONS = 0.1, 0.5
MOST_WARMUP_EPOCHS = 40  # with conditions
EPOCHS_OF_MANY_BETAS = 1.1  # relative to a model of one β


class Recipe(NamedTuple):
    """Epochs, cells per step, Adam's peak learning rate, and the share of the run over which β rises."""

    epochs: int
    batch_size: int
    learning_rate: float
    warmup: float

    @classmethod
    def of(cls, config: TrainingConfig) -> Recipe:
        """That of settings which leave none of it open."""
        epochs, batch_size, learning_rate, warmup = (getattr(config, name) for name in cls._fields)
        return cls(epochs, batch_size, learning_rate, warmup)


def make_recipe(
    config: TrainingConfig,
    n_cells: int,
    decoder: Decoder = "mlp",
    *,
    conditions: bool = False,
    many_betas: bool = False,
) -> Recipe:
    """The recipe for `n_cells` training cells, on any device; values set in the config are kept.

    For the measurements behind it see "Why the defaults are what they are" in `benchmarks/README.md`.
    """
    batch_size = config.batch_size or (256 if n_cells >= MANY_CELLS else 128)
    learning_rate = config.learning_rate
    if learning_rate is None:
        peak = max(PEAK[decoder], PEAK_WITH_CONDITIONS) if conditions else PEAK[decoder]
        peak = PEAK_OF_MANY_BETAS if many_betas else peak
        learning_rate = peak * math.sqrt(min(max(batch_size, 128), 512) / 128)
    epochs = default_epochs(n_cells, batch_size, conditions=conditions)
    if many_betas:
        epochs = round(EPOCHS_OF_MANY_BETAS * epochs)
    epochs = config.epochs or epochs
    warmup = config.warmup
    if warmup is None:
        warmup = WARMUP
        if conditions and not many_betas:
            warmup = max(WARMUP, min(WARMUP_WITH_CONDITIONS, MOST_WARMUP_EPOCHS / epochs))
    return Recipe(epochs, batch_size, learning_rate, warmup)


def default_epochs(n_cells: int, batch_size: int, *, conditions: bool = False) -> int:
    """40 epochs (80 with conditions), falling as 1 / sqrt(cells) beyond 20,000 cells, but at least 600 steps.

    For the measurements behind it see "Why the defaults are what they are" in `benchmarks/README.md`.

    Parameters
    ----------
    n_cells
        Training cells.
    batch_size
        Cells per step.
    conditions
        Whether the decoder receives batches or other covariates.

    Returns
    -------
    int
        Epochs, between 8 and 400.
    """
    steps_per_epoch = max(1, round(n_cells / batch_size))
    most = EPOCHS_WITH_CONDITIONS if conditions else EPOCHS
    epochs = round(most * min(1.0, math.sqrt(20_000 / n_cells)))
    return min(400, max(8, epochs, math.ceil(FEWEST_STEPS / steps_per_epoch)))
