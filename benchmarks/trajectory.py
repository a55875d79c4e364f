"""Diffusion pseudotime against a known time: on the embedding as it is, and on the graph over draws.

Usage: python benchmarks/trajectory.py DATA.h5ad [--time time] [--seeds 3] [--table]

DATA.h5ad holds raw counts in X, the genes to model, and the known time in obs (missing for some cells, if need be).
Spearman correlation with it of scanpy's diffusion pseudotime (Haghverdi et al. 2016), the median over five of the
earliest cells as root; cells that cannot be reached come last. Methods: `pca`, 30 dimensions of log-normalised counts;
`scvae`, scanpy.pp.neighbors on X_scvae; `scvae draws`, scvae.tl.neighbors. Rows of SCVI by the same measure are in
benchmarks/results/peers (spearman). Rows are written to benchmarks/results/trajectory.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

import anndata as ad
import numpy as np

RESULTS = Path(__file__).parent / "results" / "trajectory.json"
ROOTS = slice(0, 50, 10)  # of the cells in order of time


def correlation(adata: ad.AnnData, time: np.ndarray) -> float:
    """Of pseudotime on the graph of `adata` with the time, where that is known."""
    import scanpy as sc
    from scipy.stats import spearmanr

    known, found = np.isfinite(time), []
    sc.tl.diffmap(adata, random_state=0)
    for root in np.argsort(np.where(known, time, np.inf), kind="stable")[ROOTS]:
        adata.uns["iroot"] = int(root)
        sc.tl.dpt(adata)
        order = adata.obs["dpt_pseudotime"].to_numpy()
        reached = np.isfinite(order)
        order = np.where(reached, order, order[reached].max())
        found.append(float(spearmanr(order[known], time[known])[0]))
    return statistics.median(found)


def rows_of(path: Path, key: str, seeds: int) -> list[dict[str, object]]:
    import scanpy as sc

    import scvae

    adata = ad.read_h5ad(path)
    time = adata.obs[key].astype(float).to_numpy()
    rows: list[dict[str, object]] = []
    for seed in range(seeds):
        normalised = adata.copy()
        sc.pp.normalize_total(normalised)
        sc.pp.log1p(normalised)
        sc.pp.pca(normalised, n_comps=30, random_state=seed)
        sc.pp.neighbors(normalised, use_rep="X_pca", random_state=0)
        model = scvae.fit(adata, rng=seed, verbose=False)
        as_is, drawn = adata.copy(), adata.copy()
        sc.pp.neighbors(as_is, use_rep="X_scvae", random_state=0)
        scvae.tl.neighbors(drawn, model, rng=seed)
        for method, graph in (("pca", normalised), ("scvae", as_is), ("scvae draws", drawn)):
            rows.append({"set": path.stem, "seed": seed, "method": method, "spearman": correlation(graph, time)})
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--time", default="time")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="only print")
    words = parser.parse_args()
    if not words.table:
        RESULTS.write_text(json.dumps(rows_of(words.data, words.time, words.seeds), indent=1) + "\n")
    rows = json.loads(RESULTS.read_text())
    print("\n| method | spearman by seed | mean |\n|---|---|---|")
    for method in dict.fromkeys(row["method"] for row in rows):
        values = [row["spearman"] for row in rows if row["method"] == method]
        print(f"| {method} | {', '.join(f'{value:.3f}' for value in values)} | {statistics.fmean(values):.3f} |")


if __name__ == "__main__":
    main()
