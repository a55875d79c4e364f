"""Seconds to SCVI's final quality, on the same training and held-out cells."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from statistics import median

from .runner import Bench, Row

SAMPLES = 1_000  # of the importance-weighted log-likelihood
SHORTER = (2, 3, 5, 8, 12, 20, 40)  # epochs


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each data set; each repeat has its own seed, which also determines the held-out cells."""
    seeds = list(range(bench.times(1)))
    bench.call("ours", "warm")
    for source in bench.data or (None,):
        name = source.stem if source else "pbmc3k"
        data = bench.folder / f"{name}.h5ad"
        shape = bench.call("ours", "prepare", {"source": source, "path": data, "seeds": seeds})
        runs = [_run(bench, data, seed) for seed in seeds]
        yield {"data": name, **shape, "median": _medians(runs), "runs": runs}
        data.unlink()


def first_epoch_at(curve: Row, elbo: float) -> float | None:
    """Seconds at the end of the first epoch that reaches this held-out ELBO; None if no epoch does."""
    pairs = zip(curve["seconds"], curve["elbo"], strict=True)
    return next((seconds for seconds, reached in pairs if reached >= elbo), None)


def _run(bench: Bench, data: Path, seed: int) -> Row:
    shared = {"data": data, "seed": seed, "n_samples": 20 if bench.quick else SAMPLES, "device": bench.device}
    default = {**shared, "epochs": 5 if bench.quick else None}
    scvae, scvi = bench.call("ours", "quality", default), bench.call("peer", "quality", default)
    shorter = []
    for epochs in SHORTER:
        run = bench.call("ours", "quality", {**shared, "epochs": epochs})
        shorter.append({name: run[name] for name in ("epochs", "seconds", "log_likelihood")})
        if run["log_likelihood"] >= scvi["log_likelihood"]:
            break
    enough = [run for run in (*shorter, scvae) if run["log_likelihood"] >= scvi["log_likelihood"]]
    shortest = min(enough, key=lambda run: run["seconds"], default={"seconds": None, "epochs": None})
    final = scvi["curve"]["elbo"][-1]
    return {
        "seed": seed,
        "scvae": scvae,
        "scvi": scvi,
        "shorter": shorter,
        "scvae_along_default": first_epoch_at(scvae["curve"], final),
        "scvi_along_default": first_epoch_at(scvi["curve"], final),
        "scvae_shortest": shortest["seconds"],
        "scvae_shortest_epochs": shortest["epochs"],
    }


def _medians(runs: list[Row]) -> Row:
    """Medians over the seeds; None if a seed did not reach the target."""
    found: Row = {
        side: {name: median(run[side][name] for run in runs) for name in ("seconds", "log_likelihood")}
        for side in ("scvae", "scvi")
    }
    for name in ("scvae_along_default", "scvi_along_default", "scvae_shortest", "scvae_shortest_epochs"):
        values = [run[name] for run in runs]
        found[name] = None if None in values else median(values)
    for name in ("scvae_along_default", "scvae_shortest"):
        found[f"scvi/{name}"] = None if found[name] is None else found["scvi"]["seconds"] / found[name]
    return found
