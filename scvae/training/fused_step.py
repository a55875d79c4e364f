"""Training steps on the CPU by one compiled kernel (`scvae.kernels.steps`), for the networks that it knows."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from ..config import TrainingConfig
from ..data.batches import Batch, Batches
from ..data.feeds import Feed
from ..kernels import team
from ..kernels.backends import cpu_kernels
from ..kernels.csr import CSR
from ..kernels.fused_cpu import crowded_from, rows_per_block
from ..kernels.records import (
    NegativeBinomialHead,
    NoPairs,
    Pairs,
    PoissonHead,
    ZeroInflatedHead,
    job_of,
    room_for_head,
    room_for_steps,
)
from ..kernels.threads import of_call
from ..likelihoods.base import log_library
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.blocks import Dropout
from ..model.encoder import Encoder
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
    if not isinstance(network.encoder, Encoder) or not network.decoder.is_chain:
        return False
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
        and not network.views
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
        assert isinstance(network.encoder, Encoder)
        self.encoder, self.flat = network.encoder, Flat(network, optimizer)

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
        at_once = max(1, AT_ONCE // (max(map(len, plan)) * self.encoder.genes.weight.shape[0]))
        return [row for window in _windows(steps, at_once) for row in self._steps(*zip(*window, strict=True))]

    def _steps(self, batches: Sequence[Batch], noises: Sequence[Tensor], dials: Sequence[Dials]) -> Tensor:
        """The steps of some batches; the result is as that of `EagerStep.run`."""
        kernels = cpu_kernels()
        assert kernels is not None
        optimizer, cells = self.optimizer, self._cells(batches, noises)
        sizes = self._sizes(cells) | {"n_steps": len(batches), "steps_before": int(optimizer.steps)}
        numbers = [(d.kl_weight, d.learning_rate, self.config.consistency) for d in dials]
        dial_array = np.array(numbers, np.float32)
        room = room_for_steps(sizes, len(cells["counts"]), of_call())
        job = job_of(sizes | self.flat.numbers, {**self.flat.arrays, **cells, **room, "dials": dial_array})
        head = room_for_head(HEADS[type(self.network.likelihood)], sizes["n_theta"], sizes["n_genes"])
        work = len(cells["library"]) * sizes["n_genes"] * sizes["width"]
        kind = Pairs() if sizes["one_pair_in"] else NoPairs()
        counters = kernels.steps.n_counters(len(batches))
        team.run(kernels.steps.train_steps, job, head, kind, work=work, counters=counters)
        statistics = room["statistics"]
        optimizer.steps += float(len(batches) - statistics[:, 2].sum())
        return torch.from_numpy(statistics).float()

    def _sizes(self, cells: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Sizes of network and cells, by the names of fields of `scvae.kernels.records.JOB`."""
        network, encoder, most = self.network, self.encoder, int(np.diff(cells["starts"]).max())
        n_genes, width = encoder.genes.weight.shape
        base = negative_binomial_of(head_of(network))
        pairs = self.config.consistency > 0.0 and network.conditions.n_columns > 0
        return {
            "width": width,
            "n_latent": network.n_latent,
            "n_genes": n_genes,
            "n_covariates": encoder.covariates.weight.shape[0],
            "n_conditions": network.conditions.n_columns,
            "n_features": network.decoder.n_features,
            "n_logits": self.flat.numbers["n_logits"],
            "n_small": self.flat.numbers["n_small"],
            "n_encoder": len(self.flat.arrays["encoder"]),
            "n_decoder": len(self.flat.arrays["decoder"]),
            "n_theta": 0 if base is None else len(base.log_inverse_dispersion),
            "has_norm": isinstance(encoder.norms[0], nn.LayerNorm),
            "block": rows_per_block(most),
            "one_pair_in": ONE_PAIR_IN if pairs else 0,
            "most_cells": most,
            "dense": len(cells["counts"]) > crowded_from(most * n_genes) * len(cells["library"]) * n_genes,
            "feature_scale": network.decoder.condition_scale,
            "n_labels": len(network.classifier.bias) if network.classifier and len(cells["labels"]) else 0,
            "label_weight": network.classifier.term_weight if network.classifier else 0.0,
        }

    def _cells(self, batches: Sequence[Batch], noises: Sequence[Tensor]) -> dict[str, NDArray[Any]]:
        """The cells of all batches, by the names of fields of `scvae.kernels.records.JOB`."""
        network, head = self.network, head_of(self.network)
        base = negative_binomial_of(head)
        rows = [batch.x.sorted() for batch in batches if isinstance(batch.x, CSR)]
        lengths = np.concatenate([x.indptr.diff().numpy() for x in rows])
        center = (head.base if isinstance(head, ZeroInflated) else head).mean_log_library
        log_depth = torch.cat([log_library(batch, center) for batch in batches])
        conditions = torch.cat([network.conditions(batch) for batch in batches])
        covariates = log_depth[:, None]
        if network.encode_conditions:
            covariates = torch.cat([covariates, conditions[:, network.conditions.fitted]], dim=1)
        group = [base.dispersions(batch)[1] if base else torch.zeros_like(batch.group) for batch in batches]
        tensors = {
            "group": torch.cat(group),
            "labels": torch.cat([batch.group[:0] if batch.labels is None else batch.labels for batch in batches]),
            "indices": torch.cat([x.indices for x in rows]),
            "counts": torch.cat([x.values for x in rows]),
            "library": torch.cat([batch.library for batch in batches]),
            "scale": torch.exp(-log_depth),
            "covariates": covariates,
            "conditions": conditions,
            "noise": torch.cat(list(noises)),
        }
        return {
            "starts": np.cumsum([0, *map(len, batches)]),
            "indptr": np.concatenate([[0], np.cumsum(lengths)]),
            **{name: tensor.contiguous().numpy() for name, tensor in tensors.items()},
        }


def _windows(steps: Iterator[Any], at_once: int) -> Iterator[list[Any]]:
    """The steps in groups of `at_once`."""
    while window := list(islice(steps, at_once)):
        yield window
