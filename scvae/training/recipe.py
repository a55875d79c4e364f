"""What of a training depends on the number of cells, where the user leaves it open."""

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
MOST_WARMUP_EPOCHS = 40  # with conditions: few cells, of which a run makes many epochs, were overfitted at a small β
# times those of one β; with 2,000 genes a step takes 1.3 times as long, with few genes longer
EPOCHS_OF_MANY_BETAS = 1.1


class Recipe(NamedTuple):
    """Passes over the training cells, cells of a step, Adam's peak learning rate, share of the run in which β rises."""

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
    """The recipe for `n_cells` training cells, on any device; what the config sets is kept.

    Batches of 128 cells, and of 256 from 10,000 cells on, where a fit of 20,000 simulated cells reached the same
    held-out ELBO in 0.7 of the time (`benchmarks/speed.py --only recipe`). The learning rate at 128 is 3e-3, or 9e-3
    with batches or other covariates, which mix better so, and for a model of many β, in which each β has a share of the
    cells: at 3e-3 the objective at β = 10 ended 5 nats worse (three sets). A linear decoder ended 2 nats per cell lower
    at 3e-3 than at its 1e-2 (pbmc3k, paul15). It grows with the square root of the batch size, as the noise
    of the gradient falls, up to that of 512.

    β rises over a tenth of the run; with batches or other covariates over half of it, but 40 epochs at most: while a
    nat costs little, z takes up what sets types apart along with what sets batches apart, and later gives up what the
    decoder is told.
    On six sets with batches the scores of mixing went from 0.745 to 0.747 in the mean and those of types from 0.821 to
    0.824 (`benchmarks/integration.py`). A model of many β does without: at β = 10 it ended 2 to 5 nats worse.
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
    """Passes over the data: 40, falling as 1 / sqrt(cells) beyond 20,000 cells, but never fewer than make 600 steps.

    With batches or other covariates 80 in place of 40: z takes up early what sets batches apart, as the largest
    differences of all, and leaves it to the decoder's own weights for them only slowly (on four pancreas studies, at
    the same learning rate, iLISI was 0.08 after 40 epochs and 0.11 after 80).

    Parameters
    ----------
    n_cells
        Training cells.
    batch_size
        Cells of a step.
    conditions
        Whether the decoder is told of batches or covariates.

    Returns
    -------
    int
        Epochs, between 8 and 400.
    """
    steps_per_epoch = max(1, round(n_cells / batch_size))
    most = EPOCHS_WITH_CONDITIONS if conditions else EPOCHS
    epochs = round(most * min(1.0, math.sqrt(20_000 / n_cells)))
    return min(400, max(8, epochs, math.ceil(FEWEST_STEPS / steps_per_epoch)))
