"""All measurements of one model on one set of cells."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int

from ..common.rng import numpy_generator
from ..data.batches import n_aside
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import posterior_moments
from ..likelihoods import Gaussian
from ..model.latent.codebook import Codebook
from ..model.latent.prior import Prior
from .collapse import Usage, usage
from .gaps import Gaps, gaps
from .generalization import Generalization, generalization
from .groups import GroupUse, group_use, of_codes
from .held_out import judged_cells
from .information import Information, information
from .jacobian import Spectrum, spectrum
from .leak import Leak, batch_leak
from .over_correction import OverCorrection, over_correction
from .predictive import Predictive, predictive

SAMPLE = 37  # stream of the random numbers that draw cells
VALUES = 2**20  # cells x genes in the costly parts, which pass over them many times
FEWEST = 48  # cells, however many genes there are
GAP_CELLS, SPECTRUM_CELLS, PREDICTIVE_CELLS = 128, 100, 500  # if there are few genes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Examination:
    """All measurements of one model at one β.

    Parameters
    ----------
    beta
        The β examined.
    n_cells
        Number of cells in the sample.
    usage, information, gaps, spectrum, predictive, generalization
        See their classes.
    groups
        Use of the codes or categories; None for a latent without.
    leak
        Leak of the batch into z; None without batches.
    correction
        What the correction for batches removes, compared with a condition; None if no condition was named.
    relative_scale
        gaussian: learnt scale of each gene over its standard deviation, without constant genes; empty for other heads.
    steps
        Number of training steps if the cells are those of the fit; NaN if the number of training cells is unknown.
    """

    beta: float
    n_cells: int
    usage: Usage
    information: Information
    gaps: Gaps
    spectrum: Spectrum
    predictive: Predictive
    generalization: Generalization
    groups: GroupUse | None
    leak: Leak | None
    correction: OverCorrection | None
    relative_scale: Float[np.ndarray, " varying"]
    steps: float


def examine(
    model: FittedModel,
    cells: Cells,
    *,
    n_cells: int,
    beta: float | None = None,
    seed: int,
    condition: tuple[str, Int[np.ndarray, " cells"]] | None = None,
) -> Examination:
    """Measures everything on a random sample of at most `n_cells` cells, drawn among those with at least one count.

    `condition` is the name of a column and the code of each cell in it, -1 for none.

    Raises
    ------
    ValueError
        If fewer than 2 cells have a count, or if the model does not have this β.
    """
    beta = model.beta_of(beta)
    filled = np.flatnonzero(cells.library > 0)
    if len(filled) < 2:
        raise ValueError(f"{len(filled)} cells have a count in the model's genes; pass at least 2 such cells")
    chosen = numpy_generator(seed, SAMPLE).permutation(filled)[:n_cells]
    chosen_in_order = np.sort(chosen)
    sample = cells.taken(chosen_in_order)
    moments = posterior_moments(model, sample, beta=beta)
    mean, variance = (moment.astype(np.float64) for moment in moments)
    prior = model.network.prior
    use = usage(mean, np.log(variance), prior)
    if isinstance(prior, Codebook):
        codes, told = of_codes(prior, mean)
        use = replace(use, mean_variance=codes.var(0))
    else:
        told = information(mean, np.log(variance), prior, seed=seed, density=_density_at(model, beta))
    drawn = predictive(model, _some(cells, chosen, PREDICTIVE_CELLS), beta=beta, seed=seed)
    return Examination(
        beta=beta,
        n_cells=len(sample),
        usage=use,
        information=told,
        gaps=gaps(model, _some(cells, chosen, GAP_CELLS), beta=beta, seed=seed),
        spectrum=spectrum(model, _some(cells, chosen, SPECTRUM_CELLS), beta=beta),
        predictive=drawn,
        generalization=generalization(model, cells, beta=beta, seed=seed),
        groups=group_use(model, moments),
        leak=batch_leak(model.written(mean), sample.codes[:, 0]) if sample.has_batch else None,
        correction=None
        if condition is None
        else over_correction(
            model,
            sample,
            model.written(mean),
            condition[1][chosen_in_order],
            condition_key=condition[0],
            beta=beta,
            seed=seed,
        ),
        relative_scale=_relative_scale(model, drawn.variance, beta),
        steps=_steps(model, cells),
    )


def _density_at(model: FittedModel, beta: float) -> Prior | None:
    return model.density.latent if model.density is not None and model.density.beta == beta else None


def _some(cells: Cells, chosen: Int[np.ndarray, " chosen"], most: int) -> Cells:
    """The first of the chosen cells: at most `most`, and fewer if there are many genes."""
    n = min(most, max(FEWEST, VALUES // cells.rows.n_genes))
    return cells.taken(np.sort(chosen[:n]))


def _relative_scale(
    model: FittedModel, variance: Float[np.ndarray, " genes"], beta: float
) -> Float[np.ndarray, " varying"]:
    head = model.network.likelihood
    if not isinstance(head, Gaussian):
        return np.empty(0)
    at = None if model.network.betas is None else torch.full((1,), math.log(beta), device=model.device)
    relative = (head.log_scale(at) - head.spread.log()).detach().double().exp().cpu().numpy().reshape(-1)
    varying: Float[np.ndarray, " varying"] = relative[variance > 0]
    return varying


def _steps(model: FittedModel, cells: Cells) -> float:
    config = model.training_config
    if not config.batch_size or judged_cells(model, cells).role == "other cells than those of the fit":
        return math.nan
    n_trained = len(cells) - n_aside(len(cells), config.validation_fraction)
    return model.outcome.epochs * max(1, round(n_trained / config.batch_size))
