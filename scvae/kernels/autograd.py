"""Differentiable operations, with a fast kernel if there is one, else with the plain reference."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import reference, team
from .backends import cpu_kernels, kernels_for
from .block import Block, Dense
from .csr import CSR
from .fused_cpu import FusedHead, RowsMatmul
from .fused_cuda import CountHead, densify

ROWS = 64  # that a thread takes at a time


class WeightedLogProb(NamedTuple):
    """What a fused likelihood returns.

    total
        Sum over rows of weight * log p; differentiable.
    per_row
        log p of each row in nats, without a gradient.
    """

    total: Float[Tensor, ""]
    per_row: Float[Tensor, "rows"]


def csr_matmul(
    rows: CSR, weight: Float[Tensor, "columns width"], start: Float[Tensor, "*rows width"]
) -> Float[Tensor, "rows width"]:
    """start + rows @ weight without a dense copy of all rows; differentiable in `weight` and `start`."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and cpu_kernels() is not None:
        product: Tensor = RowsMatmul.apply(start.expand(len(rows), -1), weight, rows)
        return product
    if kernels_for(weight.device) is not None and weight.dtype == torch.float32:
        return torch.addmm(start, densify(rows), weight)
    return start + reference.csr_matmul(rows, weight)


def log1p_scaled(rows: Block, scale: Float[Tensor, " rows"]) -> CSR | Dense:
    """log1p(value x scale of the row) of each value; not differentiable."""
    if not isinstance(rows, CSR):
        return Dense(densify(rows, scale))
    kernels = cpu_kernels() if scale.device.type == "cpu" and scale.dtype == torch.float32 else None
    if kernels is None:
        return rows.with_values(reference.log1p_scaled(rows, scale))
    out = torch.empty_like(rows.values)
    arrays = (rows.indptr.numpy(), rows.values.numpy(), scale.numpy(), out.numpy())
    team.run(kernels.heads.log1p_scaled, ROWS, *arrays, work=10 * len(out))
    return rows.with_values(out)


def negative_binomial(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    log_inverse_dispersion: Float[Tensor, "groups genes"],
    counts: Block,
    library: Float[Tensor, " cells"],
    group: Int[Tensor, " cells"],
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """Output layer, softmax and negative-binomial log-probability in one operation.

    Row i of `features` belongs to cell i % cells: each draw of the latent has all cells, and the draws follow one
    another. On the CPU the gradients are computed in the forward pass, block by block, and only scaled in the backward
    pass (as in Liger-Kernel's fused linear cross entropy), so that no cells x genes intermediate is kept.
    """
    table = partial(_negative_binomial_table, features, weight, bias, log_inverse_dispersion, library, group)
    return _head("nb", features, weight, bias, log_inverse_dispersion, counts, library, group, row_weight, table)


def zero_inflated(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    zero_weight: Float[Tensor, "genes features"],
    zero_bias: Float[Tensor, " genes"],
    log_inverse_dispersion: Float[Tensor, "groups genes"],
    counts: Block,
    library: Float[Tensor, " cells"],
    group: Int[Tensor, " cells"],
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """As `negative_binomial`, with extra zeros of probability sigmoid(features @ zero_weight.T + zero_bias)."""

    def table(x: Tensor) -> Tensor:
        base = _negative_binomial_table(features, weight, bias, log_inverse_dispersion, library, group, x)
        return reference.zero_inflated_log_prob(x, base, features @ zero_weight.T + zero_bias)

    both, biases = torch.cat([weight, zero_weight]), torch.cat([bias, zero_bias])
    return _head("zinb", features, both, biases, log_inverse_dispersion, counts, library, group, row_weight, table)


def poisson(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    counts: Block,
    library: Float[Tensor, " cells"],
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """As `negative_binomial`, for the Poisson distribution."""

    def table(x: Tensor) -> Tensor:
        return reference.poisson_log_prob(x, _log_mean(features, weight, bias, library))

    return _head("poisson", features, weight, bias, None, counts, library, None, row_weight, table)


def bernoulli(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    values: Block,
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """Output layer and Bernoulli log-probability in one operation; rows as in `negative_binomial`."""

    def table(x: Tensor) -> Tensor:
        return reference.bernoulli_log_prob(x, features @ weight.T + bias)

    return _head("bernoulli", features, weight, bias, None, values, None, None, row_weight, table)


def repeat_cells(values: Tensor, n_rows: int) -> Tensor:
    """Repeats per-cell values for the draws of each cell: row i is cell i % cells."""
    draws = n_rows // max(values.shape[0], 1)
    return values if draws == 1 else values.repeat(draws, *[1] * (values.dim() - 1))


def weighted(table: Float[Tensor, "rows genes"], row_weight: Float[Tensor, " rows"]) -> WeightedLogProb:
    """Sums a table of log-probabilities over genes, for each row and as a weighted total over rows."""
    per_row = table.sum(1)
    return WeightedLogProb((row_weight * per_row).sum(), per_row.detach().to(row_weight.dtype))


def _head(
    name: str,
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_theta: Tensor | None,
    values: Block,
    library: Tensor | None,
    group: Tensor | None,
    row_weight: Tensor,
    table: Callable[[Tensor], Tensor],
) -> WeightedLogProb:
    """The Triton or numba kernel of this name, which needs all arguments, if it can be used; else the plain table."""
    on_device = name != "bernoulli" and kernels_for(features.device) is not None
    on_cpu = features.device.type == "cpu" and isinstance(values, CSR)
    if features.dtype == torch.float32 and (on_device or (on_cpu and cpu_kernels() is not None)):
        log_theta = features.new_zeros(1, 0) if log_theta is None else log_theta
        library = features.new_zeros(len(values)) if library is None else library
        group = torch.zeros(len(values), dtype=torch.int64, device=features.device) if group is None else group
        tensors = (features, weight, bias, log_theta, values, library, group, row_weight)
        return WeightedLogProb(*(CountHead.apply(name, *tensors) if on_device else FusedHead.apply(name, *tensors)))
    return weighted(table(repeat_cells(values.to_dense(), len(features))), row_weight)


def _log_mean(features: Tensor, weight: Tensor, bias: Tensor, library: Tensor) -> Float[Tensor, "rows genes"]:
    return reference.log_softmax_mean(features @ weight.T + bias, repeat_cells(library, len(features)))


def _negative_binomial_table(
    features: Tensor, weight: Tensor, bias: Tensor, log_theta: Tensor, library: Tensor, group: Tensor, x: Tensor
) -> Float[Tensor, "rows genes"]:
    log_mean = _log_mean(features, weight, bias, library)
    return reference.negative_binomial_log_prob(x, log_mean, log_theta[repeat_cells(group, len(features))])
