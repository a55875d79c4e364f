"""Neighbours where cells are few: the default fit and principal components on random subsamples of real sets.

Usage: python benchmarks/few_cells.py EVALUATE.py DATA_FOLDER [--sets NAME ...] [--sizes 500 1000 2000] [--draws 5]
       [--table]

EVALUATE.py (that of benchmarks/quality.py) prepares each subsample as if there were no other cells (2,000 genes) and
scores the embeddings with the types that the authors name: 15-NN accuracy in five folds. Fit and principal components
(30, of log-normalised counts) see all cells of the subsample. The fit is given the batches of pancreas4.

Rows are written to benchmarks/results/few_cells.json; rows of other sets and sizes are kept. --table only prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

import scvae

RESULTS = Path(__file__).parent / "results" / "few_cells.json"
BATCHES = {"pancreas4": "batch"}
SETS = ("zeisel3005", "pancreas4", "paul15", "pbmc3k")
KEYS = ("set", "size", "draw")

Row = dict[str, Any]


def row_of(evaluate: Any, whole: ad.AnnData, name: str, size: int, draw: int) -> Row:
    """15-NN accuracy of both embeddings of one subsample."""
    chosen = np.random.default_rng(draw).choice(whole.n_obs, size, replace=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "some.h5ad"
        whole[np.sort(chosen)].copy().write_h5ad(path)
        cells, _, _ = evaluate.load(path, 2000)
    scvae.fit(cells, batch_key=BATCHES.get(name), rng=draw, verbose=False)
    components, _ = evaluate.run_pca(cells, None, None, draw, None)
    row: Row = {"set": name, "size": size, "draw": draw}
    for method, embedding in (("scvae", cells.obsm["X_scvae"]), ("pca", components)):
        row[method] = evaluate.score(cells, embedding, "cell_type", None, None)["knn_acc"]
    return row


def print_table(rows: list[Row]) -> None:
    print("\n| set | cells | scvae | pca | draws |\n|---|---|---|---|---|")
    for name, size in dict.fromkeys((row["set"], row["size"]) for row in rows):
        mine = [row for row in rows if (row["set"], row["size"]) == (name, size)]
        means = (f"{statistics.fmean(row[method] for row in mine):.3f}" for method in ("scvae", "pca"))
        print(f"| {name} | {size:,} | " + " | ".join(means) + f" | {len(mine)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--sizes", nargs="+", type=int, default=(500, 1000, 2000))
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--table", action="store_true")
    words = parser.parse_args()
    rows = {tuple(row[key] for key in KEYS): row for row in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    if not words.table:
        spec = importlib.util.spec_from_file_location("evaluate", words.evaluate)
        assert spec is not None
        assert spec.loader is not None
        evaluate = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(evaluate)
        for name in words.sets:
            whole = ad.read_h5ad(words.data / f"{name}.h5ad")
            for size in words.sizes:
                for draw in range(words.draws):
                    row = row_of(evaluate, whole, name, size, draw)
                    rows[name, size, draw] = row
                    print(json.dumps(row), flush=True)
                RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_table(list(rows.values()))


if __name__ == "__main__":
    main()
