"""Speed of the device itself, measured with torch alone: `python -m _speed.products TASK SETTINGS`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from . import worker
from .worker import Answer


def decoder_products(
    batch_size: int, genes: int, width: int, fastest: bool, least_seconds: float, device: str
) -> Answer:
    """Speed of the decoder's three matrix products of one step: logits, gradient of the features, gradient of weights.

    Parameters
    ----------
    fastest
        Whether torch may round float32 products as its fastest mode does. On a CPU this is oneDNN's "bf16" hint;
        processors without bf16 products then compute exact products with other code. On CUDA it is TF32.

    Returns
    -------
    dict
        `cells_per_second`, and `relative_error` of the logits against float64, which shows the precision of the mode.
    """
    if fastest and device == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = True
    elif fastest:
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    generator = torch.Generator(device=device).manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    features, weight, gradient = draw(batch_size, width), draw(genes, width), draw(batch_size, genes)
    logits, to_features, to_weight = torch.empty_like(gradient), torch.empty_like(features), torch.empty_like(weight)

    def step() -> None:
        torch.mm(features, weight.T, out=logits)
        torch.mm(gradient, weight, out=to_features)
        torch.mm(gradient.T, features, out=to_weight)

    seconds = worker.seconds_per_call(_finished(step, device), least_seconds, least_calls=10)
    exact = features[:128].double() @ weight.double().T
    error = ((logits[:128] - exact).abs().max() / exact.abs().max()).item()
    return {"seconds": seconds, "cells_per_second": batch_size / seconds, "relative_error": error}


def limits(least_seconds: float, device: str) -> Answer:
    """Copy bandwidth in bytes per second (read plus written), and FLOPs per second of large bfloat16 products."""
    size, rows = (2**28, 8192) if device == "cuda" else (2**24, 1024)
    source = torch.ones(size, device=device)
    target = torch.empty_like(source)
    left, right = (torch.randn(rows, rows, device=device).bfloat16() for _ in range(2))
    product = torch.empty_like(left)

    copy = worker.seconds_per_call(_finished(lambda: target.copy_(source), device), least_seconds)
    multiply = worker.seconds_per_call(_finished(lambda: torch.mm(left, right, out=product), device), least_seconds)
    return {"bytes_per_second": 2 * source.nbytes / copy, "flops_per_second": 2 * rows**3 / multiply}


def _finished(call: Callable[[], object], device: str) -> Callable[[], None]:
    """The call, followed by a wait until the device has finished."""

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


if __name__ == "__main__":
    worker.serve({task.__name__: task for task in (decoder_products, limits)})
