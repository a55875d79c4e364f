"""Growth of the time of training, embedding and the default fit with the number of cells."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .runner import Bench, Row, alternate

BATCH_SIZE = 128  # the same for all sizes, because the default depends on the number of cells
FULL = ((2_000, 1), (20_000, 1), (20_000, 10))  # simulated cells, and how often they are repeated
QUICK = ((300, 1), (1_000, 1), (1_000, 3))


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each number of cells."""
    genes, least = (300, 0.2) if bench.quick else (2_000, 3.0)
    trial = {"epochs": 2} if bench.quick else {}
    bench.call("ours", "warm")
    for cells, tile in QUICK if bench.quick else FULL:
        data = bench.folder / "growth.h5ad"
        size = {"path": data, "cells": cells, "genes": genes, "tile": tile}
        simulated = bench.call("ours", "simulate", size)
        timed = {"data": data, "least_seconds": least, "device": bench.device}
        runs = alternate(
            bench.times(2),
            {
                "epoch": bench.later("ours", "training", {**timed, "batch_size": BATCH_SIZE}),
                "embed": bench.later("ours", "embed", timed),
                "fit": bench.later("ours", "fit", {"data": data, "device": bench.device, **trial}),
            },
        )
        medians = {
            "epoch": median(run["epoch_seconds"] for run in runs["epoch"]),
            "embed": median(run["seconds"] for run in runs["embed"]),
            "fit": median(run["seconds"] for run in runs["fit"]),
        }
        yield {"genes": genes, **simulated, "median": medians, "runs": runs}
        data.unlink()
