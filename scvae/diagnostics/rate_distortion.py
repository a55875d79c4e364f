"""Rate, distortion, likelihood and structure of the embedding of a model at one β."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ..common.rng import numpy_generator
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.outcome import ACTIVE_ABOVE
from ..inference.posterior import log_likelihood_bound, posterior_moments
from ..inference.views import every_view
from .collapse import kl_to_prior, mean_kl
from .expression_pca import expression_space
from .held_out import Role, judged_cells
from .information import information
from .structure import (
    LEAST_COMPARED,
    REFERENCE_CELLS,
    LabelAgreement,
    Reference,
    Structure,
    label_agreement,
    structure,
)

SAMPLE = 23  # stream of the random numbers that draw cells
JUDGED_CELLS = 1_000
STRUCTURE_CELLS = 5_000
INFORMATION_DRAWS = 2_000  # of z, over all cells; a few cells get several draws each
N_SAMPLES = 50  # draws of the latent per cell, for distortion and log-likelihood


@dataclass(frozen=True, slots=True, kw_only=True)
class RateDistortion:
    """Position of a model in the rate-distortion plane at one β; means over cells, in nats per cell.

    Parameters
    ----------
    beta
        Weight of the KL term.
    distortion
        D = -E_q[log p(x | z)].
    rate
        R = KL(q(z | x) || p(z)).
    objective
        D + βR, which training minimises (Higgins et al. 2017; Alemi et al. 2018, equation 7).
    elbo
        -(D + R): the evidence lower bound, at β = 1.
    log_likelihood
        Importance-weighted bound on log p(x) (Burda et al. 2016, equation 8).
    active_dimensions
        Latent dimensions with a mean KL above 0.05 nats.
    mutual_information
        I_q(x; z) of these cells, at most the logarithm of their number; see `Information`.
    mutual_information_bound
        An upper bound on the mutual information, which has no such cap.
    """

    beta: float
    distortion: float
    rate: float
    objective: float
    elbo: float
    log_likelihood: float
    active_dimensions: int
    mutual_information: float
    mutual_information_bound: float


@dataclass(frozen=True, eq=False, slots=True)
class Yardstick:
    """The cells on which a model is measured at every β, and the reference for its embeddings.

    Parameters
    ----------
    judged
        Cells for likelihood, rate and distortion.
    role
        Role of these cells in the fit; see `Judged`.
    sampled
        Cells for the structure of the embedding.
    references
        For each measurement, coordinates in expression space of some of the sampled cells that have it, and the
        positions of these cells.
    labels
        Label code of each sampled cell, negative for a cell without label; None if there are no labels.
    """

    judged: Cells
    role: str
    sampled: Cells
    references: tuple[Reference, ...]
    labels: Int[np.ndarray, " sampled"] | None


def make_yardstick(
    model: FittedModel, cells: Cells, labels: Int[np.ndarray, " cells"] | None, *, seed: int
) -> Yardstick:
    """Draws at most `JUDGED_CELLS` of the cells held out of the fit, and at most `STRUCTURE_CELLS` of all cells.

    Parameters
    ----------
    model
        The model whose fit held cells out.
    cells
        All cells.
    labels
        Label code of each cell, negative for a cell without label; None if there are no labels.
    seed
        Seed of the draw. The cells for the structure are the same for every model.

    Returns
    -------
    Yardstick
        Copies of the drawn cells, so that memory does not grow with the number of cells.
    """
    judged, role = to_judge_on(model, cells, seed=seed)
    sampled = _some(len(cells), STRUCTURE_CELLS, seed)
    compared = _some(len(sampled), REFERENCE_CELLS, seed)
    references = []
    for seen, turned in every_view(model, cells):
        here = compared[turned.having[0][sampled[compared]]]
        if len(here) >= LEAST_COMPARED:
            references.append((expression_space(turned, sampled[here], kind=seen.schema.kind), here))
    return Yardstick(
        judged=judged,
        role=role,
        sampled=cells.taken(sampled),
        references=tuple(references),
        labels=None if labels is None else labels[sampled],
    )


def to_judge_on(model: FittedModel, cells: Cells, *, seed: int) -> tuple[Cells, Role]:
    """At most `JUDGED_CELLS` of the cells from `judged_cells`, and their role in the fit."""
    judged = judged_cells(model, cells)
    return cells.taken(judged.positions[_some(len(judged.positions), JUDGED_CELLS, seed)]), judged.role


def rate_and_distortion(
    model: FittedModel,
    cells: Cells,
    mean: Float[np.ndarray, "cells latent"],
    variance: Float[np.ndarray, "cells latent"],
    *,
    beta: float,
    seed: int,
) -> tuple[float, float]:
    """R and D of `RateDistortion`, from the posterior moments of the cells at this β."""
    log_variance = np.log(variance.astype(np.float64))
    rate = mean_kl(mean.astype(np.float64), log_variance, model.network.prior, seed=seed)
    elbo = log_likelihood_bound(model, cells, kind="elbo", n_samples=N_SAMPLES, seed=seed, beta=beta).mean()
    return rate, -(float(elbo) + rate)


def rate_distortion(model: FittedModel, cells: Cells, *, beta: float, seed: int) -> RateDistortion:
    """Measures a model at one of its values of β on the given cells.

    Parameters
    ----------
    model
        A fitted model.
    cells
        Cells that were not used to train it.
    beta
        A value of β that the model has.
    seed
        Seed of the noise. The same seed for every β makes the results comparable.

    Returns
    -------
    RateDistortion
        Means over the cells.
    """
    mean, variance = posterior_moments(model, cells, beta=beta)
    log_variance = np.log(variance.astype(np.float64))
    prior, n_draws = model.network.prior, max(1, INFORMATION_DRAWS // len(cells))
    kl = kl_to_prior(mean.astype(np.float64), log_variance, prior)
    told = information(mean, log_variance, prior, seed=seed, n_draws=n_draws)
    rate, distortion = rate_and_distortion(model, cells, mean, variance, beta=beta, seed=seed)
    bound = float(log_likelihood_bound(model, cells, kind="iw", n_samples=N_SAMPLES, seed=seed, beta=beta).mean())
    return RateDistortion(
        beta=beta,
        distortion=distortion,
        rate=rate,
        objective=distortion + beta * rate,
        elbo=-(distortion + rate),
        log_likelihood=bound,
        active_dimensions=int((kl.mean(0) > ACTIVE_ABOVE).sum()),
        mutual_information=told.mutual_information,
        mutual_information_bound=told.upper_bound,
    )


def embedding_at(
    model: FittedModel, yardstick: Yardstick, *, beta: float, seed: int
) -> tuple[Structure, LabelAgreement | None]:
    """Scores of the sampled cells' embedding at one β, without and with labels; None for the latter without labels."""
    mean, variance = posterior_moments(model, yardstick.sampled, beta=beta)
    scores = structure(mean, variance, yardstick.references, seed=seed, written=model.written)
    labels = yardstick.labels
    return scores, None if labels is None else label_agreement(model.written(mean), labels, seed=seed)


def _some(n: int, most: int, seed: int) -> Int[np.ndarray, " some"]:
    """At most `most` of n positions, drawn at random, ascending."""
    return np.sort(numpy_generator(seed, SAMPLE).permutation(n)[:most])
