"""Held-out log-likelihood and embedding scores of the default fit and of other methods, over data sets and seeds.

Usage: python benchmarks/quality.py EVALUATE.py DATA_FOLDER REFERENCE_FOLDER [--seeds 3] [--jobs 2] [--table]

EVALUATE.py scores one method on one data set, with the same genes, cells and split for every method. The log-likelihood
is that of the held-out fifth, importance-weighted with 1,000 samples. REFERENCE_FOLDER holds the rows of the other
methods as METHOD__SET.json, and datasets.txt, in which each line names a data set and the options to score it with.
(benchmarks/results/peers has the rows of the committed tables.) Rows of scvae are written to
benchmarks/results/quality/scvae__SET__SEED.json. --table only prints the existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "quality"
PEERS = ("scvi", "scvi_es", "scvi_field", "pca", "harmony")
SCORES = ("test_ll", "knn_acc", "ari", "nmi", "asw")


def make_row(evaluate: Path, data: Path, options: list[str], seed: int, threads: int) -> str:
    out = RESULTS / f"scvae__{data.stem}__{seed}.json"
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
    command = [sys.executable, str(evaluate), "scvae", str(data), str(out), "--seed", str(seed), *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return f"{data.stem} seed {seed}: " + (done.stdout.splitlines() or [done.stderr[-2000:]])[-1]


def read_rows(folder: Path, pattern: str) -> list[dict[str, float]]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob(pattern))]


def print_table(reference: Path, sets: list[str]) -> None:
    for score in SCORES:
        print(f"\n| {score} | " + " | ".join(sets) + " | mean |\n|---" * 1 + "|---" * (len(sets) + 1) + "|")
        for method in ("scvae", *PEERS):
            means = []
            for name in sets:
                rows = read_rows(RESULTS if method == "scvae" else reference, f"{method}__{name}*.json")
                values = [row[score] for row in rows if score in row]
                means.append(statistics.fmean(values) if values else None)
            if any(m is not None for m in means):
                shown = [("" if m is None else f"{m:.1f}" if score == "test_ll" else f"{m:.3f}") for m in means]
                mean = "" if None in means else f"{statistics.fmean(m for m in means if m is not None):.4g}"
                print(f"| {method} | " + " | ".join(shown) + f" | {mean} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    listed = [shlex.split(line) for line in (arguments.reference / "datasets.txt").read_text().splitlines() if line]
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        threads = max(1, (os.cpu_count() or 1) // arguments.jobs)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            jobs = [
                pool.submit(make_row, arguments.evaluate, arguments.data / f"{name}.h5ad", options, seed, threads)
                for seed in range(arguments.seeds)
                for name, *options in listed
            ]
            for job in jobs:
                print(job.result(), flush=True)
    print_table(arguments.reference, [name for name, *_ in listed])


if __name__ == "__main__":
    main()
