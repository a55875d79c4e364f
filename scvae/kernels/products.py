"""Large float32 matrix products on the CPU with the faster of torch's two libraries, if it is as exact."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch

ROUNDING = 1e-5  # error of a sum of 128 products around 1: 2e-6 in float32, 2e-2 in bfloat16


@contextmanager
def large_products() -> Iterator[None]:
    """Lets oneDNN instead of MKL compute the float32 products in this block, if it is as exact.

    torch uses MKL for float32 products, which on AMD processors uses half the vector width: oneDNN was 2.1 times as
    fast (128 x 128 x 2,000, EPYC of family 26). The setting that selects oneDNN also allows it to round to bfloat16.
    oneDNN does so only on processors with fast instructions for bfloat16, and there the setting is not changed. Small
    products are faster in MKL.
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
    """torch's setting for the precision of oneDNN's products; None in torch before 2.9, which has none."""
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    return matmul if hasattr(matmul, "fp32_precision") else None


@cache
def _is_exact() -> bool:
    """Whether products with this setting are as exact as float32; tested once."""
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
