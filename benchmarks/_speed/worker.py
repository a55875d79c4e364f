"""Shared by the workers of both packages. It runs in both interpreters, so it imports neither scvae nor scvi-tools."""

from __future__ import annotations

import json
import math
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import sparse

Answer = dict[str, Any]
Task = Callable[..., Answer]


def serve(tasks: Mapping[str, Task]) -> None:
    """Runs the task named on the command line with its settings (JSON), and prints its result as one line of JSON."""
    name, settings = sys.argv[1:]
    print(json.dumps(tasks[name](**json.loads(settings))))


def versions(device: str, packages: tuple[str, ...]) -> Answer:
    """Versions of Python and some packages, the number of torch's threads, and the name of the device."""
    import torch

    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    found = {package: version(package) for package in packages}
    return {"python": platform.python_version(), **found, "torch_threads": torch.get_num_threads(), "device": name}


def seconds_per_epoch(run: Callable[[int], float], least_seconds: float) -> Answer:
    """Seconds of an epoch in the steady state: the extra time of more epochs than one, which excludes the start-up.

    Parameters
    ----------
    run
        Trains from scratch for some epochs and returns the seconds that this took.
    least_seconds
        Minimum duration of all extra epochs, well above the noise of the start-up.
    """
    run(1)
    few, extra = min(run(1), run(1)), 2  # a slow first epoch would make the others look fast
    while (more := run(1 + extra)) - few < least_seconds:
        extra = math.ceil(extra * min(50.0, 1.2 * least_seconds / max(more - few, 1e-3)))
    return {"epoch_seconds": (more - few) / extra, "epochs": [1, 1 + extra], "seconds": [few, more]}


def seconds_per_call(call: Callable[[], object], least_seconds: float, least_calls: int = 3) -> float:
    """Median seconds of a call, after one call that is not counted."""
    call()
    times: list[float] = []
    while len(times) < least_calls or sum(times) < least_seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def draw_counts(n_cells: int, n_genes: int, share: float, rng: np.random.Generator) -> sparse.csr_matrix:
    """Counts with a given share of non-zeros, drawn block by block with geometric gaps, which needs little memory.

    Returns
    -------
    scipy.sparse.csr_matrix
        Cells x genes, float32 values and int32 indices.
    """
    block = 500  # cells
    size = int(1.02 * n_cells * n_genes * share) + 10_000
    values, columns = np.empty(size, np.float32), np.empty(size, np.int32)
    indptr, end = np.zeros(n_cells + 1, np.int64), 0
    for first in range(0, n_cells, block):
        rows_here = min(block, n_cells - first)
        gaps = rng.geometric(share, int(1.05 * rows_here * n_genes * share) + 1_000)
        places = np.cumsum(gaps) - 1
        rows, genes = np.divmod(places[places < rows_here * n_genes], n_genes)
        part = slice(end, end + len(rows))
        columns[part], values[part] = genes, 1 + rng.poisson(0.5, len(rows))
        indptr[first + 1 : first + rows_here + 1] = end + np.cumsum(np.bincount(rows, minlength=rows_here))
        end = part.stop
    return sparse.csr_matrix((values[:end], columns[:end], indptr), shape=(n_cells, n_genes))


def peak_memory(fit: Callable[[sparse.csr_matrix], int], *, n_cells: int, n_genes: int, share: float) -> Answer:
    """Peak resident memory of a fit and its data, without that of imports and compiled kernels.

    Parameters
    ----------
    fit
        Fits counts for one epoch and returns the bytes of the model's parameters.
    n_cells, n_genes, share
        Shape of the counts, and their share of non-zeros.

    Returns
    -------
    dict
        In MB: `peak`, the `counts` (CSR) and the `parameters`.
    """
    rng = np.random.default_rng(0)
    fit(draw_counts(256, 1_000, share, rng))  # the memory of imports and kernels is not counted
    before = _resident("VmRSS")
    x = draw_counts(n_cells, n_genes, share, rng)
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets the peak, after the counts are drawn
    parameters = fit(x)
    counts = x.data.nbytes + x.indices.nbytes + x.indptr.nbytes
    return {"peak": _resident("VmHWM") - before, "counts": counts / 1e6, "parameters": parameters / 1e6}


def _resident(field: str) -> float:
    """Resident memory of this process in MB: VmRSS is current, VmHWM the peak. (getrusage also counts the parent's.)"""
    status = Path("/proc/self/status")
    if not status.exists():
        raise RuntimeError("peak memory is read from /proc/self/status, which is not here; run the part on Linux")
    lines = status.read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field))
