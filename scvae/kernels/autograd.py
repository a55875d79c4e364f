"""Differentiable operations that pick the fast kernel where there is one and the plain reference elsewhere."""

from __future__ import annotations

import logging
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import reference
from .csr import CSR
from .fused_cuda import CountHead, densify, kernels_for
from .products import large_products
from .selection import SelectedRows

logger = logging.getLogger(__name__)

LOGITS_BUDGET = 2**23  # float32 logits alive at once at most (32 MB): larger batches pass the output layer in chunks
CACHED_LOGITS = 2**20  # and few enough to stay in the cache (4 MB), unless that leaves too few rows for fast products
FEWEST_ROWS = 256
THETA_BUDGET = 2**22  # partial sums of the dispersion gradient


class WeightedLogProb(NamedTuple):
    """What a fused likelihood returns.

    total
        sum over rows of weight * log p: differentiable.
    per_row
        log p of each row in nats: a value only, no gradient passes through it.
    """

    total: Float[Tensor, ""]
    per_row: Float[Tensor, "rows"]


class Kernels(NamedTuple):
    """The modules of numba kernels: the heads of the model, and products with sparse rows."""

    heads: ModuleType
    sparse: ModuleType


@cache
def cpu_kernels() -> Kernels | None:
    """The numba kernels, or None (and one log line) where numba cannot be imported, or has no folder for its cache."""
    threads = torch.get_num_threads()
    try:
        from . import cpu, cpu_sparse
    except (ImportError, RuntimeError) as error:
        logger.warning(
            "numba is not usable here (%s); scvae falls back to plain torch, which is slower. If it is the folder for "
            "compiled kernels that is missing, set NUMBA_CACHE_DIR to one that can be written to",
            error,
        )
        return None
    # numba starts its threads at the first call, and gives the OpenMP library that it shares with torch its own number
    # of them: torch's products would change their last bits in the middle of a run. Set even if it is the same: MKL
    # chooses a number of its own (fewer on hyperthreads) until told one, and bits would depend on who told it before
    weight = np.zeros((1, 1), np.float32)
    cpu_sparse.csr_matmul(np.zeros(2, np.int64), np.zeros(0, np.int32), weight[0, :0], weight, np.zeros_like(weight))
    torch.set_num_threads(threads)
    return Kernels(cpu, cpu_sparse)


def csr_matmul(
    rows: CSR, weight: Float[Tensor, "columns width"], start: Float[Tensor, "*rows width"]
) -> Float[Tensor, "rows width"]:
    """start + rows @ weight without a dense copy of all rows; differentiable in the weight and the start."""
    if weight.device.type == "cpu" and weight.dtype == torch.float32 and cpu_kernels() is not None:
        product: Tensor = _RowsMatmul.apply(start.expand(len(rows), -1), weight, rows)
        return product
    if kernels_for(weight.device) is not None and weight.dtype == torch.float32:
        return torch.addmm(start, densify(rows), weight)
    return start + reference.csr_matmul(rows, weight)


def is_crowded(rows: CSR) -> bool:
    """Whether a dense block of these rows is multiplied faster than the rows as they are.

    The share of non-zeros at which the two are equal fell from 22 % (128 cells x 2,000 genes) over 17 % (1,024 x 2,000)
    to 13 % (128 x 20,000): `benchmarks/first_layer.py`.
    """
    size = len(rows) * rows.n_columns
    return size <= LOGITS_BUDGET and rows.indices.numel() > (0.2 if size <= 2**20 else 0.12) * size


def log1p_scaled(rows: CSR, scale: Float[Tensor, " rows"]) -> CSR:
    """The rows with log1p(scale of the row x value) as their values; not differentiable."""
    kernels = cpu_kernels() if scale.device.type == "cpu" and scale.dtype == torch.float32 else None
    if kernels is None:
        return rows.with_values(reference.log1p_scaled(rows, scale))
    out = torch.empty_like(rows.values)
    kernels.heads.log1p_scaled(rows.indptr.numpy(), rows.values.numpy(), scale.numpy(), out.numpy())
    return rows.with_values(out)


