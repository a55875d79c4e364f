"""Numba kernels as torch operations: the output layer with its likelihood, and products with sparse rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import team
from .backends import Kernels, cpu_kernels
from .csr import CSR
from .records import BernoulliHead, NegativeBinomialHead, PoissonHead, ZeroInflatedHead
from .threads import of_call

LOGITS_BUDGET = 2**23  # most float32 logits in memory (32 MB): larger batches pass the output layer in chunks
CACHED_LOGITS = 2**20  # logits that fit in the cache (4 MB), unless a chunk then has too few rows for fast products
FEWEST_ROWS = 256
ROWS = 64  # of a piece of work: with fewer, packing the weights takes a large part of a product
ZERO, ONE = np.float32(0.0), np.float32(1.0)
HEADS = {"nb": NegativeBinomialHead, "zinb": ZeroInflatedHead, "poisson": PoissonHead, "bernoulli": BernoulliHead}


def crowded_from(size: int) -> float:
    """The share of non-zeros from which a product is faster with a dense block of `size` rows x columns.

    Both were equally fast at 22 % for 128 cells x 2,000 genes, 17 % for 1,024 x 2,000 and 13 % for 128 x 20,000:
    `benchmarks/first_layer.py`.
    """
    return 0.2 if size <= 2**20 else 0.12


def is_crowded(rows: CSR) -> bool:
    """Whether the product is faster with a dense block of these rows than with the sparse rows."""
    size = len(rows) * rows.n_columns
    return size <= LOGITS_BUDGET and rows.indices.numel() > crowded_from(size) * size


def rows_per_block(n_rows: int) -> int:
    """Rows of a piece of work: fewer than `ROWS` only if there are more threads than such pieces."""
    return ROWS if of_call() * ROWS <= max(n_rows, 2 * ROWS) else ROWS // 2


class RowsMatmul(torch.autograd.Function):
    """The product of sparse rows with a dense matrix, through a dense block if `is_crowded`."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, weight: Tensor, rows: CSR) -> Tensor:
        kernels = _kernels()
        ctx.rows, ctx.shape, ctx.block = rows, weight.shape, None
        out = start.clone(memory_format=torch.contiguous_format)
        factor = weight.detach().contiguous().numpy()
        if is_crowded(rows):
            ctx.block = torch.empty(len(rows), rows.n_columns)
            team.run(kernels.sparse.csr_to_dense, *_arrays(rows), ctx.block.numpy(), work=ctx.block.numel())
            _multiply(ctx.block, False, factor, ONE, out)
        else:
            work = weight.shape[1] * rows.indices.numel()
            team.run(kernels.sparse.csr_matmul, *_arrays(rows), factor, out.numpy(), work=work)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        kernels = _kernels()
        out, gradient = torch.empty(ctx.shape), gradient.contiguous()
        if ctx.block is not None:
            _multiply(ctx.block, True, gradient.numpy(), ZERO, out)
        else:
            rows = ctx.rows.sorted()
            work = out.shape[1] * rows.indices.numel()
            arrays = (*_arrays(rows), gradient.numpy(), out.numpy())
            team.run(kernels.sparse.csr_transposed_matmul, *arrays, work=work)
        return gradient, out, None


def _multiply(a: Tensor, transpose_a: bool, b: np.ndarray, beta: np.float32, out: Tensor) -> None:
    work = a.numel() * b.shape[1]
    team.run(_kernels().heads.multiply_pieces, a.numpy(), transpose_a, b, beta, out.numpy(), work=work)


class FusedHead(torch.autograd.Function):
    """The output layer and a kernel that computes log p per row from logits and overwrites them with their gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        name: str,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        counts: CSR,
        library: Tensor,
        group: Tensor,
        row_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        heads = _kernels().heads
        want_gradient = any(ctx.needs_input_grad)
        log_prob = np.empty(features.shape[0])
        of_features = torch.empty_like(features) if want_gradient else features[:0]
        of_weights = torch.empty_like(weight) if ctx.needs_input_grad[2] else None
        small = [np.zeros(t.shape, np.float32) for t in (bias, log_theta)]
        head = _head(HEADS[name], log_theta)
        # a loss uses -total, so the gradient of -total is computed here and needs no copy in `backward`
        cost_weight = -row_weight
        weights, features = weight.contiguous().numpy(), features.contiguous()
        chunks = _chunks(features.shape[0], len(counts), weight.shape[0])
        buffer = torch.empty(max(r.stop - r.start for _, blocks in chunks for r in blocks), weight.shape[0])
        added = ZERO  # 1 as soon as the gradient of the weights holds anything
        for cells, row_blocks in chunks:
            stored = counts.rows(cells.start, cells.stop)
            for rows in row_blocks:
                logits, part = buffer[: rows.stop - rows.start], features[rows]
                block = rows_per_block(len(logits))
                slabs = [np.zeros((-(-len(logits) // block), *t.shape), np.float32) for t in (bias, log_theta)]
                team.run(
                    heads.log_prob_rows, head, part.numpy(), weights, logits.numpy(), bias.numpy(), *_arrays(stored),
                    library[cells].numpy(), group[cells].numpy(), cost_weight[rows].numpy(), block, want_gradient,
                    of_features[rows].numpy(), log_prob[rows], *slabs, work=logits.numel() * part.shape[1],
                )  # fmt: skip
                if want_gradient:
                    if of_weights is not None:  # a third of the work, skipped for frozen weights
                        _multiply(logits, True, part.numpy(), added, of_weights)
                    small = [so_far + slab.sum(0) for so_far, slab in zip(small, slabs, strict=True)]
                    added = ONE
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


def _head(kind: type, log_theta: Tensor) -> Any:
    """The head with its tables, if it has any."""
    theta = log_theta.exp().contiguous().numpy()
    tables = _kernels().terms.count_tables(theta) if kind in {NegativeBinomialHead, ZeroInflatedHead} else ()
    return kind(theta, *tables)


def _kernels() -> Kernels:
    kernels = cpu_kernels()
    assert kernels is not None
    return kernels


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
