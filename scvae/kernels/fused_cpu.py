"""Numba kernels as torch operations: the output layer with its likelihood, and products with sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import cpu_kernels
from .csr import CSR
from .products import large_products

LOGITS_BUDGET = 2**23  # most float32 logits in memory (32 MB): larger batches pass the output layer in chunks
CACHED_LOGITS = 2**20  # logits that fit in the cache (4 MB), unless a chunk then has too few rows for fast products
FEWEST_ROWS = 256
THETA_BUDGET = 2**22  # partial sums of the dispersion gradient


def is_crowded(rows: CSR) -> bool:
    """Whether the product is faster with a dense block of these rows than with the sparse rows.

    The fraction of non-zeros at which both are equally fast was 22 % for 128 cells x 2,000 genes, 17 % for
    1,024 x 2,000 and 13 % for 128 x 20,000: `benchmarks/first_layer.py`.
    """
    size = len(rows) * rows.n_columns
    return size <= LOGITS_BUDGET and rows.indices.numel() > (0.2 if size <= 2**20 else 0.12) * size


class RowsMatmul(torch.autograd.Function):
    """The product of sparse rows with a dense matrix, through a dense block if `is_crowded`."""

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


class FusedHead(torch.autograd.Function):
    """The output layer and a kernel that computes log p per row from logits and overwrites them with their gradient."""

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
        # a loss uses -total, so the gradient of -total is computed here and needs no copy in `backward`
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
                        if of_weights is not None:  # a third of the work, skipped for frozen weights
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
    """Cuts the work by the budgets of logits: into complete draws of all cells, or into some cells of each draw."""
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
    """Rows per block and number of blocks, from the shape alone: sums must not depend on the number of threads."""
    n_blocks = max(1, min(16, n_rows // 4, THETA_BUDGET // max(1, theta_size)))
    block = -(-n_rows // n_blocks)
    return block, -(-n_rows // block)
