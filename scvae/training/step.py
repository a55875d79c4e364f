"""One training step: from the positions of some cells to new weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..config import TrainingConfig
from ..data.batches import Batch, Batches
from ..data.cells import Cells
from ..data.feeds import Feed
from ..kernels.context import working_on
from ..likelihoods.base import OutputLayer
from ..likelihoods.counts import LOG_DISPERSION_SPREAD
from ..model.objective import evidence_terms, loss
from ..model.optimizer import Adam, Group
from ..model.per_cell import TABLE_RATE, PerCell
from ..model.vae import VAE
from .consistency import inconsistency

FAILURES_IN_A_ROW = 5
LEFT_WITH_ONE = 0.5  # measured: "Two measurements of one cell" in benchmarks/README.md
DISPERSION_RATE = 10.0  # Adam moves log theta by one learning rate per step: too slow to get from 1 to 100 in one run


class Dials(NamedTuple):
    """What changes from step to step: numbers, or scalars on the device.

    kl_weight
        β of this step; for a model with a range of β, that of a cell at the default β.
    capacity
        Target KL in nats per cell; None if the objective is the ELBO.
    learning_rate
        Learning rate of Adam.
    """

    kl_weight: float | Tensor
    capacity: float | Tensor | None
    learning_rate: float | Tensor


class Reading(NamedTuple):
    """Statistics of a series of steps.

    log_likelihood, kl
        Nats per cell, averaged over the steps that were not skipped; NaN if all were.
    skipped
        Number of steps whose loss or gradient was not finite.
    streak
        Number of skipped steps in a row at the end of the series.
    gave_up
        The step at which `FAILURES_IN_A_ROW` steps in a row had been skipped; None if there was none.
    """

    log_likelihood: float
    kl: float
    skipped: int
    streak: int
    gave_up: int | None


class EagerStep:
    """Runs each step directly."""

    def __init__(self, network: VAE, optimizer: Adam, feed: Feed, config: TrainingConfig) -> None:
        self.network, self.optimizer, self.feed, self.config = network, optimizer, feed, config

    def run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        """Updates the weights once per batch of the plan; each step draws its noise from its own generator.

        Returns
        -------
        list
            For each step: log-likelihood and KL in nats per cell, and 1 if the step was skipped, else 0. The values
            are on the device; the host does not wait for them.
        """
        batches = self.feed.batches(plan)
        if not self.network.is_amortized:
            batches = (with_rows(batch, cells) for batch, cells in zip(batches, plan, strict=True))
        return [self(*step) for step in zip(batches, generators, dials, strict=True)]

    def __call__(self, batch: Batch, generator: torch.Generator, dials: Dials) -> Float[Tensor, "3"]:
        """One step: see `run`."""
        batch, noise = with_draws(self.network, batch, generator)
        weight = torch.full((len(batch),), 1.0 / len(batch), device=generator.device)
        return update(self.network, self.optimizer, batch, noise, weight, generator, dials, self.config)


def with_draws(network: VAE, batch: Batch, generator: torch.Generator) -> tuple[Batch, Float[Tensor, "cells noise"]]:
    """The batch, with a β for each cell if the model has a range of β, and the noise of the draws of its latent.

    If cells have several measurements, some cells are left with one: see `with_less`.
    """
    device = generator.device
    noise = torch.randn(len(batch), network.n_noise, generator=generator, device=device)
    if network.views and network.is_amortized:
        batch = with_less(batch, generator)
    if network.betas is None:
        return batch, noise
    offset = torch.rand((), generator=generator, device=device)
    return batch.at(network.betas, network.betas.draw(len(batch), offset)), noise


def with_less(batch: Batch, generator: torch.Generator) -> Batch:
    """The batch with a single one of their measurements left, drawn at random, in `LEFT_WITH_ONE` of the cells.

    The encoder thus also learns to embed cells that lack some, and each step has the ELBO of what it has left: the
    objective is a mean of ELBOs. (A likelihood of what the encoder does not see would make its q too narrow.)
    """
    assert batch.present is not None
    present = torch.stack([batch.present, *(view.present for view in batch.views)], dim=1)
    rank = torch.rand(present.shape, generator=generator, device=generator.device) * present
    chosen = torch.rand(len(batch), 1, generator=generator, device=generator.device) < LEFT_WITH_ONE
    alone = rank == rank.amax(1, keepdim=True)
    return batch.having((present & (alone | ~chosen)).unbind(1))


def with_rows(batch: Batch, positions: Int[np.ndarray, " cells"]) -> Batch:
    """The batch with the rows of its cells in the tables that take the encoder's place."""
    return replace(batch, rows=torch.from_numpy(positions).to(batch.library.device))


def update(
    network: VAE,
    optimizer: Adam,
    batch: Batch,
    noise: Float[Tensor, "cells noise"],
    cell_weight: Float[Tensor, " cells"],
    generator: torch.Generator | None,
    dials: Dials,
    config: TrainingConfig,
) -> Float[Tensor, "3"]:
    """One draw of the latent per cell, the loss, its gradient and the update by Adam, without waiting for the device.

    Parameters
    ----------
    batch
        For a model with a range of β, contains the β of each cell.
    cell_weight
        Sums to 1; 0 for cells that only pad the batch.
    generator
        Draws the dropout masks; None if there are none.

    Returns
    -------
    Tensor
        As each element of the result of `EagerStep.run`.
    """
    objective, log_likelihood, kl = objective_of(network, batch, noise, cell_weight, generator, dials, config)
    optimizer.zero_grad()
    objective.backward()
    skip = optimizer.step(dials.learning_rate, objective)
    return torch.stack([log_likelihood, kl, skip])


