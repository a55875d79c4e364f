"""The density of a cloud of cells: fitted to their posteriors, and evaluated."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import ndtri
from scipy.stats import rankdata

from ..common.rng import numpy_generator
from ..data.batches import chunks, split
from ..data.cells import Cells
from ..kernels.context import working_on
from .density import Density
from .fitted import FittedModel
from .mixture import POOLED, fit_mixture
from .posterior import posterior_moments, whole_libraries

FIT = 6  # random stream; depends on the seed only
MOST_CELLS = 10_000  # to which a mixture is fitted


def density_of_fit(model: FittedModel, cells: Cells) -> Density:
    """The density of the cells of a fit; those held out of the training choose the number of components."""
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    return density_of(model, cells, seed=model.seed, held_out=held_out)


def density_of(
    model: FittedModel,
    cells: Cells,
    *,
    seed: int,
    beta: float | None = None,
    held_out: Int[np.ndarray, " held"] | None = None,
) -> Density:
    """The density of some cells at `beta`, fitted to at most `MOST_CELLS` of them, drawn at random.

    Parameters
    ----------
    model
        A fitted model.
    cells
        The cells.
    seed
        Seed of the sample and of the starting points.
    beta
        As in `FittedModel.beta_of`.
    held_out
        Positions of the cells that choose the number of components; None takes one in ten.
    """
    rng = numpy_generator(seed, FIT)
    chosen, sample = _some(cells, rng)
    mean, variance = _points(model, chosen, beta)
    judges = None if held_out is None else np.flatnonzero(np.isin(sample, held_out))
    mixture = fit_mixture(mean, variance, rng, held_out=judges)
    n_batches = len(model.schema.batch.categories) if model.schema.batch else 1
    density = Density(
        mixture=mixture,
        share=np.zeros((0, len(mixture.weight)), np.float32),
        n_latent=model.n_latent,
        beta=model.beta_of(beta),
    )
    return density.followed_by(_shares(density, mean, chosen.group, n_batches))


def with_mapped_batches(density: Density, model: FittedModel, cells: Cells) -> Density:
    """The density of a reference with the shares of its components in the batches of `model` that were mapped later."""
    assert model.schema.batch is not None
    chosen, _ = _some(cells, numpy_generator(model.seed, FIT))
    mean, _ = _points(model, chosen, density.beta)
    return density.followed_by(_shares(density, mean, chosen.group, len(model.schema.batch.categories)))


@torch.no_grad()
def log_densities(model: FittedModel, cells: Cells, *, beta: float | None = None) -> Float[np.ndarray, " cells"]:
    """Log density of the cells of the fit at the posterior mean of each cell, in nats."""
    latent = model.density_at(beta).latent
    mean, _ = posterior_moments(model, cells, beta=beta)
    with working_on(torch.device("cpu")):
        found = [latent.log_prob(torch.from_numpy(mean[part])) for part in chunks(len(mean), MOST_CELLS)]
    density: Float[np.ndarray, " cells"] = torch.cat(found).double().numpy()
    return density


def _some(cells: Cells, rng: np.random.Generator) -> tuple[Cells, Int[np.ndarray, " some"]]:
    """At most `MOST_CELLS` of the cells, drawn at random, and their positions, ascending."""
    sample = np.sort(rng.permutation(len(cells))[:MOST_CELLS])
    return cells if len(sample) == len(cells) else cells.taken(sample), sample


def _points(
    model: FittedModel, cells: Cells, beta: float | None
) -> tuple[Float[np.ndarray, "cells columns"], Float[np.ndarray, "cells columns"]]:
    """Mean and variance of z, and of the normal score of the library size among those of the batch, which is exact."""
    mean, variance = (moment.astype(np.float64) for moment in posterior_moments(model, cells, beta=beta))
    if model.schema.kind == "real":
        return mean, variance
    library, group = whole_libraries(model, cells, beta=beta), cells.group
    score = np.empty(len(cells))
    for code in np.unique(group):
        here = group == code
        score[here] = ndtri((rankdata(library[here]) - 0.5) / here.sum())
    return np.column_stack([mean, score]), np.column_stack([variance, np.zeros(len(cells))])


@torch.no_grad()
def _shares(
    density: Density, points: Float[np.ndarray, "cells columns"], group: Int[np.ndarray, " cells"], n_batches: int
) -> Float[np.ndarray, "batches components"]:
    """Mean responsibilities in each batch; all cells together count as `POOLED` more, so that no weight is 0."""
    with working_on(torch.device("cpu")):
        joint = density.mixture.joint(torch.from_numpy(points.astype(np.float32)))
    member = torch.softmax(joint, dim=1).double().numpy()
    share = np.tile(POOLED * density.mixture.weight.double().numpy(), (n_batches, 1))
    np.add.at(share, group, member)
    relative: Float[np.ndarray, "batches components"] = (share / share.sum(1, keepdims=True)).astype(np.float32)
    return relative
