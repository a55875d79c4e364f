"""Peak resident memory of a fit, without that of imports and compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .runner import Bench, Measurement, Row, alternate

SHARE = 0.05  # share of non-zeros


def measure(bench: Bench) -> Iterator[Row]:
    """All genes of a large sample with both packages, and one batch of 4,096 cells with a whole genome with scvae."""
    bench.call("ours", "warm")
    cells, genes = (500, 2_000) if bench.quick else (16_000, 32_000)
    sample = {"cells": cells, "genes": genes, "share": SHARE}
    ours, peer = bench.later("ours", "memory", sample), bench.later("peer", "memory", sample)
    yield _row(bench, sample, {"scvae": ours, "scvi": peer})
    cells, genes = (256, 2_000) if bench.quick else (4_096, 36_000)
    batch = {"cells": cells, "genes": genes, "share": SHARE, "batch_size": cells}
    yield _row(bench, batch, {"scvae": bench.later("ours", "memory", batch)})


def _row(bench: Bench, shape: Row, measurements: dict[str, Measurement]) -> Row:
    runs = alternate(bench.times(2), measurements)
    medians = {name: median(run["peak"] for run in of) for name, of in runs.items()}
    counts, parameters = (runs["scvae"][0][name] for name in ("counts", "parameters"))
    aim = 1.2 * counts + 6 * parameters + 150
    return {**shape, "counts": counts, "parameters": parameters, "aim": aim, "median": medians, "runs": runs}
