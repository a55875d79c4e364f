"""Training steps on the CPU by one compiled kernel (`scvae.kernels.steps`), for the networks that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..config import TrainingConfig
from ..data.batches import Batch, Batches
from ..data.feeds import Feed
from ..kernels import team
from ..kernels.backends import cpu_kernels
from ..kernels.csr import CSR
from ..kernels.fused_cpu import crowded_from, rows_per_block
from ..kernels.records import (
    Cells,
    NegativeBinomialHead,
    PairedShape,
    PoissonHead,
    Shape,
    ZeroInflatedHead,
    room_for_head,
    room_for_steps,
    sections,
)
from ..likelihoods.base import log_library
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.blocks import Dropout
from ..model.latent.prior import StandardNormal
from ..model.optimizer import Adam
from ..model.vae import VAE
from .consistency import ONE_PAIR_IN
from .flat import Flat, head_of, negative_binomial_of
from .step import Dials, with_draws

AT_ONCE = 2**22  # cells x genes of the steps that one call of the kernel makes, which takes some ten milliseconds
HEADS = {NegativeBinomial: NegativeBinomialHead, ZeroInflated: ZeroInflatedHead, Poisson: PoissonHead}


def can_be_fused(network: VAE, config: TrainingConfig) -> bool:
    """Whether the kernel computes the steps of this network and objective."""
    norms = (*network.encoder.norms, *getattr(network.decoder, "norms", ()))
    return (
        network.device.type == "cpu"
        and cpu_kernels() is not None
        and type(network.likelihood) in HEADS
        and network.encoder.genes.weight.dtype == torch.float32
        and all(isinstance(norm, nn.LayerNorm | nn.Identity) for norm in norms)
        and not any(isinstance(m, Dropout) and m.rate > 0.0 for m in network.modules())
        and network.encoder.shifts is None
        and network.betas is None
        and isinstance(network.prior, StandardNormal)
        and config.free_bits == 0.0
        and config.capacity is None
    )


class FusedStep:
    """Runs the steps of several batches in one call of the kernel.

    The parameters of the network and the moments of the optimizer become views of flat arrays, which the kernel takes.
    """

    def __init__(self, network: VAE, optimizer: Adam, feed: Feed, config: TrainingConfig) -> None:
        self.network, self.optimizer, self.feed, self.config = network, optimizer, feed, config
        self.flat = Flat(network, optimizer)

    @property
    def is_compiled(self) -> bool:
        """Whether this process has compiled the kernel or read it from the cache on disk for some network."""
        kernels = cpu_kernels()
        assert kernels is not None
        return bool(kernels.steps.train_steps.signatures)

    def run(
        self, plan: Batches, dials: Sequence[Dials], generators: Iterable[torch.Generator]
    ) -> list[Float[Tensor, "3"]]:
        """See `EagerStep.run`."""
        steps = (
            (*with_draws(self.network, batch, generator), dial)
            for batch, generator, dial in zip(self.feed.batches(plan), generators, dials, strict=True)
        )
        at_once = max(1, AT_ONCE // (max(map(len, plan)) * self.network.encoder.genes.weight.shape[0]))
        return [row for window in _windows(steps, at_once) for row in self._steps(*zip(*window, strict=True))]

    def _steps(self, batches: Sequence[Batch], noises: Sequence[Tensor], dials: Sequence[Dials]) -> Tensor:
        """The steps of some batches; the result is as that of `EagerStep.run`."""
        kernels = cpu_kernels()
        assert kernels is not None
        network, optimizer, flat = self.network, self.optimizer, self.flat
        shape, cells = self._shape(max(map(len, batches))), self._cells(batches, noises)
        base = negative_binomial_of(head_of(network))
        levels = 0 if base is None else len(base.log_inverse_dispersion)
        head = room_for_head(HEADS[type(network.likelihood)], levels, shape.n_genes)
        n_cells, size = int(cells.starts[-1]), max(map(len, batches)) * shape.n_genes
        dense = len(cells.counts) > crowded_from(size) * n_cells * shape.n_genes
        room = room_for_steps(shape, cells, head, n_logits=flat.n_logits, n_small=flat.places.n_small, dense=dense)
        statistics = np.empty((len(batches), 3))
        numbers = [(d.kl_weight, d.learning_rate, self.config.consistency) for d in dials]
        team.run(
            kernels.steps.train_steps, shape, flat.places, flat.groups, head, np.array(numbers, np.float32),
            np.float32(network.decoder.condition_scale), flat.state, int(optimizer.steps), cells, room, statistics,
            work=n_cells * shape.n_genes * shape.width, counters=kernels.steps.n_counters(len(batches)),
        )  # fmt: skip
        optimizer.steps += float(len(batches) - statistics[:, 2].sum())
        return torch.from_numpy(statistics).float()

    def _shape(self, n_cells: int) -> Shape | PairedShape:
        network, encoder = self.network, self.network.encoder
        n_genes, width = encoder.genes.weight.shape
        pairs = self.config.consistency > 0.0 and network.conditions.n_columns > 0
        return (PairedShape if pairs else Shape)(
            width=width,
            n_latent=network.n_latent,
            n_genes=n_genes,
            n_covariates=encoder.covariates.weight.shape[0],
            n_conditions=network.conditions.n_columns,
            n_features=network.decoder.n_features,
            has_norm=isinstance(encoder.norms[0], nn.LayerNorm),
            block=rows_per_block(n_cells),
            one_pair_in=ONE_PAIR_IN if pairs else 0,
        )

    def _cells(self, batches: Sequence[Batch], noises: Sequence[Tensor]) -> Cells:
        network, head = self.network, head_of(self.network)
        base = negative_binomial_of(head)
        rows = [batch.x for batch in batches if isinstance(batch.x, CSR)]
        lengths = np.concatenate([x.indptr.diff().numpy() for x in rows])
        center = (head.base if isinstance(head, ZeroInflated) else head).mean_log_library
        log_depth = torch.cat([log_library(batch, center) for batch in batches])
        conditions = torch.cat([network.conditions(batch) for batch in batches])
        covariates = log_depth[:, None]
        if network.encode_conditions:
            covariates = torch.cat([covariates, conditions[:, network.conditions.fitted]], dim=1)
        group = [base.dispersions(batch)[1] if base else torch.zeros_like(batch.group) for batch in batches]
        library = torch.cat([batch.library for batch in batches])
        parts = (library, torch.exp(-log_depth), covariates, conditions, torch.cat(list(noises)))
        return Cells(
            np.cumsum([0, *map(len, batches)]),
            np.concatenate([[0], np.cumsum(lengths)]),
            np.concatenate([x.indices.numpy() for x in rows]),
            np.concatenate([x.values.numpy() for x in rows]),
            torch.cat(group).numpy(),
            *sections([part.numpy() for part in parts]),
        )


def _windows(steps: Iterator[Any], at_once: int) -> Iterator[list[Any]]:
    """The steps in groups of `at_once`."""
    while window := list(islice(steps, at_once)):
        yield window
