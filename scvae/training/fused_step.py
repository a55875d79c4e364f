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
    Kind,
    MixturePrior,
    NegativeBinomialHead,
    NoPairs,
    NormalPrior,
    Pairs,
    PoissonHead,
    ZeroInflatedHead,
    job_of,
    room_for_head,
    room_for_joint_head,
    room_for_measurement,
    room_for_steps,
)
from ..kernels.threads import of_call
from ..likelihoods.base import log_library
from ..likelihoods.continuous import Gaussian
from ..likelihoods.counts import NegativeBinomial, Poisson, ZeroInflated
from ..model.blocks import Dropout
from ..model.encoder import Encoder
from ..model.latent.mixture import TrainedMixture
from ..model.latent.prior import StandardNormal
from ..model.optimizer import Adam
from ..model.vae import VAE
from .consistency import ONE_PAIR_IN
from .flat import Flat, Head, base_of, measurements_of, views_of
from .step import Dials, with_draws

AT_ONCE = 2**22  # cells x genes of the steps that one call of the kernel makes, which takes some ten milliseconds
HEADS = {NegativeBinomial: NegativeBinomialHead, ZeroInflated: ZeroInflatedHead, Poisson: PoissonHead}
JOINT: set[type[nn.Module]] = {NegativeBinomial, Gaussian}  # what several measurements may have; the first has counts


def can_be_fused(network: VAE, config: TrainingConfig) -> bool:
    """Whether the kernel computes the steps of this network and objective."""
    if not isinstance(network.encoder, Encoder) or not network.decoder.is_chain:
        return False
    norms = (*network.encoder.norms, *getattr(network.decoder, "norms", ()))
    return (
        network.device.type == "cpu"
        and cpu_kernels() is not None
        and _are_known([type(network.likelihood), *(type(view.head) for view in views_of(network))])
        and network.encoder.genes.weight.dtype == torch.float32
        and all(isinstance(norm, nn.LayerNorm | nn.Identity) for norm in norms)
        and not any(isinstance(m, Dropout) and m.rate > 0.0 for m in network.modules())
        and network.encoder.shifts is None
        and network.betas is None
        and isinstance(network.prior, StandardNormal | TrainedMixture)
        and config.free_bits == 0.0
        and config.capacity is None
    )


