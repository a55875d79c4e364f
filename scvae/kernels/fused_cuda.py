"""Operations on a CUDA device, with Triton kernels if they can be used and plain torch otherwise."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from .backends import kernels_for
from .block import Block
from .selection import SelectedRows

LOGITS_BUDGET = 2**26  # float32 logits in memory (256 MB): larger batches pass the output layer in parts


def densify(rows: Block, scale: Float[Tensor, "rows"] | None = None) -> Float[Tensor, "rows columns"]:
    """Rows as a dense float32 block; with `scale`, log1p(value x scale of the row) of each value."""
    chosen = rows.selected()
    if not isinstance(chosen, SelectedRows):
        return chosen.to_dense() if scale is None else torch.log1p(chosen.to_dense() * scale[:, None])
    kernels = kernels_for(chosen.values.device)
    if kernels is None:
        return chosen.to_dense(scale)
    dense: Tensor = kernels.densify(chosen.first, chosen.last, chosen.indices, chosen.values, chosen.n_columns, scale)
    return dense


class CountHead(torch.autograd.Function):
    """Output layer, softmax and log p of the counts on a device, as in `autograd.negative_binomial`.

    The forward pass overwrites the logits of each part of the rows with their gradient and computes the gradients of
    parameters and features from it; the backward pass only scales these.
    """

    @staticmethod
    def forward(
        ctx: Any,
        head: str,
        features: Tensor,
        weight: Tensor,
        bias: Tensor,
        log_theta: Tensor,
        counts: Block,
        library: Tensor,
        group: Tensor,
        row_weight: Tensor,
    ) -> tuple[Tensor, Tensor]:
        kernels = kernels_for(features.device)
        assert kernels is not None
        cells = counts.selected()
        assert isinstance(cells, SelectedRows)
        stored = (cells.first, cells.last, cells.indices, cells.values, cells.longest)
        want_gradient = any(ctx.needs_input_grad)
        gradients = [torch.zeros_like(t) for t in (features, weight, bias, log_theta)] if want_gradient else []
        theta, part = log_theta.exp(), max(1, LOGITS_BUDGET // len(weight))
        log_prob = []
        for start in range(0, len(features), part):
            rows = slice(start, min(start + part, len(features)))
            logits = torch.addmm(bias, features[rows], weight.T)
            per_row, slabs = kernels.count_rows(
                head, logits, *stored, library, theta, group, row_weight[rows], start, want_gradient
            )
            log_prob.append(per_row)
            if want_gradient:
                torch.mm(logits, weight, out=gradients[0][rows])
                if ctx.needs_input_grad[2]:
                    gradients[1].addmm_(logits.T, features[rows])
                gradients[2].add_(logits.sum(0))
                gradients[3].add_(slabs.sum(0))
        ctx.save_for_backward(*gradients)
        per_row = torch.cat(log_prob)
        total, per_row = (per_row * row_weight).sum().float(), per_row.float()
        ctx.mark_non_differentiable(per_row)
        return total, per_row

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(saved * gradient for saved in ctx.saved_tensors), None, None, None, None
