"""The layers of encoder and decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from ..config import Norm
from ..kernels.autograd import csr_matmul
from ..kernels.block import Dense
from ..kernels.csr import CSR
from ..kernels.shared_batch import shared, total


class Weights(nn.Module):
    """A matrix of weights, inputs x outputs, for a linear term without a bias.

    The weights are drawn from the caller's generator; torch's own layers would use the global random state.
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_inputs, n_outputs, generator=generator) / math.sqrt(max(n_inputs, 1)))


class Linear(nn.Module):
    """rows @ weight + bias, with the weight stored as inputs x outputs and drawn as in `Weights`.

    With knots of β, there is one layer per knot, and all are equal at the start. The output of a row is the weighted
    mean over its knots; the weights sum to 1, so this interpolates weights and biases in log β.

    Parameters
    ----------
    n_knots
        Number of knots of β (see `BetaRange`); 0 for one β.
    """

    def __init__(self, n_inputs: int, n_outputs: int, *, n_knots: int = 0, generator: torch.Generator) -> None:
        super().__init__()
        copies = max(n_knots, 1)
        self.n_outputs = n_outputs
        self.weight = nn.Parameter(Weights(n_inputs, n_outputs, generator=generator).weight.detach().repeat(1, copies))
        self.bias = nn.Parameter(torch.zeros(n_outputs * copies))

    def forward(
        self, rows: Float[Tensor, "rows inputs"], knots: Float[Tensor, "rows knots"] | None = None
    ) -> Float[Tensor, "rows outputs"]:
        outputs = torch.addmm(self.bias, rows, self.weight)
        if knots is None:
            return outputs
        mixed: Tensor = (knots[:, :, None] * outputs.unflatten(1, (-1, self.n_outputs))).sum(1)
        return mixed

    @torch.no_grad()
    def drop_inputs(self, dropped: Bool[Tensor, " first"], constant: Float[Tensor, " first"]) -> None:
        """Removes some of the first inputs and fixes them at the given values."""
        first, others = self.weight[: len(dropped)], self.weight[len(dropped) :]
        self.bias.add_((constant * dropped) @ first)
        self.weight = nn.Parameter(torch.cat([first[~dropped], others]))

    @torch.no_grad()
    def drop_outputs(self, dropped: Bool[Tensor, " outputs"]) -> None:
        """Removes outputs, at every knot."""
        kept = (~dropped).repeat(len(self.bias) // self.n_outputs)
        self.weight, self.bias = nn.Parameter(self.weight[:, kept]), nn.Parameter(self.bias[kept])
        self.n_outputs -= int(dropped.sum())


def add_product(
    start: Float[Tensor, "*rows outputs"],
    rows: CSR | Dense,
    weight: Float[Tensor, "inputs outputs"],
) -> Float[Tensor, "rows outputs"]:
    """start + rows @ weight, for sparse or dense rows."""
    return csr_matmul(rows, weight, start) if isinstance(rows, CSR) else torch.addmm(start, rows.values, weight)


class Dropout(nn.Module):
    """Dropout with masks from a generator that is passed with each training batch."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, rows: Float[Tensor, "..."], generator: torch.Generator | None) -> Tensor:
        if generator is None or self.rate == 0.0:
            return rows
        keep = torch.empty_like(rows).bernoulli_(1.0 - self.rate, generator=generator)
        return rows * keep / (1.0 - self.rate)


class BatchNorm(nn.Module):
    """Batch normalisation that uses its running statistics for a batch of one cell.

    If a batch is split over several processes, the statistics are those of the complete batch.
    """

    running_mean: Tensor
    running_variance: Tensor

    def __init__(self, width: int, *, momentum: float = 0.01, eps: float = 1e-3) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_buffer("running_mean", torch.zeros(width))
        self.register_buffer("running_variance", torch.ones(width))

    def forward(self, rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
        share = shared()
        if self.training and share is not None:
            return self._across_processes(rows, counts=share.counts)
        training = self.training and len(rows) > 1
        return batch_norm(
            rows, self.running_mean, self.running_variance, self.weight, self.bias, training, self.momentum, self.eps
        )

    def _across_processes(self, rows: Float[Tensor, "rows width"], *, counts: bool) -> Float[Tensor, "rows width"]:
        """The same with sums over all processes; torch's `SyncBatchNorm` runs on CUDA devices only."""
        share = 1.0 if counts else 0.0
        n = total(rows.new_full((), share * len(rows)))
        if n <= 1:
            mean, variance = self.running_mean, self.running_variance
        else:
            mean = total(share * rows.sum(0)) / n
            variance = total(share * (rows - mean).square().sum(0)) / n
            with torch.no_grad():
                self.running_mean.lerp_(mean, self.momentum)
                self.running_variance.lerp_(variance * n / (n - 1), self.momentum)
        return (rows - mean) * (variance + self.eps).rsqrt() * self.weight + self.bias


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A block in which forward passes do not change the running statistics of `module`."""
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def make_norm(name: Norm, width: int) -> nn.Module:
    """The normalisation layer called `name`."""
    if name == "batch":
        return BatchNorm(width)
    return nn.LayerNorm(width) if name == "layer" else nn.Identity()
