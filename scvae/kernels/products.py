"""Large float32 matrix products on the CPU, by the faster of torch's two libraries where it is as exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

ROUNDING = 1e-5  # of a sum of 128 products around 1: float32 errs by 2e-6, bfloat16 by 2e-2


@contextmanager
def large_products() -> Iterator[None]:
    """Lets oneDNN instead of MKL compute the float32 products inside, where that costs no digit.

    torch hands float32 products to MKL, which on AMD processors uses half the width of their vectors: oneDNN was 2.1
    times as fast (128 x 128 x 2,000, EPYC of family 26). The switch that chooses oneDNN is the one that allows it to
    round to bfloat16; it does so only on processors with instructions for it that are worth it, and there the switch
    stays off. Small products are quicker in MKL.
    """
    switch = _switch()
    if switch is None or not _is_exact():
        yield
        return
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        yield
    finally:
        switch.fp32_precision = before


def _switch() -> Any:
    """torch's choice of precision for oneDNN's products, or None where this torch (before 2.9) has none."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None


@cache
def _is_exact() -> bool:
    """Whether products with the switch on are those of float32: tried once."""
    switch = _switch()
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(128, 128, generator=generator), torch.randn(128, 128, generator=generator)
    before = switch.fp32_precision
    switch.fp32_precision = "bf16"
    try:
        product = a @ b
    finally:
        switch.fp32_precision = before
    return bool((product - a.double() @ b.double()).abs().mean() < ROUNDING)
