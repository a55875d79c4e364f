"""Training steps that several processes take together, by torch's DistributedDataParallel.

Each batch is cut into one part for each process. Every process draws the noise of the whole batch and takes that of its
cells, and cells have the weights they have in the whole batch: the step is the one that a single process would take, to
rounding. (Dropout masks are drawn by each process for its own cells.)
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..common.distributed import Alone, ranks
from ..common.interrupt import Interrupt, Interrupted
from ..common.rng import generator_of_rank
from ..config import TrainingConfig
from ..data.batches import Batch, Batches, share_of
from ..data.feeds import Feed
from ..kernels.shared_batch import Shared, sharing
from ..model.optimizer import Adam
from ..model.vae import VAE
from .step import Dials, objective_of

# how torch is told that buffers need not be sent around at every step: they come out the same in all processes
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
STOP_EVERY = 16  # steps between two looks at whether a process wants to stop


class Objective(nn.Module):
    """The loss as a module, which DistributedDataParallel can go around.

    Its own parameter `said` stays 0, and its gradient is what a step says of itself: so that these numbers are added up
    over the processes in the very messages that carry the gradients of the model.
    """

    def __init__(self, network: VAE, config: TrainingConfig, world: int) -> None:
        super().__init__()
        self.network, self.config, self.world = network, config, world
        like = next(network.parameters())
        self.said = nn.Parameter(like.new_zeros(4))

    def forward(
        self,
        batch: Batch,
        noise: Float[Tensor, "cells latent"],
        cell_weight: Float[Tensor, " cells"],
        generator: torch.Generator | None,
        dials: Dials,
        wants_to_stop: Float[Tensor, ""],
    ) -> Float[Tensor, ""]:
        """The part of this process in the loss, times the number of processes: gradients are averaged over them."""
        parts = objective_of(self.network, batch, noise, cell_weight, generator, dials, self.config)
        said = torch.stack([*parts, wants_to_stop.to(parts[0])]).detach()
        return self.world * (parts[0] + self.said @ said)


class ParallelStep:
    """Runs the steps of `EagerStep` in several processes, each with its part of every batch."""

    def __init__(
        self,
        network: VAE,
        optimizer: Adam,
        feed: Feed,
        config: TrainingConfig,
        interrupt: Interrupt,
    ) -> None:
        together = ranks()
        assert not isinstance(together, Alone)
        self.network, self.optimizer, self.feed = network, optimizer, feed
        self.ranks, self.interrupt = together, interrupt
        self.objective = Objective(network, config, together.world)
        # the same graph in every step; parameters without a part in it (of covariates that are not there) are allowed
        self.parallel = DistributedDataParallel(self.objective, static_graph=True, **{_BUFFERS: False})  # type: ignore[arg-type]

    def run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        """See `EagerStep.run`; `plan` is that of all processes.

        Raises
        ------
        Interrupted
            In all processes, after the same step, if one of them was asked to stop.
        MemoryError
            If the device has no memory for this process's part of a batch: the others may have.
        RankError
            If another process failed, died or hangs.
        """
        try:
            with self.ranks.stepping():
                return self._run(plan, dials, generators)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{error}; lower TrainingConfig.batch_size, or take more devices") from error

    def _run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        own = share_of(plan, self.ranks.rank, self.ranks.world)
        # the last batch of cells on disk is as small as any; others are few enough to be looked at
        smallest = min(map(len, plan)) if isinstance(plan, list) else len(plan[-1])
        if smallest < self.ranks.world:
            # some processes have no cell of such a batch: they take one along with weight 0
            own = [mine if len(mine) else cells[:1] for mine, cells in zip(own, plan, strict=True)]
        said: list[Float[Tensor, "4"]] = []
        for i, (cells, batch, generator) in enumerate(zip(plan, self.feed.batches(own), generators, strict=True)):
            said.append(self(batch, len(cells), self.ranks.part(len(cells)), generator, dials[i]))
            if ((i + 1) % STOP_EVERY == 0 or i + 1 == len(plan)) and float(torch.stack(said)[:, 3].sum()) > 0:
                raise Interrupted
        return [row[:3] for row in said]

    def __call__(
        self, batch: Batch, n_cells: int, part: slice, generator: torch.Generator, dials: Dials
    ) -> Float[Tensor, "4"]:
        """One step with this process's part of a batch of `n_cells`."""
        share = Shared(self.ranks.world, n_cells, part)
        mine = part if share.counts else slice(0, 1)
        device = generator.device
        noise = torch.randn(n_cells, self.network.n_latent, generator=generator, device=device)[mine]
        if self.network.betas is not None:
            offset = torch.rand((), generator=generator, device=device)
            batch = batch.at(self.network.betas, self.network.betas.draw(n_cells, offset)[mine])
        weight = torch.full((len(batch),), 1.0 / n_cells if share.counts else 0.0, device=device)
        masks = generator_of_rank(generator, self.ranks.rank)
        stop = torch.tensor(float(self.interrupt.asked_at is not None), device=device)
        self.objective.zero_grad()
        with sharing(share):
            self.parallel(batch, noise, weight, masks, dials, stop).backward()
        assert self.objective.said.grad is not None
        objective, log_likelihood, kl, stopping = self.objective.said.grad
        skip = self.optimizer.step(dials.learning_rate, objective)
        return torch.stack([log_likelihood, kl, skip, stopping])
