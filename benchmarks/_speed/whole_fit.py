"""Seconds of the whole default fit, and of the start-up of a process."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from statistics import median

from .runner import Bench, Row, alternate


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each data set (`what` is "fit") and one for the start-up (`what` is "start")."""
    yield _start_up(bench)
    bench.call("ours", "warm")
    trial = {"epochs": 3} if bench.quick else {}
    for source in bench.data or (None,):
        name = source.stem if source else "pbmc3k"
        data = bench.folder / f"{name}.h5ad"
        shape = bench.call("ours", "prepare", {"source": source, "path": data, "seeds": []})
        shared = {"data": data, "device": bench.device, **trial}
        ours = bench.later("ours", "fit", shared)
        measurements = {
            "scvae": ours,
            "scvi": bench.later("peer", "fit", {**shared, "early_stopping": False}),
            "scvae, again": ours,
            "scvi_es": bench.later("peer", "fit", {**shared, "early_stopping": True}),
        }
        runs = alternate(bench.times(1), measurements)
        runs["scvae"] += runs.pop("scvae, again")
        seconds = {name: median(run["seconds"] for run in of) for name, of in runs.items()}
        ratios = {f"{name}/scvae": seconds[name] / seconds["scvae"] for name in ("scvi", "scvi_es")}
        yield {"what": "fit", "data": name, **shape, "median": seconds, **ratios, "runs": runs}
        data.unlink()


def _start_up(bench: Bench) -> Row:
    """A fit of one step with an empty cache of compiled kernels, and again with the filled cache."""
    runs: dict[str, list[Row]] = {"cold": [], "warm": []}
    for _ in range(bench.times(3)):
        with tempfile.TemporaryDirectory() as folder:
            for of in runs.values():  # the one with an empty cache first
                of.append(bench.call("ours", "start_up", environment={"NUMBA_CACHE_DIR": folder}))
    found = {
        "import_seconds": median(run["import_seconds"] for of in runs.values() for run in of),
        "cold_seconds": median(run["fit_seconds"] for run in runs["cold"]),
        "warm_seconds": median(run["fit_seconds"] for run in runs["warm"]),
    }
    return {"what": "start", "median": found, "runs": runs}
