"""Training steps replayed as a CUDA graph: the host launches a step by one call instead of a hundred."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..config import TrainingConfig
from ..data.batches import Batches
from ..data.feeds import Resident, upload
from ..model.optimizer import Adam
from ..model.vae import VAE
from .step import Dials, update

logger = logging.getLogger(__name__)

WARM_UP = 3  # steps before the capture, which fill the caches of torch's libraries and compile the kernels


@dataclass(frozen=True, eq=False, slots=True)
class Inputs:
    """Everything that changes between steps, always at the same place in memory."""

    positions: Int[Tensor, " cells"]
    cell_weight: Float[Tensor, " cells"]
    noise: Float[Tensor, "cells latent"]
    log_beta: Float[Tensor, " cells"]
    kl_weight: Float[Tensor, ""]
    capacity: Float[Tensor, ""]
    learning_rate: Float[Tensor, ""]


class CapturedStep:
    """Runs the same step as `EagerStep`, captured after a few steps and then replayed.

    All batches have one size: smaller ones are padded with cells of weight 0. If the step cannot be captured, or the
    device is not a CUDA device, the same code runs eagerly.
    """

    def __init__(self, network: VAE, optimizer: Adam, feed: Resident, config: TrainingConfig) -> None:
        self.network, self.optimizer, self.feed, self.config = network, optimizer, feed, config
        self.inputs: Inputs | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.said = torch.empty(3, device=feed.device)
        self.to_warm_up = WARM_UP
        self.can_capture = feed.device.type == "cuda"

    def run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        """See `EagerStep.run`."""
        size = max(map(len, plan))
        if self.inputs is None or len(self.inputs.positions) != size:
            self.inputs, self.graph, self.to_warm_up = self._inputs(size), None, WARM_UP
        inputs = self.inputs
        positions, weights = (upload(array, self.feed.device) for array in padded(plan, size))
        said = torch.empty(len(plan), 3, device=self.feed.device)
        for i, (cells, generator) in enumerate(zip(plan, generators, strict=True)):
            inputs.positions.copy_(positions[i])
            inputs.cell_weight.copy_(weights[i])
            # the shape must be that of an eager step for the same random numbers
            inputs.noise[: len(cells)].normal_(generator=generator)
            if self.network.betas is not None:
                offset = torch.rand((), generator=generator, device=self.feed.device)
                inputs.log_beta[: len(cells)] = self.network.betas.draw(len(cells), offset)
            for dial, number in zip((inputs.kl_weight, inputs.capacity, inputs.learning_rate), dials[i], strict=True):
                dial.fill_(0.0 if number is None else number)
            said[i] = self._advance(inputs)
        return list(said)

    def _inputs(self, size: int) -> Inputs:
        device = self.feed.device
        return Inputs(
            positions=torch.zeros(size, dtype=torch.int64, device=device),
            cell_weight=torch.zeros(size, device=device),
            noise=torch.zeros(size, self.network.n_latent, device=device),
            log_beta=torch.zeros(size, device=device),
            kl_weight=torch.zeros((), device=device),
            capacity=torch.zeros((), device=device),
            learning_rate=torch.zeros((), device=device),
        )

    def _advance(self, inputs: Inputs) -> Float[Tensor, "3"]:
        if self.can_capture and self.graph is None and self.to_warm_up == 0:
            self._capture(inputs)
        if self.graph is not None:
            self.graph.replay()
            return self.said
        if not self.can_capture:
            return self._step(inputs)
        # torch's documentation on CUDA graphs requires a separate stream
        self.to_warm_up -= 1
        current, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(current)
        with torch.cuda.stream(aside):
            said = self._step(inputs)
        current.wait_stream(aside)
        said.record_stream(current)
        return said

    def _capture(self, inputs: Inputs) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self.said = self._step(inputs)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            logger.warning("a training step cannot be captured in a CUDA graph (%s), so steps run one by one", error)
            self.can_capture = False
            self.optimizer.zero_grad()
        else:
            self.graph = graph

    def _step(self, inputs: Inputs) -> Float[Tensor, "3"]:
        capacity = None if self.config.capacity is None else inputs.capacity
        dials = Dials(inputs.kl_weight, capacity, inputs.learning_rate)
        batch = self.feed.pick(inputs.positions)
        if self.network.betas is not None:
            batch = batch.at(self.network.betas, inputs.log_beta)
        noise, weight = inputs.noise, inputs.cell_weight
        return update(self.network, self.optimizer, batch, noise, weight, None, dials, self.config)


def padded(plan: Batches, size: int) -> tuple[Int[np.ndarray, "steps cells"], Float[np.ndarray, "steps cells"]]:
    """Positions and weights of each step, padded to `size` cells by repeating the last cell with weight 0."""
    positions = np.empty((len(plan), size), dtype=np.int64)
    weights = np.zeros((len(plan), size), dtype=np.float32)
    for i, cells in enumerate(plan):
        positions[i] = cells[-1]
        positions[i, : len(cells)] = cells
        weights[i, : len(cells)] = 1.0 / len(cells)
    return positions, weights
