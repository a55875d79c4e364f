"""The choice of cells on which a model is judged: held-out cells where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Int

from ..data.batches import split
from ..data.cells import Cells
from ..inference.fitted import FittedModel

Role = Literal["held out of the fit", "trained on", "other cells than those of the fit"]


@dataclass(frozen=True, eq=False, slots=True)
class Judged:
    """Cells to judge a model on.

    Parameters
    ----------
    positions
        Positions of the cells, ascending.
    role
        Role of these cells in the fit: held out of it if that is known; otherwise, all cells are judged.
    """

    positions: Int[np.ndarray, " judged"]
    role: Role


def judged_cells(model: FittedModel, cells: Cells) -> Judged:
    """The cells that the fit held out, if `cells` are the cells of the fit in the same order; otherwise all cells.

    The model's seed, the number of cells and the validation fraction determine the split.
    """
    everyone = np.arange(len(cells))
    if cells.fingerprint() != model.trained_on:
        return Judged(everyone, "other cells than those of the fit")
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    return Judged(held_out, "held out of the fit") if len(held_out) else Judged(everyone, "trained on")
