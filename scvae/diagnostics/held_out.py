"""Which cells a model may be judged on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from ..data.batches import split
from ..data.intake import Cells
from ..inference.fitted import FittedModel

Role = Literal["held out of the fit", "trained on", "other cells than those of the fit"]


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """Cells to judge a model on.

    Parameters
    ----------
    positions
        Which cells, in rising order.
    role
        What they were to the model: held out of its training where that can be known, all cells otherwise.
    """

    positions: Int[np.ndarray, " judged"]
    role: Role


def judged_cells(model: FittedModel, cells: Cells) -> Judged:
    """The cells that the fit held out, if these are the cells of the fit in their order; otherwise all of them.

    The split is a function of the model's seed, the number of cells and the validation fraction.
    """
    everyone = np.arange(len(cells))
    if cells.fingerprint() != model.trained_on:
        return Judged(everyone, "other cells than those of the fit")
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    return Judged(held_out, "held out of the fit") if len(held_out) else Judged(everyone, "trained on")
