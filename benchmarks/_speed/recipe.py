"""Held-out ELBO and seconds by batch size: the evidence for scvae's default recipe."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import mean, median

from .runner import Bench, Row

BATCH_SIZES = (128, 256, 512)


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each data set, the last one simulated: held-out ELBO and seconds of fits with each batch size."""
    bench.call("ours", "warm")
    for source in bench.data or (None,):
        data = bench.folder / f"{source.stem if source else 'pbmc3k'}.h5ad"
        shape = bench.call("ours", "prepare", {"source": source, "path": data, "seeds": []})
        yield {"data": data.stem, **shape, **_compare(bench, {"data": data})}
    data, (cells, genes) = bench.folder / "simulated.h5ad", (500, 100) if bench.quick else (20_000, 1_000)
    bench.call("ours", "simulate", {"path": data, "cells": cells, "genes": genes, "tile": 1})
    yield {"data": "simulated", "cells": cells, "genes": genes, **_compare(bench, {"data": data})}


def _compare(bench: Bench, shared: Row) -> Row:
    trial = {"epochs": 2} if bench.quick else {}
    runs: dict[str, list[Row]] = {str(size): [] for size in BATCH_SIZES}
    for seed in range(bench.times(2)):
        for size in BATCH_SIZES:
            settings = {**shared, "batch_size": size, "seed": seed, "device": bench.device, **trial}
            runs[str(size)].append(bench.call("ours", "recipe", settings))
    medians = {
        size: {"elbo": mean(run["elbo"] for run in of), "seconds": median(run["seconds"] for run in of)}
        for size, of in runs.items()
    }
    return {"median": medians, "runs": runs}
