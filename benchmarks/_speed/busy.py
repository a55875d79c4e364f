"""Seconds of the default fit while other processes use every core, with the threads that a user gets."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

from .runner import UNSET, Bench, Measurement, Row, alternate

FIRST = (None, "scanpy", "sklearn.cluster")  # imported before scvae: each brings its own threads
SPIN = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(100_000))"


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each package that is imported first: the fit on an idle and on a busy machine, in turn."""
    bench.call("ours", "warm")
    data = bench.folder / "busy.h5ad"
    shape = bench.call("ours", "prepare", {"source": None, "path": data, "seeds": []})
    trial = {"epochs": 3} if bench.quick else {}
    for first in FIRST:
        environment = {**UNSET, "IMPORTED_FIRST": first}
        idle = bench.later("ours", "fit", {"data": data, "device": bench.device, **trial}, environment)
        runs = alternate(bench.times(5), {"idle": idle, "busy": lambda idle=idle: _among_others(idle)})
        seconds = {name: median(run["seconds"] for run in of) for name, of in runs.items()}
        others = len(os.sched_getaffinity(0))
        row = {"data": "pbmc3k", **shape, "first": first, "others": others, "median": seconds}
        yield {**row, "busy/idle": seconds["busy"] / seconds["idle"], "runs": runs}
    data.unlink()


def _among_others(measurement: Measurement) -> Row:
    with competitors(len(os.sched_getaffinity(0))):
        return measurement()


@contextmanager
def competitors(n: int) -> Iterator[None]:
    """Keeps `n` Python processes computing; they end with this process, however it ends."""
    processes = [subprocess.Popen([sys.executable, "-c", SPIN]) for _ in range(n)]
    try:
        yield
    finally:
        for process in processes:
            process.terminate()
            process.wait()
