"""Differentiable operations that pick the fast kernel where there is one and the plain reference elsewhere."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from . import reference
from .backends import cpu_kernels, kernels_for
from .block import Block, Dense
from .csr import CSR
from .fused_cpu import FusedHead, RowsMatmul
from .fused_cuda import CountHead, densify


class WeightedLogProb(NamedTuple):
    """What a fused likelihood returns.

    total
        sum over rows of weight * log p: differentiable.
    per_row
        log p of each row in nats: a value only, no gradient passes through it.
    """

    total: Float[Tensor, ""]
    per_row: Float[Tensor, "rows"]


def csr_matmul(
    rows: CSR, weight: Float[Tensor, "columns width"], start: Float[Tensor, "*rows width"]
) -> Float[Tensor, "rows width"]:
    """start + rows @ weight without a dense copy of all rows; differentiable in the weight and the start."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and cpu_kernels() is not None:
        product: Tensor = RowsMatmul.apply(start.expand(len(rows), -1), weight, rows)
        return product
    if kernels_for(weight.device) is not None and weight.dtype == torch.float32:
        return torch.addmm(start, densify(rows), weight)
    return start + reference.csr_matmul(rows, weight)


def log1p_scaled(rows: Block, scale: Float[Tensor, " rows"]) -> CSR | Dense:
    """log1p(scale of the row x value) of every value; not differentiable."""
    if not isinstance(rows, CSR):
        return Dense(densify(rows, scale))
    kernels = cpu_kernels() if scale.device.type == "cpu" and scale.dtype == torch.float32 else None
    if kernels is None:
        return rows.with_values(reference.log1p_scaled(rows, scale))
    out = torch.empty_like(rows.values)
    kernels.heads.log1p_scaled(rows.indptr.numpy(), rows.values.numpy(), scale.numpy(), out.numpy())
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

    Row i of `features` belongs to cell i % cells, so several draws of the latent for the same cells stand one after
    another. On the CPU the gradients are formed in the forward pass, block by block, and only scaled in the backward
    pass (as in Liger-Kernel's fused linear cross entropy): no cells x genes intermediate is kept.
    """
    tensors = (features, weight, bias, log_inverse_dispersion)
    if _on_device(features):
        return WeightedLogProb(*CountHead.apply("nb", *tensors, counts, library, group, row_weight))
    if _fusible(features, counts):
        return WeightedLogProb(*FusedHead.apply("nb_rows", *tensors, counts, library, group, row_weight))
    table = _negative_binomial_table(features, weight, bias, log_inverse_dispersion, counts, library, group)
    return _weighted(table, row_weight)


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
    """As `negative_binomial`, with zeros added with probability sigmoid(features @ zero_weight.T + zero_bias)."""
    tensors = (torch.cat([weight, zero_weight]), torch.cat([bias, zero_bias]), log_inverse_dispersion)
    if _on_device(features):
        return WeightedLogProb(*CountHead.apply("zinb", features, *tensors, counts, library, group, row_weight))
    if _fusible(features, counts):
        return WeightedLogProb(*FusedHead.apply("zinb_rows", features, *tensors, counts, library, group, row_weight))
    base = _negative_binomial_table(features, weight, bias, log_inverse_dispersion, counts, library, group)
    x = _per_row(counts.to_dense(), features)
    return _weighted(reference.zero_inflated_log_prob(x, base, features @ zero_weight.T + zero_bias), row_weight)


def poisson(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    counts: Block,
    library: Float[Tensor, " cells"],
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """As `negative_binomial`, for the Poisson."""
    none, group = features.new_zeros(1, 0), torch.zeros(len(counts), dtype=torch.int64, device=features.device)
    if _on_device(features):
        return WeightedLogProb(
            *CountHead.apply("poisson", features, weight, bias, none, counts, library, group, row_weight)
        )
    if _fusible(features, counts):
        return WeightedLogProb(
            *FusedHead.apply("poisson_rows", features, weight, bias, none, counts, library, group, row_weight)
        )
    log_mean = reference.log_softmax_mean(features @ weight.T + bias, _per_row(library, features))
    return _weighted(reference.poisson_log_prob(_per_row(counts.to_dense(), features), log_mean), row_weight)


def bernoulli(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    values: Block,
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """Output layer and Bernoulli log-probability in one operation; rows as in `negative_binomial`."""
    if _fusible(features, values):
        none, group = features.new_zeros(1, 0), torch.zeros(len(values), dtype=torch.int64)
        library = features.new_zeros(len(values))
        return WeightedLogProb(
            *FusedHead.apply("bernoulli_rows", features, weight, bias, none, values, library, group, row_weight)
        )
    table = reference.bernoulli_log_prob(_per_row(values.to_dense(), features), features @ weight.T + bias)
    return _weighted(table, row_weight)


def _on_device(features: Tensor) -> bool:
    return features.dtype == torch.float32 and kernels_for(features.device) is not None


def _fusible(features: Tensor, counts: Block) -> bool:
    on_cpu = features.device.type == "cpu" and isinstance(counts, CSR)
    return on_cpu and features.dtype == torch.float32 and cpu_kernels() is not None


def _negative_binomial_table(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_theta: Tensor,
    counts: Block,
    library: Tensor,
    group: Tensor,
) -> Float[Tensor, "rows genes"]:
    log_mean = reference.log_softmax_mean(features @ weight.T + bias, _per_row(library, features))
    x = _per_row(counts.to_dense(), features)
    return reference.negative_binomial_log_prob(x, log_mean, log_theta[_per_row(group, features)])


def _per_row(of_cells: Tensor, features: Tensor) -> Tensor:
    """Values of the cells, repeated for each row of features: row i is cell i % cells."""
    return of_cells.repeat(len(features) // len(of_cells), *[1] * (of_cells.dim() - 1))


def _weighted(table: Float[Tensor, "rows genes"], row_weight: Float[Tensor, " rows"]) -> WeightedLogProb:
    per_row = table.sum(1)
    return WeightedLogProb((row_weight * per_row).sum(), per_row.detach().to(row_weight.dtype))
