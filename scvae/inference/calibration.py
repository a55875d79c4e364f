"""Predictions of a further measurement compared with the values of cells that the fit held out."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Int

from ..data.cells import Cells
from ..kernels.context import working_on
from .coverage import LEVELS, Coverage
from .fitted import FittedModel
from .imputation import TABLES, central, predictions

FEWEST, MOST = 10, 1_000  # held-out cells
VALUES = 2**17  # cells x features at most, if these are not fewer than `FEW` cells
FEW = 100
DRAWS = 200


def coverages(model: FittedModel, cells: Cells, held_out: Int[np.ndarray, " held_out"]) -> tuple[Coverage | None, ...]:
    """How often the intervals of each further measurement hold in held-out cells, given their other measurements.

    Parameters
    ----------
    model
        A model; examined at its default β.
    cells
        The cells of its fit.
    held_out
        Those that were held out.

    Returns
    -------
    tuple
        One for each further measurement; None if fewer than `FEWEST` cells have it and another one, or if the decoder
        reads the cells past z.
    """
    if model.network_config.skip != "none":
        return (None,) * len(cells.views)
    return tuple(_coverage(model, cells, held_out, place) for place in range(len(cells.views)))


@torch.no_grad()
def _coverage(model: FittedModel, cells: Cells, held_out: Int[np.ndarray, " held_out"], place: int) -> Coverage | None:
    view = cells.views[place]
    others = [present for i, present in enumerate(cells.having) if i != place + 1]
    some = held_out[(view.present & np.any(others, axis=0))[held_out]]
    if len(some) < FEWEST:
        return None
    some = some[: min(MOST, max(FEW, VALUES // view.rows.n_genes))]
    chosen = cells.taken(some)
    measured = np.setdiff1d(np.arange(view.rows.n_genes), [] if view.missing is None else view.missing)
    truth = chosen.views[place].rows.take(np.arange(len(some))).to_dense()[:, measured].to(model.device)
    levels, inside = torch.from_numpy(LEVELS).to(model.device), np.zeros(len(LEVELS))
    with working_on(model.device):
        for drawn in predictions(
            model, chosen, place, n_samples=DRAWS, seed=model.seed, beta=None, n_tables=TABLES * DRAWS
        ):
            values, known = drawn.values[:, :, measured], truth[drawn.positions]
            for i, (lower, upper) in enumerate(central(values, levels)):
                inside[i] += float(((lower <= known) & (known <= upper)).sum())
    return Coverage(len(some), tuple((inside / truth.numel()).tolist()))
