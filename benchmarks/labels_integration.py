"""What labels do to an embedding: integration scores of fits with and without them, on cells whose labels were hidden.

Usage: python benchmarks/labels_integration.py EVALUATE.py DATA_FOLDER [--sets NAME ...] [--seeds 3] [--table]

The labels of a random half of the cells are hidden. Both fits see the counts of all cells and their batches, one also
the labels of the other half (labels_key). Scores are those of benchmarks/integration.py: over all cells, and over the
hidden half alone, which is what labels did for cells without any. Needs scib-metrics.

Rows are written to benchmarks/results/labels/integration.json; rows of other sets and seeds are kept. --table only
prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
from integration import BATCH, BIO

import scvae

RESULTS = Path(__file__).parent / "results" / "labels" / "integration.json"
SETS = ("hao_rna500", "sc_mixology", "baron_h1", "pancreas4")
KEYS = ("fit", "set", "seed", "cells")
SHOWN = {"batch": BATCH, "bio": BIO, "knn_acc": ("knn_acc",)}

Row = dict[str, Any]


def rows_of(evaluate: Any, data: Path, seed: int) -> list[Row]:
    """The rows of both fits to one set."""
    whole, _, _ = evaluate.load(data, 2000)
    hidden = np.random.default_rng(seed).random(whole.n_obs) < 0.5
    whole.obs["seen"] = whole.obs["cell_type"].astype(str).where(~hidden)
    rows = []
    for fit, given in (("without labels", {}), ("with labels", {"labels_key": "seen"})):
        cells = whole.copy()
        scvae.fit(cells, batch_key="batch", rng=seed, verbose=False, **given)
        for name, some in (("all", slice(None)), ("hidden", hidden)):
            judged = cells[some]
            scores = evaluate.score(judged.copy(), judged.obsm["X_scvae"], "cell_type", "batch", None)
            rows.append({"fit": fit, "set": data.stem, "seed": seed, "cells": name} | scores)
    return rows


def print_table(rows: list[Row]) -> None:
    """Means over the seeds of each set, and over the sets."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    print("| score | cells | fit | " + " | ".join(sets) + " | mean |\n" + "|---" * (len(sets) + 4) + "|")
    for score, parts in SHOWN.items():
        for cells in ("all", "hidden"):
            for fit in ("without labels", "with labels"):
                means = [
                    statistics.fmean(
                        row[part]
                        for row in rows
                        for part in parts
                        if (row["set"], row["cells"], row["fit"]) == (name, cells, fit)
                    )
                    for name in sets
                ]
                shown = " | ".join(f"{mean:.3f}" for mean in [*means, statistics.fmean(means)])
                print(f"| {score} | {cells} | {fit} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    words = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {tuple(row[key] for key in KEYS): row for row in kept}
    spec = importlib.util.spec_from_file_location("evaluate", words.evaluate)
    assert spec is not None
    assert spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    for seed in range(0 if words.table else words.seeds):
        for name in words.sets:
            for row in rows_of(evaluate, words.data / f"{name}.h5ad", seed):
                print(json.dumps(row), flush=True)
                rows[tuple(row[key] for key in KEYS)] = row
            RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_table(list(rows.values()))


if __name__ == "__main__":
    main()
