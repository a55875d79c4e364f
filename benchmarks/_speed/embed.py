"""Cells per second of the embedding with a fitted model."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .runner import Bench, Row, alternate

FULL = {2_000: 12_288, 20_000: 3_072}  # genes: cells
QUICK = {500: 1_000}


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each number of genes."""
    for genes, cells in (QUICK if bench.quick else FULL).items():
        data = bench.folder / f"embed_{genes}.h5ad"
        simulated = bench.call("ours", "simulate", {"path": data, "cells": cells, "genes": genes})
        settings = {"data": data, "least_seconds": 0.2 if bench.quick else 2.0, "device": bench.device}
        ours, peer = bench.later("ours", "embed", settings), bench.later("peer", "embed", settings)
        runs = alternate(bench.times(3), {"scvae": ours, "scvi": peer})
        rate = {name: median(run["cells_per_second"] for run in of) for name, of in runs.items()}
        yield {"genes": genes, **simulated, "median": rate, "scvae/scvi": rate["scvae"] / rate["scvi"], "runs": runs}
        data.unlink()