def _are_known(kinds: Sequence[type[nn.Module]]) -> bool:
    """Whether the kernel knows heads of these kinds together."""
    return kinds[0] in HEADS if len(kinds) == 1 else kinds[0] is NegativeBinomial and set(kinds) <= JOINT


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
        at_once = max(1, AT_ONCE // (max(map(len, plan)) * self.n_genes))
        return [row for window in _windows(steps, at_once) for row in self._steps(*zip(*window, strict=True))]

    def _steps(self, batches: Sequence[Batch], noises: Sequence[Tensor], dials: Sequence[Dials]) -> Tensor:
        """The steps of some batches; the result is as that of `EagerStep.run`."""
        kernels = cpu_kernels()
        assert kernels is not None
        optimizer, of_measurements = self.optimizer, self.flat.of_measurements
        heads = [head for head, _ in measurements_of(self.network)]
        of_each = zip(*(_faces(batch) for batch in batches), strict=True)
        values, beside = zip(*(_values(*part) for part in zip(heads, of_each, strict=True)), strict=True)
        cells = self._cells(batches, noises, beside)
        sizes = self._sizes(cells) | {"n_steps": len(batches), "steps_before": int(optimizer.steps)}
        room = room_for_steps(sizes | _largest(of_measurements), of_call())
        numbers = [(d.kl_weight, d.learning_rate, self.config.consistency) for d in dials]
        shared = {**self.flat.arrays, **cells, **room, "dials": np.array(numbers, np.float32)}
        parts = [self._part(sizes | part, some) for part, some in zip(of_measurements, values, strict=True)]
        jobs = np.concatenate([job_of(of_part, shared | arrays) for of_part, arrays in parts])
        joint = len({type(head) for head in heads}) > 1
        tables = tuple(
            _tables(head, part["n_theta"], part["n_genes"], joint=joint)
            for head, part in zip(heads, of_measurements, strict=True)
        )
        work = cells["starts"][-1] * self.n_genes * sizes["width"]
        mixture = isinstance(self.network.prior, TrainedMixture)
        kind = Kind(Pairs() if sizes["one_pair_in"] else NoPairs(), MixturePrior() if mixture else NormalPrior())
        counters = kernels.steps.n_counters(len(batches))
        team.run(kernels.steps.train_steps, jobs, tables, kind, work=work, counters=counters)
        statistics = room["statistics"]
        optimizer.steps += float(len(batches) - statistics[:, 2].sum())
        return torch.from_numpy(statistics).float()

    @property
    def n_genes(self) -> int:
        """Number of genes, with the features of further measurements."""
        return sum(part["n_genes"] for part in self.flat.of_measurements)

    def _sizes(self, cells: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
        """Sizes of network and cells, by the names of fields of `scvae.kernels.records.JOB`; not of a measurement."""
        network, encoder, most = self.network, self.encoder, int(np.diff(cells["starts"]).max())
        pairs = self.config.consistency > 0.0 and network.conditions.n_columns > 0
        n_covariates, n_encoded = cells["covariates"].shape[1], len(network.conditions.fitted)
        return self.flat.numbers | {
            "width": encoder.genes.weight.shape[1],
            "n_latent": network.n_latent,
            "n_covariates": n_covariates,
            "n_own": n_covariates - (n_encoded if network.encode_conditions else 0),
            "n_conditions": network.conditions.n_columns,
            "n_features": network.decoder.n_features,
            "n_encoder": len(self.flat.arrays["encoder"]),
            "n_decoder": len(self.flat.arrays["decoder"]),
            "has_norm": isinstance(encoder.norms[0], nn.LayerNorm),
            "block": rows_per_block(most),
            "one_pair_in": ONE_PAIR_IN if pairs else 0,
            "most_cells": most,
            "feature_scale": network.decoder.condition_scale,
            "n_labels": len(network.classifier.bias) if network.classifier and len(cells["labels"]) else 0,
            "label_weight": network.classifier.term_weight if network.classifier else 0.0,
            "n_components": len(network.prior.centre) if isinstance(network.prior, TrainedMixture) else 0,
            "prior_rate": network.prior.learning_rate,
        }

    def _part(
        self, sizes: dict[str, Any], values: dict[str, NDArray[Any]]
    ) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Numbers and arrays of the job of a measurement, with room for the kernel."""
        n_genes, n_stored = sizes["n_genes"], len(values["counts"])
        crowded = crowded_from(sizes["most_cells"] * n_genes) * len(values["library"]) * n_genes
        sizes = sizes | {"dense": n_stored > crowded}
        return sizes, values | room_for_measurement(sizes, n_stored)

    def _cells(
        self,
        batches: Sequence[Batch],
        noises: Sequence[Tensor],
        beside: Sequence[Float[Tensor, "cells _"]],
    ) -> dict[str, NDArray[Any]]:
        """The cells of all batches, by the names of fields of `scvae.kernels.records.JOB`; not of a measurement.

        The covariates are in the order of `scvae.training.flat.Flat`; `beside` are those of each measurement.
        """
        network = self.network
        conditions = torch.cat([network.conditions(batch) for batch in batches])
        covariates = [*beside[1:], beside[0][:, :-1]]  # cells without the first one have its bias, too
        if network.encode_conditions:
            covariates.append(conditions[:, network.conditions.fitted])
        tensors = {
            "labels": torch.cat([batch.group[:0] if batch.labels is None else batch.labels for batch in batches]),
            "covariates": torch.cat(covariates, dim=1),
            "conditions": conditions,
            "noise": torch.cat(list(noises)),
        }
        return {"starts": np.cumsum([0, *map(len, batches)]), **_arrays(tensors)}


def _faces(batch: Batch) -> list[Batch]:
    """The batch with each of its measurements in place of the first."""
    return [batch, *(batch.of_view(view) for view in batch.views)]


def _tables(head: Head, n_theta: int, n_genes: int, *, joint: bool) -> Any:
    """Room for the tables of a head; `joint` if another one is of another kind."""
    if not joint:
        return room_for_head(HEADS[type(head)], n_theta, n_genes)
    if isinstance(head, Gaussian):
        return room_for_joint_head(0, 0, head.minimum_scale, head.spread.log().numpy())
    return room_for_joint_head(n_theta, n_genes)


def _rows(head: Head, batch: Batch) -> CSR:
    """The values of a batch; those of real ones standardised, and all of them stored."""
    if not isinstance(head, Gaussian):
        assert isinstance(batch.x, CSR)
        return batch.x.sorted()
    values = head.encoder_input(batch)[0].values
    n, n_columns = values.shape
    indices = torch.arange(n_columns, dtype=torch.int32).repeat(n)
    return CSR(n_columns * torch.arange(n + 1), indices, values.flatten(), n_columns)


def _values(head: Head, batches: Sequence[Batch]) -> tuple[dict[str, NDArray[Any]], Float[Tensor, "cells _"]]:
    """A measurement of all cells, by the names of fields of `scvae.kernels.records.JOB`; what the encoder sees beside.

    That is the log of the depth, of counts, and 1; both are 0 in cells without it.
    """
    base = base_of(head)
    rows = [_rows(head, batch) for batch in batches]
    lengths = np.concatenate([x.indptr.diff().numpy() for x in rows])
    center = torch.zeros(()) if isinstance(base, Gaussian) else base.mean_log_library
    log_depth = torch.cat([log_library(batch, center) for batch in batches])
    has = torch.cat([torch.ones(len(b)) if b.present is None else b.present.float() for b in batches])
    group = [
        base.dispersions(batch)[1] if isinstance(base, NegativeBinomial) else torch.zeros_like(batch.group)
        for batch in batches
    ]
    tensors = {
        "present": has,
        "scale": torch.exp(-log_depth) * has,
        "group": torch.cat(group),
        "indices": torch.cat([x.indices for x in rows]),
        "counts": torch.cat([x.values for x in rows]),
        "library": torch.cat([batch.library for batch in batches]),
    }
    arrays = {"indptr": np.concatenate([[0], np.cumsum(lengths)]), **_arrays(tensors)}
    return arrays, torch.stack([*[log_depth * has] * head.n_encoder_covariates, has], dim=1)


def _arrays(tensors: Mapping[str, Tensor]) -> dict[str, NDArray[Any]]:
    return {name: tensor.contiguous().numpy() for name, tensor in tensors.items()}


def _largest(of_measurements: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Sizes that suffice for each measurement."""
    return {name: max(part[name] for part in of_measurements) for name in ("n_genes", "n_logits")}


def _windows(steps: Iterator[Any], at_once: int) -> Iterator[list[Any]]:
    """The steps in groups of `at_once`."""
    while window := list(islice(steps, at_once)):
        yield window
