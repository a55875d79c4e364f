"""The generalization gap: how much better a model describes its training cells than held-out cells."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float

from ..common.rng import numpy_generator, torch_generator
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of
from ..kernels.context import working_on
from ..model.objective import elbo
from .held_out import judged_cells

CHOICE, BOUND = 35, 36  # streams of random numbers
FEWEST_CELLS, MOST_CELLS = 10, 500  # of training cells and of held-out cells
AT_ONCE = 128  # cells
N_DRAWS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Generalization:
    """ELBO of training cells minus ELBO of held-out cells, at β = 1.

    Parameters
    ----------
    gap
        Nats per cell; NaN if no cells were held out.
    error
        Standard error of the gap; NaN if the gap is read from the history of the fit.
    source
        "cells": measured with the final weights on training and held-out cells, adjusted for differences between them;
        "history": read from the history at the epoch kept; "none": no cells were held out.
    """

    gap: float
    error: float
    source: str


def generalization(model: FittedModel, cells: Cells, *, beta: float | None = None, seed: int) -> Generalization:
    """The gap between training and held-out cells; measured if `cells` are the cells of the fit in the same order.

    The ELBO of a cell depends much more on its depth than on whether the model was trained on it. The gap is therefore
    the coefficient of "trained on" in a linear regression of the ELBO, with the log-likelihood at z = 0, the library
    size and its logarithm as covariates (analysis of covariance).
    """
    judged = judged_cells(model, cells)
    held_out = judged.positions
    trained = np.setdiff1d(np.arange(len(cells)), held_out)
    if judged.role != "held out of the fit" or min(len(trained), len(held_out)) < FEWEST_CELLS:
        return _from_history(model)
    rng = numpy_generator(seed, CHOICE)
    trained, held_out = (np.sort(rng.permutation(part)[:MOST_CELLS]) for part in (trained, held_out))
    chosen = cells.taken(np.concatenate([trained, held_out]))
    bound, at_zero = _bounds(model, chosen, beta=beta, seed=seed)
    library = np.maximum(chosen.library.astype(np.float64), 1.0)
    design = np.column_stack(
        [np.arange(len(chosen)) < len(trained), np.ones(len(chosen)), at_zero, library, np.log(library)]
    ).astype(np.float64)
    gap, error = _first_coefficient(design, bound)
    return Generalization(gap=gap, error=error, source="cells")


def _from_history(model: FittedModel) -> Generalization:
    kept = model.history[model.history["epoch"] == model.outcome.best_epoch]
    gap = float((kept["train_elbo"] - kept["validation_elbo"]).iloc[0]) if len(kept) else math.nan
    return Generalization(gap=gap, error=math.nan, source="none" if math.isnan(gap) else "history")


@torch.no_grad()
def _bounds(
    model: FittedModel, cells: Cells, *, beta: float | None, seed: int
) -> tuple[Float[np.ndarray, " cells"], Float[np.ndarray, " cells"]]:
    """ELBO of each cell, and log p(x | z) at the mean of the prior."""
    bound, at_zero = np.empty(len(cells)), np.empty(len(cells))
    with working_on(model.device):
        for i, (positions, batch) in enumerate(batches_of(model, cells, AT_ONCE, beta=beta)):
            generator = torch_generator(seed, BOUND, i, device=model.device)
            bound[positions] = elbo(model.network, batch, N_DRAWS, generator).cpu().numpy()
            origin = model.network.prior.mean.repeat(len(batch), 1)
            per_row = model.network.log_likelihood(origin, batch, origin[:, 0]).per_row
            at_zero[positions] = per_row.double().cpu().numpy()
    return bound, at_zero


def _first_coefficient(
    design: Float[np.ndarray, "cells columns"], outcome: Float[np.ndarray, " cells"]
) -> tuple[float, float]:
    """Least-squares coefficient of the first column and its heteroscedasticity-robust standard error (White 1980)."""
    scale = np.abs(design).max(0)
    scale[scale == 0] = 1.0  # for real values, the columns of the library size carry no information
    design = design / scale
    inverse = np.linalg.pinv(design.T @ design)
    coefficients = inverse @ design.T @ outcome
    weighted = design * (outcome - design @ coefficients)[:, None]
    covariance = inverse @ (weighted.T @ weighted) @ inverse
    return float(coefficients[0] / scale[0]), math.sqrt(float(covariance[0, 0])) / float(scale[0])
