"""Scores the embedding of one fit at several exponents of the metric: how far distances follow expression.

Usage: python benchmarks/metric.py EVALUATE.py DATA_FOLDER [--seeds 3] [--sets NAME ...] [--exponents 0 0.125 0.25 0.5]
    [--table]

EVALUATE.py scores one embedding of one data set. Each set is fitted once for each seed, with the genes, cells and split
of EVALUATE.py, and its network is then given a metric of each exponent. With 0, distances are those of the network's
own coordinates; with 0.5, those of decoded cells, to first order. Sets whose name ends in "+batch" are fitted and
scored with the batch of each cell. Rows are written to benchmarks/results/metric.json. Existing rows are not computed
again. --table only prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "metric.json"
SETS = (
    *("pbmc3k", "paul15", "zheng_sorted2k", "worm_embryo", "zeisel3005", "pbmc_facs"),
    *("pancreas4+batch", "baron_h1+batch", "sc_mixology+batch", "hao_rna500+batch", "paul15+batch"),
    "worm_embryo+batch",
)
EXPONENTS = (0.0, 0.125, 0.25, 0.5)
N_GENES = 2_000
SCORES = {
    "knn_acc": ("knn_acc",),
    "ari": ("ari",),
    "nmi": ("nmi",),
    "asw": ("asw",),
    "order in time": ("spearman",),
    "batch": ("ilisi", "bras", "graph_conn"),
    "bio": ("clisi", "nmi", "ari"),
}
Row = dict[str, Any]


def scored(evaluate: Any, folder: Path, name: str, seed: int, exponents: list[float]) -> list[Row]:
    """A row for each exponent, from one fit."""
    import scvae
    from scvae.inference import expression_metric
    from scvae.inference.cells import read_cells
    from scvae.inference.posterior import posterior_moments

    data, _, batches = name.partition("+")
    batch = "batch" if batches else None
    adata, trained, _ = evaluate.load(folder / f"{data}.h5ad", N_GENES)
    model = scvae.fit(adata[trained].copy(), batch_key=batch, metric="latent", rng=seed, verbose=False)
    cells, rows = read_cells(adata, model, None), []
    z, _ = posterior_moments(model, cells)
    for exponent in exponents:
        expression_metric.EXPONENT = expression_metric.WITH_BATCHES = exponent
        written = expression_metric.with_metric(model, cells.taken(trained)).written(z)
        scores = evaluate.score(adata, written, "cell_type", batch, "time" if "time" in adata.obs else None)
        rows.append({"set": name, "seed": seed, "exponent": exponent} | scores)
        print(json.dumps(rows[-1]), flush=True)
    return rows


def print_table(rows: list[Row]) -> None:
    """Means at exponent 0 and, for the others, mean differences from it over the same fits; sets with batches apart."""
    for title, names in SCORES.items():
        of = {
            (row["set"], row["exponent"], row["seed"]): statistics.fmean(row[name] for name in names)
            for row in rows
            if all(name in row for name in names) and (title != "bio" or "bras" in row)
        }
        for batches in (False, True):
            sets = [name for name in SETS if ("+" in name) is batches and any(key[0] == name for key in of)]
            if not sets:
                continue
            print(f"\n| {title} | " + " | ".join(sets) + " | mean |\n|---" + "|---" * (len(sets) + 1) + "|")
            for exponent in sorted({key[1] for key in of if key[0] in sets}):
                less = 0.0 if exponent == 0 else 1.0
                found = [
                    [of[key] - less * of[name, 0.0, key[2]] for key in of if key[:2] == (name, exponent)]
                    for name in sets
                ]
                shown = [f"{statistics.fmean(values):{'+' if less else ''}.3f}" if values else "" for values in found]
                mean = f"{statistics.fmean(map(statistics.fmean, filter(None, found))):{'+' if less else ''}.4f}"
                print(f"| {exponent:g} | {' | '.join(shown)} | {mean} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path, nargs="?")
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--exponents", nargs="+", type=float, default=EXPONENTS)
    parser.add_argument("--table", action="store_true", help="only print")
    words = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    if not words.table:
        if words.data is None:
            parser.error("name EVALUATE.py and the folder of the data, or pass --table")
        spec = importlib.util.spec_from_file_location("evaluate", words.evaluate)
        assert spec is not None
        assert spec.loader is not None
        evaluate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(evaluate)
        for seed in range(words.seeds):
            for name in words.sets:
                there = {row["exponent"] for row in rows if (row["set"], row["seed"]) == (name, seed)}
                missing = [exponent for exponent in words.exponents if exponent not in there]
                if missing:
                    rows += scored(evaluate, words.data, name, seed, missing)
                    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    print_table(rows)


if __name__ == "__main__":
    main()