class _RowsMatmul(torch.autograd.Function):
    """Sparse x dense, or a dense block x dense where the rows are few and full enough."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, weight: Tensor, rows: CSR) -> Tensor:
        kernels = cpu_kernels()
        assert kernels is not None
        ctx.rows, ctx.shape, ctx.block = rows, weight.shape, None
        if is_crowded(rows):
            ctx.block = torch.empty(len(rows), rows.n_columns)
            kernels.sparse.csr_to_dense(*_arrays(rows), ctx.block.numpy())
            with large_products():
                return torch.addmm(start, ctx.block, weight)
        out = start.clone(memory_format=torch.contiguous_format)
        kernels.sparse.csr_matmul(*_arrays(rows), weight.detach().contiguous().numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        kernels = cpu_kernels()
        assert kernels is not None
        if ctx.block is not None:
            with large_products():
                return gradient, ctx.block.T @ gradient, None
        out = torch.empty(ctx.shape)
        kernels.sparse.csr_transposed_matmul(*_arrays(ctx.rows), gradient.contiguous().numpy(), out.numpy())
        return gradient, out, None


def negative_binomial(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    log_inverse_dispersion: Float[Tensor, "groups genes"],
    counts: CSR | SelectedRows,
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
        return WeightedLogProb(*_FusedHead.apply("nb_rows", *tensors, counts, library, group, row_weight))
    table = _negative_binomial_table(features, weight, bias, log_inverse_dispersion, counts, library, group)
    return _weighted(table, row_weight)


def zero_inflated(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    zero_weight: Float[Tensor, "genes features"],
    zero_bias: Float[Tensor, " genes"],
    log_inverse_dispersion: Float[Tensor, "groups genes"],
    counts: CSR | SelectedRows,
    library: Float[Tensor, " cells"],
    group: Int[Tensor, " cells"],
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """As `negative_binomial`, with zeros added with probability sigmoid(features @ zero_weight.T + zero_bias)."""
    tensors = (torch.cat([weight, zero_weight]), torch.cat([bias, zero_bias]), log_inverse_dispersion)
    if _on_device(features):
        return WeightedLogProb(*CountHead.apply("zinb", features, *tensors, counts, library, group, row_weight))
    if _fusible(features, counts):
        return WeightedLogProb(*_FusedHead.apply("zinb_rows", features, *tensors, counts, library, group, row_weight))
    base = _negative_binomial_table(features, weight, bias, log_inverse_dispersion, counts, library, group)
    x = _per_row(counts.to_dense(), features)
    return _weighted(reference.zero_inflated_log_prob(x, base, features @ zero_weight.T + zero_bias), row_weight)


def poisson(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    counts: CSR | SelectedRows,
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
            *_FusedHead.apply("poisson_rows", features, weight, bias, none, counts, library, group, row_weight)
        )
    log_mean = reference.log_softmax_mean(features @ weight.T + bias, _per_row(library, features))
    return _weighted(reference.poisson_log_prob(_per_row(counts.to_dense(), features), log_mean), row_weight)


def bernoulli(
    features: Float[Tensor, "rows features"],
    weight: Float[Tensor, "genes features"],
    bias: Float[Tensor, " genes"],
    values: CSR | SelectedRows,
    row_weight: Float[Tensor, " rows"],
) -> WeightedLogProb:
    """Output layer and Bernoulli log-probability in one operation; rows as in `negative_binomial`."""
    if _fusible(features, values):
        none, group = features.new_zeros(1, 0), torch.zeros(len(values), dtype=torch.int64)
        library = features.new_zeros(len(values))
        return WeightedLogProb(
            *_FusedHead.apply("bernoulli_rows", features, weight, bias, none, values, library, group, row_weight)
        )
    table = reference.bernoulli_log_prob(_per_row(values.to_dense(), features), features @ weight.T + bias)
    return _weighted(table, row_weight)


def _on_device(features: Tensor) -> bool:
    return features.dtype == torch.float32 and kernels_for(features.device) is not None


def _fusible(features: Tensor, counts: CSR | SelectedRows) -> bool:
    on_cpu = features.device.type == "cpu" and isinstance(counts, CSR)
    return on_cpu and features.dtype == torch.float32 and cpu_kernels() is not None


def _negative_binomial_table(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    log_theta: Tensor,
    counts: CSR | SelectedRows,
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


class _FusedHead(torch.autograd.Function):
    """Any kernel that turns logits into log p per row, and the logits into their own gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        kernel: str,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        counts: CSR,
        library: Tensor,
        group: Tensor,
        row_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kernels = cpu_kernels()
        assert kernels is not None
        rows_kernel = getattr(kernels.heads, kernel)
        want_gradient = any(ctx.needs_input_grad)
        log_prob = np.empty(features.shape[0])
        of_features = torch.empty_like(features) if want_gradient else None
        of_weights = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        small = [np.zeros(t.shape, np.float32) for t in (bias, log_theta)]
        theta = log_theta.exp().numpy()
        # -total is what a loss asks for: its gradient is the one that is formed, and needs no copy in `backward`
        cost_weight = -row_weight
        chunks = _chunks(features.shape[0], len(counts), weight.shape[0])
        buffer = torch.empty(max(r.stop - r.start for _, blocks in chunks for r in blocks), weight.shape[0])
        added = False  # whether the gradient of the weights holds anything yet
        for cells, row_blocks in chunks:
            stored = counts.rows(cells.start, cells.stop)
            for rows in row_blocks:
                logits = buffer[: rows.stop - rows.start]
                with large_products():
                    torch.mm(features[rows], weight.T, out=logits)
                block, n_blocks = _blocks(len(logits), log_theta.numel() + len(bias))
                slabs = [np.zeros((n_blocks, *t.shape), np.float32) for t in (bias, log_theta)]
                rows_kernel(
                    logits.numpy(), bias.numpy(), *_arrays(stored), library[cells].numpy(), theta,
                    group[cells].numpy(), cost_weight[rows].numpy(), block, want_gradient, log_prob[rows], *slabs,
                )  # fmt: skip
                if of_features is not None:
                    with large_products():
                        torch.mm(logits, weight, out=of_features[rows])
                        if of_weights is not None:  # a third of the products: not for frozen weights
                            torch.addmm(of_weights, logits.T, features[rows], beta=float(added), out=of_weights)
                    small = [so_far + slab.sum(0) for so_far, slab in zip(small, slabs, strict=True)]
                    added = True
        per_row = torch.from_numpy(log_prob)
        ctx.save_for_backward(of_features, of_weights, *map(torch.from_numpy, small))
        total, per_row = (per_row @ row_weight.double()).float(), per_row.float()
        ctx.mark_non_differentiable(per_row)
        return total, per_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale = -float(gradient)
        gradients = (saved if saved is None or scale == 1.0 else saved * scale for saved in ctx.saved_tensors)
        return None, *gradients, None, None, None, None


def _arrays(rows: CSR) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return rows.indptr.numpy(), rows.indices.numpy(), rows.values.numpy()


def _chunks(n_rows: int, n_cells: int, n_genes: int) -> list[tuple[slice, list[slice]]]:
    """Cuts the work by the budgets of logits alive: whole draws of all cells, or cells of one draw."""
    most = max(1, min(LOGITS_BUDGET // n_genes, max(FEWEST_ROWS, CACHED_LOGITS // n_genes)))
    draws = n_rows // n_cells
    if most >= n_cells:
        step = n_cells * (most // n_cells)
        return [(slice(0, n_cells), [slice(s, min(s + step, n_rows)) for s in range(0, n_rows, step)])]
    return [
        (slice(s, e), [slice(d * n_cells + s, d * n_cells + e) for d in range(draws)])
        for s in range(0, n_cells, most)
        for e in [min(s + most, n_cells)]
    ]


def _blocks(n_rows: int, theta_size: int) -> tuple[int, int]:
    """Rows in a block and blocks: set by the shape alone, so that sums do not depend on the number of threads."""
    n_blocks = max(1, min(16, n_rows // 4, THETA_BUDGET // max(1, theta_size)))
    block = -(-n_rows // n_blocks)
    return block, -(-n_rows // block)
