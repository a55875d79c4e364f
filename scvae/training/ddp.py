"""Training steps that several processes take together, through torch's DistributedDataParallel.

Each batch is split into one part per process. Every process draws the noise of the complete batch and uses that of its
own cells, and cells keep their weights in the complete batch. The step therefore equals that of a single process up to
rounding. (Dropout masks are the exception: each process draws them for its own cells.)
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

# torch's option not to send buffers at every step: they are the same in all processes anyway
_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _OPTIONS else "broadcast_buffers"
STOP_EVERY = 16  # steps between two checks whether a process wants to stop


class Objective(nn.Module):
    """The loss as a module, so that DistributedDataParallel can wrap it.

    Its own parameter `said` stays 0, and the gradient of `said` holds the statistics of a step. They are thus summed
    over processes in the same messages as the gradients of the model.
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
        """The loss on the cells of this process, times the number of processes, over which gradients are averaged."""
        parts = objective_of(self.network, batch, noise, cell_weight, generator, dials, self.config)
        said = torch.stack([*parts, wants_to_stop.to(parts[0])]).detach()
        return self.world * (parts[0] + self.said @ said)


class ParallelStep:
    """Runs the steps of `EagerStep` in several processes, each with its own part of every batch."""

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
        # the graph is the same in every step; it may lack parameters (of covariates that the data do not have)
        self.parallel = DistributedDataParallel(self.objective, static_graph=True, **{_BUFFERS: False})  # type: ignore[arg-type]

    def run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        """See `EagerStep.run`; `plan` has the complete batches.

        Raises
        ------
        Interrupted
            In all processes, after the same step, if one of them was asked to stop.
        MemoryError
            If the device lacks memory for this process's part of a batch; other processes may have enough.
        RankError
            If another process failed, died or hangs.
        """
        try:
            with self.ranks.stepping():
                return self._run(plan, dials, generators)
        except torch.OutOfMemoryError as error:
            raise MemoryError(f"{error}; lower TrainingConfig.batch_size, or use more devices") from error

    def _run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        own = share_of(plan, self.ranks.rank, self.ranks.world)
        # in a plan for cells on disk, the last batch is among the smallest; other plans are short enough to check all
        smallest = min(map(len, plan)) if isinstance(plan, list) else len(plan[-1])
        if smallest < self.ranks.world:
            # some processes have no cell of such a batch: they use one cell with weight 0
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
