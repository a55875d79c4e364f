"""Seconds of `map_query`, and of `embed` for cells of the mapped batch against as many cells of the fit."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import median

from .runner import Bench, Row

FULL = (400, 3_000)  # cells of the query, and of the reference
QUICK = (100,)
MEASURED = ("map_seconds", "known_seconds", "mapped_seconds", "mapped/known")


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each number of cells."""
    genes, least = (300, 0.2) if bench.quick else (2_000, 2.0)
    bench.call("ours", "warm")
    for cells in QUICK if bench.quick else FULL:
        settings = {"cells": cells, "genes": genes, "least_seconds": least, "device": bench.device}
        runs = [bench.call("ours", "mapped", settings) for _ in range(bench.times(3))]
        yield {
            "genes": genes,
            "cells": cells,
            "median": {name: median(run[name] for run in runs) for name in MEASURED},
            "runs": runs,
        }