def objective_of(
    network: VAE,
    batch: Batch,
    noise: Float[Tensor, "cells noise"],
    cell_weight: Float[Tensor, " cells"],
    generator: torch.Generator | None,
    dials: Dials,
    config: TrainingConfig,
) -> tuple[Float[Tensor, ""], Float[Tensor, ""], Float[Tensor, ""]]:
    """The loss of a batch, as in `update`, and its weighted log-likelihood and KL, which have no gradient."""
    terms = evidence_terms(network, batch, noise, cell_weight, generator)
    beta = dials.kl_weight
    if network.betas is not None and batch.log_beta is not None:
        beta = beta * network.betas.relative(batch.log_beta)
    objective = loss(terms, cell_weight, beta=beta, free_bits=config.free_bits, capacity=dials.capacity)
    if terms.penalty is not None:
        objective = objective + cell_weight @ terms.penalty
    network.prior.follow(terms.draws, cell_weight, noise)
    if network.classifier is not None and terms.label_log_prob is not None:
        objective = objective - network.classifier.term_weight * (cell_weight @ terms.label_log_prob)
    if config.consistency > 0 and network.conditions.n_columns > 0:
        weight = config.consistency * beta * cell_weight
        objective = objective + inconsistency(network, terms.draws, batch, weight)
    return objective, cell_weight @ terms.log_likelihood, (cell_weight @ terms.kl.detach()).sum()


def make_optimizer(network: VAE, n_cells: int, only: Mapping[str, Bool[Tensor, "..."]] | None = None) -> Adam:
    """Adam with priors on the output weights and the dispersions, which also have learning rates of their own.

    So has the prior of the latent variables, if it is trained.

    With `only`, just the marked entries of the parameters it names are trained.
    """
    dispersions = [p for name, p in network.named_parameters() if "log_inverse_dispersion" in name]
    outputs = [m for m in network.modules() if isinstance(m, OutputLayer)]
    tables = [*network.encoder.parameters()] if isinstance(network.encoder, PerCell) else []
    of_prior = list(network.prior.parameters())
    special = {id(p) for p in (*dispersions, *tables, *of_prior, *(layer.weight for layer in outputs))}
    groups = [
        Group([p for p in network.parameters() if id(p) not in special]),
        Group(dispersions, DISPERSION_RATE, decay=1.0 / (LOG_DISPERSION_SPREAD**2 * n_cells), centred=True),
        Group(tables, TABLE_RATE),
        *(Group([layer.weight], layer.weight_rate, decay=1.0 / (layer.weight_sd**2 * n_cells)) for layer in outputs),
        Group(of_prior, network.prior.learning_rate),
    ]
    if only is None:
        return Adam(groups)
    marks = {id(p): only[name] for name, p in network.named_parameters() if name in only}
    kept = [[p for p in group.parameters if id(p) in marks] for group in groups]
    return Adam(
        [
            replace(group, parameters=some, moving=[marks[id(p)] for p in some])
            for group, some in zip(groups, kept, strict=True)
        ]
    )


def read(statistics: list[Float[Tensor, "3"]], streak: int) -> Reading:
    """Statistics of a series of steps, copied from the device at once; `streak` steps before them were skipped."""
    rows = torch.stack(statistics).double().cpu().numpy()
    skipped = rows[:, 2] != 0
    gave_up = None
    for i, bad in enumerate(skipped):
        streak = streak + 1 if bad else 0
        if streak == FAILURES_IN_A_ROW and gave_up is None:
            gave_up = i
    log_likelihood, kl = rows[~skipped, :2].mean(0) if not skipped.all() else (math.nan, math.nan)
    return Reading(float(log_likelihood), float(kl), int(skipped.sum()), streak, gave_up)


@torch.no_grad()
def failure(network: VAE, cells: Cells, positions: Int[np.ndarray, " cells"], epoch: int) -> NonFiniteLossError:
    """The error after several skipped steps in a row; it names a cell if the ELBO of one is not finite."""
    network.eval()
    device = network.device
    batch = cells.batch(positions).to(device)
    if network.betas is not None:
        batch = batch.at(network.betas, network.betas.spread(len(batch)).to(device))
    zeros = torch.zeros(len(batch), network.n_latent + 1, device=device)
    with working_on(device):
        elbo = evidence_terms(network, batch, zeros[:, 1:], zeros[:, 0]).elbo
    bad = np.flatnonzero(~torch.isfinite(elbo).cpu().numpy())
    culprit = f"cell {cells.names[positions[bad[0]]]!r}" if len(bad) else "no single cell (the gradient overflowed)"
    return NonFiniteLossError(
        f"the loss or its gradient was not finite in {FAILURES_IN_A_ROW} steps in a row of epoch {epoch}; "
        f"first at fault: {culprit}. Look for extreme values there, or lower TrainingConfig.learning_rate "
        "(or raise NetworkConfig.minimum_scale, for likelihood='gaussian')."
    )


class NonFiniteLossError(FloatingPointError):
    """The loss or its gradient was not finite in several steps in a row."""
