"""Comparison of likelihood heads for counts, trained on the same cells and judged on the same held-out cells."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import numpy as np

from ..common.progress import passing
from ..data.batches import split
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import log_likelihood_bound
from ..likelihoods import LikelihoodName
from ..training.run import fit_cells
from ..training.settings import Settings

HEADS: tuple[LikelihoodName, ...] = ("nb", "zinb", "poisson")
MOST_CELLS = 1_000
N_DRAWS = 50
HELD_OUT = 0.1  # fraction of the cells, if the fit held none out


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFit:
    """Fit of one head, compared with the best head.

    Parameters
    ----------
    likelihood
        Name of the head.
    log_likelihood
        Importance-weighted log-likelihood of the held-out cells, nats per cell.
    difference, error
        Log-likelihood of the best head minus that of this one: mean of the paired differences and its standard error.
    """

    likelihood: LikelihoodName
    log_likelihood: float
    difference: float
    error: float


def compare_heads(
    model: FittedModel, cells: Cells, *, beta: float | None, seed: int, verbose: bool
) -> tuple[HeadFit, ...]:
    """Fits nb, zinb and poisson with the settings of the model and compares them on cells held out of all three.

    Parameters
    ----------
    model
        A model of counts; its settings, seed and split are used.
    cells
        Cells to split into training and held-out cells; the cells of the model's fit are split as in that fit.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    seed
        Seed of the noise in the log-likelihood.
    verbose
        Whether to show the progress of each fit.

    Returns
    -------
    tuple
        One entry for each head, the best first.

    Raises
    ------
    ValueError
        If the model is not a model of counts, or if there are too few cells to hold any out.
    """
    if model.schema.kind != "counts":
        raise ValueError(
            f"compare_heads is for counts ({', '.join(HEADS)}); the model has likelihood={model.likelihood!r}"
        )
    fraction = model.training_config.validation_fraction or HELD_OUT
    held_out = split(len(cells), fraction, model.seed)[1][:MOST_CELLS]
    if len(held_out) < 2:
        raise ValueError(f"{len(cells)} cells are too few to hold any out; compare heads on at least 20 cells")
    judged = cells.taken(held_out)
    training = dataclasses.replace(model.training_config, validation_fraction=fraction)
    bounds = {}
    for name in HEADS:
        network = model.network_config
        if name == "poisson":
            network = dataclasses.replace(network, dispersion="gene")  # poisson has no dispersion
        settings = Settings(model.schema, name, model.beta_of(beta), model.seed, network, training)
        with passing():
            fitted, _ = fit_cells(
                cells, settings, model.n_latent, device=model.device, checkpoint=None, verbose=verbose
            )
        bounds[name] = log_likelihood_bound(fitted, judged, kind="iw", n_samples=N_DRAWS, seed=seed)
    return _ranked(bounds)


def _ranked(bounds: dict[LikelihoodName, np.ndarray]) -> tuple[HeadFit, ...]:
    order = sorted(bounds, key=lambda name: -bounds[name].mean())
    fits = []
    for name in order:
        lacks = bounds[order[0]] - bounds[name]
        error = float(lacks.std(ddof=1) / math.sqrt(len(lacks)))
        fits.append(
            HeadFit(
                likelihood=name,
                log_likelihood=float(bounds[name].mean()),
                difference=float(lacks.mean()),
                error=error,
            )
        )
    return tuple(fits)
