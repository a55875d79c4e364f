"""Times sparse and dense products in the encoder's first layer, forward and backward, by share of non-zeros.

Usage: python benchmarks/first_layer.py [--repeats 60] [--out FILE]

The rows are random with a given share of non-zeros, and the layer has 128 units. `is_crowded` of `scvae/kernels/` uses
the share at which the ratio of the times passes 1. Times are medians; the two products are measured in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from scvae.kernels import fused_cpu
from scvae.kernels.csr import CSR

SHAPES = ((128, 2_000), (1_024, 2_000), (128, 20_000))  # cells, genes
SHARES = (0.05, 0.1, 0.13, 0.16, 0.2, 0.3)
WAYS = ("sparse", "dense")


def seconds(rows: CSR, weight: torch.Tensor, way: str) -> float:
    fused_cpu.is_crowded = lambda _: way == "dense"  # type: ignore[assignment]
    start = time.perf_counter()
    autograd.csr_matmul(rows, weight, torch.zeros(weight.shape[1])).sum().backward()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "first_layer.json")
    arguments = parser.parse_args()
    records = []
    for cells, genes in SHAPES:
        weight = torch.randn(genes, 128, requires_grad=True)
        for share in SHARES:
            x = sparse.random(cells, genes, share, format="csr", dtype=np.float32, random_state=0)
            rows = CSR.from_numpy(x.indptr, x.indices, x.data, genes)
            taken: dict[str, list[float]] = {way: [] for way in WAYS}
            for _ in range(arguments.repeats):
                for way, times in taken.items():
                    times.append(seconds(rows, weight, way))
            median = {way: 1e3 * statistics.median(times[3:]) for way, times in taken.items()}
            ratio = median["sparse"] / median["dense"]
            records.append({"cells": cells, "genes": genes, "share": share, "ms": median, "sparse/dense": ratio})
            print(f"{cells:5,} x {genes:6,}, {share:4.0%}: {median} ms, sparse / dense {ratio:.2f}", flush=True)
    record = {"threads": torch.get_num_threads(), "torch": torch.__version__, "rows": records}
    arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
