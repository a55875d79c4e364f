"""Compares one model for every β with models of one β, the recommended β with labels, and their run times.

Usage: python benchmarks/beta_path.py DATA.h5ad ... [--only objective recommended time] [--seeds 3] [--jobs 1] [--table]

Each file holds raw counts in X, restricted to the genes to model. `recommended` also needs labels in obs["cell_type"]
("unlabelled" for none). If obs["batch"] has several values, it is passed as batch_key. `--prepare EVALUATE.py
DATA_FOLDER` first makes such files: EVALUATE.py's `load` selects 2,000 highly variable genes.

objective: a fifth of the cells is held out from all training. On these cells it measures the distortion D, the rate R
and D + βR at β = 0.1, 0.3, 1, 3 and 10, with 20 draws of z per cell, for a path model, scvae.fit(beta=(0.1, 10)), and
for a model trained at each β alone.
recommended: ARI and NMI (Leiden, best over the resolutions of scvae.tune_beta) along the path, and at the β that
tune_beta recommends without labels.
time: seconds of one default fit, of the path, and of tune_beta's sweep of nine β, in turns on the first file.

Rows are written to benchmarks/results/beta_path/PART.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

RESULTS = Path(__file__).parent / "results" / "beta_path"
BETAS = (0.1, 0.3, 1.0, 3.0, 10.0)
RANGE = (0.1, 10.0)
DRAWS = 20
REPEATS = 5

Row = dict[str, Any]


def read(path: Path) -> tuple[ad.AnnData, str | None]:
    adata = ad.read_h5ad(path)
    has_batch = "batch" in adata.obs and adata.obs["batch"].nunique() > 1
    return adata, "batch" if has_batch else None


def objective(path: Path, seed: int) -> list[Row]:
    import scvae
    from scvae.tl import log_likelihood

    adata, batch_key = read(path)
    order = np.random.default_rng(0).permutation(adata.n_obs)
    held_out, rest = np.sort(order[: adata.n_obs // 5]), np.sort(order[adata.n_obs // 5 :])
    train, test = adata[rest].copy(), adata[held_out].copy()
    options: dict[str, Any] = {"batch_key": batch_key, "rng": seed, "verbose": False}
    many = scvae.fit(train, beta=RANGE, **options)
    rows = []
    for beta in BETAS:
        for kind, model in (("path", many), ("alone", scvae.fit(train, beta=beta, **options))):
            elbo = log_likelihood(test, model, kind="elbo", n_samples=DRAWS, beta=beta).mean()
            scvae.tl.embed(test, model, beta=beta)
            mean, variance = (test.obsm[key].astype(np.float64) for key in ("X_scvae", "X_scvae_var"))
            rate = float(0.5 * (mean**2 + variance - 1.0 - np.log(variance)).sum(1).mean())
            distortion = -float(elbo) - rate
            rows.append(
                {
                    "set": path.stem,
                    "seed": seed,
                    "beta": beta,
                    "model": kind,
                    "distortion": distortion,
                    "rate": rate,
                    "objective": distortion + beta * rate,
                }
            )
    return rows


def recommended(path: Path, seed: int) -> list[Row]:
    import scvae

    adata, batch_key = read(path)
    names = adata.obs["cell_type"].astype(str)
    adata.obs["cell_type"] = names.where(names != "unlabelled").astype("category")
    found = scvae.tune_beta(adata, labels_key="cell_type", batch_key=batch_key, rng=seed, verbose=False)
    columns = ["beta", "ari", "nmi", "silhouette", "elbo", "log_likelihood", "rate", "leiden_stability", "recommended"]
    return [{"set": path.stem, "seed": seed} | row for row in found.table[columns].to_dict("records")]


def seconds(path: Path, repeat: int) -> list[Row]:
    import scvae

    adata, batch_key = read(path)
    options: dict[str, Any] = {"batch_key": batch_key, "verbose": False, "rng": repeat}
    brief = scvae.TrainingConfig(epochs=1)
    for beta in (1.0, RANGE):
        scvae.fit(adata, beta=beta, training=brief, **options)  # compile kernels, load libraries
    calls: dict[str, Callable[[], object]] = {
        "fit": lambda: scvae.fit(adata, **options),
        "path": lambda: scvae.fit(adata, beta=RANGE, **options),
        "tune_beta": lambda: scvae.tune_beta(adata, **options),
        "sweep": lambda: scvae.tune_beta(adata, method="sweep", **options),
    }
    row: Row = {"set": path.stem, "repeat": repeat}
    for name, call in calls.items():
        started = time.perf_counter()
        call()
        row[name] = time.perf_counter() - started
    return [row]


PARTS = {"objective": objective, "recommended": recommended, "time": seconds}


def measure(part: str, files: list[Path], seeds: int, jobs: int) -> Iterator[Row]:
    if part == "time":
        for repeat in range(REPEATS):
            yield from seconds(files[0], repeat)
        return
    tasks = [(path, seed) for seed in range(seeds) for path in files]
    if jobs == 1:
        for task in tasks:
            yield from PARTS[part](*task)
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    with ProcessPoolExecutor(jobs) as pool:
        for rows in pool.map(PARTS[part], *zip(*tasks, strict=True)):
            yield from rows


def print_objective(rows: list[Row]) -> None:
    print("\n| D + βR: path − alone (R path / R alone) | " + " | ".join(f"β = {b:g}" for b in BETAS) + " |")
    print("|---" * (len(BETAS) + 1) + "|")
    differences: dict[float, list[float]] = {b: [] for b in BETAS}
    for name in dict.fromkeys(row["set"] for row in rows):
        cells = []
        for beta in BETAS:
            of = {
                (kind, value): statistics.fmean(
                    row[value] for row in rows if (row["set"], row["beta"], row["model"]) == (name, beta, kind)
                )
                for kind in ("path", "alone")
                for value in ("objective", "rate")
            }
            differences[beta].append(of["path", "objective"] - of["alone", "objective"])
            cells.append(f"{differences[beta][-1]:+.2f} ({of['path', 'rate']:.1f} / {of['alone', 'rate']:.1f})")
        print(f"| {name} | " + " | ".join(cells) + " |")
    print("| mean | " + " | ".join(f"{statistics.fmean(differences[b]):+.2f}" for b in BETAS) + " |")


def print_recommended(rows: list[Row]) -> None:
    print("\n| set | β recommended, by seed | ARI there / at β = 1 / best β | NMI there / at β = 1 / best β |")
    print("|---|---|---|---|")
    summary: dict[str, list[tuple[float, float, float]]] = {"ari": [], "nmi": []}
    for name in dict.fromkeys(row["set"] for row in rows):
        mine = [row for row in rows if row["set"] == name]
        chosen = [row for row in mine if row["recommended"]]
        shown = []
        for score, found in summary.items():
            by_beta: dict[float, list[float]] = {}
            for row in mine:
                by_beta.setdefault(row["beta"], []).append(row[score])
            there = statistics.fmean(row[score] for row in chosen)
            found.append((there, statistics.fmean(by_beta[1.0]), max(map(statistics.fmean, by_beta.values()))))
            shown.append(" / ".join(f"{value:.3f}" for value in found[-1]))
        betas = ", ".join(f"{row['beta']:g}" for row in chosen)
        print(f"| {name} | {betas} | {' | '.join(shown)} |")
    means = [" / ".join(f"{statistics.fmean(c):.4f}" for c in zip(*found, strict=True)) for found in summary.values()]
    print(f"| mean | | {' | '.join(means)} |")
    for score, found in summary.items():
        for label, which in (("over β = 1", 1), ("below the best β", 2)):
            gaps = [(row[0] - row[which]) * (1 if which == 1 else -1) for row in found]
            error = statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 1 else float("nan")
            print(f"{score}: {statistics.fmean(gaps):+.4f} {label} (standard error over sets {error:.4f})")


def print_time(rows: list[Row]) -> None:
    print("\n| seconds, median | fit | path | tune_beta | sweep | path / fit |\n|---|---|---|---|---|---|")
    medians = [statistics.median(row[name] for row in rows) for name in ("fit", "path", "tune_beta", "sweep")]
    ratio = statistics.median(row["path"] / row["fit"] for row in rows)
    print(f"| {rows[0]['set']} | " + " | ".join(f"{value:.1f}" for value in medians) + f" | {ratio:.2f} |")


PRINTERS = {"objective": print_objective, "recommended": print_recommended, "time": print_time}


def prepare(evaluate: Path, folder: Path, out: Path, names: list[str]) -> None:
    spec = importlib.util.spec_from_file_location("evaluate", evaluate)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        adata, _, _ = module.load(folder / f"{name}.h5ad", 2000)
        adata.uns.clear()
        adata.write_h5ad(out / f"{name}.h5ad")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="DATA.h5ad")
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--prepare", type=Path, nargs=2, metavar=("EVALUATE.py", "DATA_FOLDER"))
    arguments = parser.parse_args()
    if arguments.prepare:
        evaluate, folder = arguments.prepare
        for path in arguments.files:
            prepare(evaluate, folder, path.parent, [path.stem])
    RESULTS.mkdir(parents=True, exist_ok=True)
    for part in arguments.only:
        target = RESULTS / f"{part}.json"
        if not arguments.table:
            rows: list[Row] = []
            for row in measure(part, arguments.files, arguments.seeds, arguments.jobs):
                rows.append(row)
                print(json.dumps(row), flush=True)
                record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": rows}
                target.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        if target.exists():
            PRINTERS[part](json.loads(target.read_text(encoding="utf-8"))["rows"])


if __name__ == "__main__":
    main()
