"""Seconds of the default fit on one core, with the threads that a user gets, or asks for with OMP_NUM_THREADS."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from .runner import UNSET, Bench, Row, alternate

SIXTEEN = {"OMP_NUM_THREADS": "16"}
ASKED = {
    "nothing": {},
    "OMP_NUM_THREADS=16": SIXTEEN,
    "the same with MKL_DYNAMIC=FALSE": {**SIXTEEN, "MKL_DYNAMIC": "FALSE"},  # torch takes them all
}


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each way to ask for threads, over the fit with one thread on the same core."""
    bench.call("ours", "warm")
    data = bench.folder / "quota.h5ad"
    shape = bench.call("ours", "prepare", {"source": None, "path": data, "seeds": []})
    trial = {"epochs": 3} if bench.quick else {}
    settings = {"data": data, "device": bench.device, **trial}
    asked = {"one": {"OMP_NUM_THREADS": "1"}, **ASKED}
    fits = {name: bench.later("ours", "fit", settings, {**UNSET, **given}) for name, given in asked.items()}
    with one_core():
        runs = alternate(bench.times(5), fits)
    data.unlink()
    seconds = {name: median(run["seconds"] for run in of) for name, of in runs.items()}
    for name in ASKED:
        row = {"data": "pbmc3k", **shape, "asked": name, "median": {"one": seconds["one"], "asked": seconds[name]}}
        yield {**row, "asked/one": seconds[name] / seconds["one"], "runs": {"one": runs["one"], "asked": runs[name]}}


@contextmanager
def one_core() -> Iterator[None]:
    """Leaves this process, and those that it starts, one of its cores."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
