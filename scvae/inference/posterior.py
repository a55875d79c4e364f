"""Posteriors and log-likelihood bounds of cells, computed in chunks so that memory does not grow with cells x genes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.distributed import ALONE, Alone, Ranks
from ..common.rng import numpy_generator, torch_generator
from ..data.batches import Batch, Batches, chunks
from ..data.cells import Cells
from ..data.feeds import single_pass
from ..kernels.context import working_on
from ..kernels.team import in_order
from ..model.latent.codebook import Rounded
from ..model.latent.posterior import DiagonalNormal
from ..model.objective import elbo, importance_weighted
from ..model.refinement import best_posterior, nearer_mean
from .trained import Trained

EMBEDDING_CHUNK, BOUND_CHUNK = 1024, 64  # cells
BOUND = 4  # random stream of the log-likelihood bounds
LATENT = 5  # random stream of the draws of an embedding
REFINED_AT_ONCE = 2**21  # cells x genes
REFINING_STEPS = 10  # if genes are missing; measured: "Why the defaults are what they are" in benchmarks/README.md

BoundKind = Literal["iw", "elbo", "density"]


@torch.no_grad()
def posterior_moments(
    model: Trained, cells: Cells, *, beta: float | None = None, together: Ranks | Alone = ALONE, refine: int = 0
) -> tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, "cells latent"]]:
    """Posterior means and variances of each cell, float32; several processes split the work and return all cells.

    `refine` is the number of gradient steps after the encoder: see `posterior_of`.
    """
    mean = np.empty((len(cells), model.n_latent), np.float32)
    variance = np.empty_like(mean)
    plan = _embedding_plan(model, cells, refine)
    plan = plan[together.part(len(plan))]

    def of_chunk(chunk: tuple[np.ndarray, Batch]) -> None:
        positions, batch = chunk
        posterior = posterior_of(model, batch, beta=beta, refine=refine)
        mean[positions] = posterior.mean.cpu().numpy()
        variance[positions] = posterior.variance.cpu().numpy()

    with working_on(model.device):
        for _ in in_order(of_chunk, _planned(model, cells, plan, beta), device=model.device):
            pass
    if together.world > 1:
        mine = np.concatenate([np.empty(0, np.int64), *plan])
        for positions, *moments in together.gather((mine, mean[mine], variance[mine])):
            for whole, piece in zip((mean, variance), moments, strict=True):
                whole[positions] = piece
    return mean, variance


def _embedding_plan(model: Trained, cells: Cells, refine: int) -> Batches:
    """First the cells that only the encoder embeds, then those refined afterwards, in smaller chunks to save memory."""
    few = max(1, REFINED_AT_ONCE // cells.rows.n_genes)
    if _lacks_some(cells) or refine or not model.network.is_amortized:
        return chunks(len(cells), few)
    conditions = model.network.conditions
    is_mapped = conditions.of_mapped(torch.from_numpy(cells.codes).to(conditions.mapped.device)).cpu().numpy()
    known, mapped = np.flatnonzero(~is_mapped), np.flatnonzero(is_mapped)
    return [some[part] for some, size in ((known, EMBEDDING_CHUNK), (mapped, few)) for part in chunks(len(some), size)]


@torch.no_grad()
def posterior_of(model: Trained, batch: Batch, *, beta: float | None = None, refine: int = 0) -> DiagonalNormal:
    """q(z | x, s) of each cell, at the β of the batch.

    With `refine`, mean and variance of each cell take that many gradient steps towards the best q under the decoder.

    If genes are missing or the batch was mapped, the encoder has not been trained on such cells. Its q is then moved
    towards the best q under the decoder: if genes are missing, mean and variance by gradient steps; else the mean alone
    by two Newton steps, which are cheaper.
    """
    network, batch, weight = model.network, model.network.shallow(batch), model.beta_of(beta)
    posterior = network.encode(batch)
    if isinstance(posterior, Rounded):  # without noise, there is no KL to follow
        return posterior
    steps = max(refine, REFINING_STEPS) if _lacks_some(batch) else refine
    if steps:
        return best_posterior(network, batch, posterior, beta=weight, seed=model.seed, steps=steps)
    mapped = network.conditions.of_mapped(batch.codes)
    if not mapped.any():
        return posterior
    mean = nearer_mean(network, batch, posterior, beta=weight)
    return DiagonalNormal(torch.where(mapped[:, None], mean, posterior.mean), posterior.log_variance)


def _lacks_some(cells: Cells | Batch) -> bool:
    """Whether genes of the model, or features of a further measurement, were not measured."""
    return cells.missing is not None or any(view.missing is not None for view in cells.views)


def latent_draws(
    mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"], n_samples: int, seed: int
) -> Float[np.ndarray, "cells draws latent"]:
    """Draws from the posterior of each cell, float32."""
    noise = numpy_generator(seed, LATENT).standard_normal((len(mean), n_samples, mean.shape[1]), np.float32)
    draws: Float[np.ndarray, "cells draws latent"] = mean[:, None] + np.sqrt(variance)[:, None] * noise
    return draws


@torch.no_grad()
def whole_libraries(model: Trained, cells: Cells, *, beta: float | None = None) -> Float[np.ndarray, " cells"]:
    """Library size of each cell over all genes of the model, including genes that were not measured.

    Counts of these genes are predicted at the mean of the encoder's q; the best q predicted them no better.
    """
    library = cells.library.copy()
    if cells.missing is None:
        return library
    network = model.network
    with working_on(model.device):
        for positions, batch in batches_of(model, cells, max(1, REFINED_AT_ONCE // cells.rows.n_genes), beta=beta):
            features = network.features(network.encode(batch).mean, batch)
            library[positions] = network.whole(features, batch).library.cpu().numpy()
    return library


def log_likelihood_bound(
    model: Trained,
    cells: Cells,
    *,
    kind: BoundKind,
    n_samples: int,
    seed: int,
    beta: float | None = None,
    refine: int = 0,
) -> Float[np.ndarray, " cells"]:
    """A lower bound on log p(x) of each cell in nats: importance-weighted, or the ELBO at β = 1.

    With "density", it is importance-weighted with the density of the cells of the fit in place of the prior. With
    `refine`, the posterior of each cell first takes that many gradient steps, at β = 1 as the bounds.
    """
    bound = np.empty(len(cells))
    estimate: Callable[..., Float[Tensor, " cells"]] = elbo if kind == "elbo" else importance_weighted
    if kind == "density":
        estimate = partial(importance_weighted, prior=model.density_at(beta).latent.to(model.device))

    def of_chunk(chunk: tuple[int, tuple[np.ndarray, Batch]]) -> tuple[np.ndarray, np.ndarray]:
        i, (positions, batch) = chunk
        generator = torch_generator(seed, BOUND, i, device=model.device)
        posterior = None
        if refine:
            with torch.no_grad():
                start = model.network.encode(batch)
            posterior = best_posterior(model.network, batch, start, beta=1.0, seed=model.seed, steps=refine)
        return positions, estimate(model.network, batch, n_samples, generator, posterior=posterior).cpu().numpy()

    with working_on(model.device):
        plan = enumerate(batches_of(model, cells, BOUND_CHUNK, beta=beta))
        for positions, found in in_order(of_chunk, plan, device=model.device):
            bound[positions] = found
    return bound


def batches_of(
    model: Trained, cells: Cells, size: int, *, beta: float | None = None
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Positions and batches of at most `size` cells, in order, on the model's device, at `beta`."""
    return _planned(model, cells, chunks(len(cells), size), beta)


def _planned(model: Trained, cells: Cells, plan: Batches, beta: float | None) -> Iterator[tuple[np.ndarray, Batch]]:
    for positions, batch in zip(plan, single_pass(cells, model.device).batches(plan), strict=True):
        yield positions, at_beta(model, batch, beta)


def at_beta(model: Trained, batch: Batch, beta: float | None) -> Batch:
    """The cells at the model's β, or at another of a model of many."""
    betas, at = model.network.betas, model.beta_of(beta)
    return batch if betas is None else batch.at(betas, torch.full_like(batch.library, math.log(at)))
