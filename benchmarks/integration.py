"""Scores batch mixing and the preservation of cell types, for the default fit, SCVI, Harmony and PCA.

Usage: python benchmarks/integration.py EVALUATE.py DATA_FOLDER --peer-python PYTHON [--seeds 3] [--sets NAME ...]

EVALUATE.py scores one method on one data set, with the same genes, cells and scoring for every method. PYTHON is an
interpreter with scvi-tools, harmonypy and the dependencies of EVALUATE.py. Rows are written to
benchmarks/results/integration/METHOD__SET__SEED.json. Existing rows are not computed again. --table only prints them.

The scores are those of scib-metrics (Luecken et al. 2022; BRAS: Rautenstrauch & Ohler 2025). ARI and NMI are the best
over a fixed grid of Leiden resolutions. *Batch* is the mean of iLISI, BRAS and graph connectivity; *bio* is the mean of
cLISI, NMI and ARI.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

RESULTS = Path(__file__).parent / "results" / "integration"
METHODS = ("scvae", "scvi", "harmony", "pca")
SETS = {
    "pancreas4": [],
    "sc_mixology": [],
    "baron_h1": [],
    "hao_rna500": [],
    "paul15": [],
    "worm_embryo": ["--time", "time"],
}
SEEDS = 3
BATCH, BIO = ("ilisi", "bras", "graph_conn"), ("clisi", "nmi", "ari")
SHOWN = {
    "batch": BATCH,
    "bio": BIO,
    **{name: (name,) for name in (*BATCH, *BIO)},
    "kNN accuracy": ("knn_acc",),
}


def make_row(python: str, evaluate: Path, method: str, data: Path, options: list[str], seed: int) -> None:
    out = RESULTS / f"{method}__{data.stem}__{seed}.json"
    if out.exists():
        return
    words = [method, str(data), str(out), "--seed", str(seed), "--batch", "batch", *options]
    done = subprocess.run(
        [python, str(evaluate), *words], env=os.environ.copy(), capture_output=True, text=True, check=False
    )
    print(f"{out.stem}: {'done' if out.exists() else done.stderr[-2000:]}", flush=True)


def means_of(method: str, data: str, names: tuple[str, ...]) -> list[float]:
    """The mean of some scores for each seed; empty if there is no row."""
    rows = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f"{method}__{data}__*.json"))]
    return [statistics.fmean(row[name] for name in names) for row in rows]


def print_tables(sets: list[str]) -> None:
    for title, names in SHOWN.items():
        print(f"\n| {title} | " + " | ".join(sets) + " | mean |\n|---" + "|---" * (len(sets) + 1) + "|")
        for method in METHODS:
            seeds = [means_of(method, data, names) for data in sets]
            cells = [shown(values) for values in seeds]
            mean = f"{statistics.fmean(map(statistics.fmean, seeds)):.3f}" if all(seeds) else ""
            print(f"| {method} | " + " | ".join(cells) + f" | {mean} |")


def shown(seeds: list[float]) -> str:
    """Mean over seeds with its standard deviation, and the number of seeds if it is not three."""
    if not seeds:
        return ""
    spread = f" ± {statistics.stdev(seeds):.3f}" if len(seeds) > 1 else ""
    return f"{statistics.fmean(seeds):.3f}{spread}" + (f" ({len(seeds)})" if len(seeds) != SEEDS else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--table", action="store_true", help="only print")
    words = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in range(0 if words.table else words.seeds):
        for data in words.sets:
            for method in METHODS:
                python = sys.executable if method == "scvae" else words.peer_python
                make_row(python, words.evaluate, method, words.data / f"{data}.h5ad", SETS[data], seed)
    print_tables(words.sets)


if __name__ == "__main__":
    main()
