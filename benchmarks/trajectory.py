"""Compares diffusion pseudotime with a known order of cells, on embeddings and on the graph over posterior draws.

Usage: python benchmarks/trajectory.py DATA.h5ad [--order COLUMN] [--stages A,B,C] [--lineages A,B C,D --types COLUMN]
    [--seeds 10] [--methods pca scvae scvi] [--peer-python PYTHON] [--table]

DATA.h5ad holds raw counts in X, restricted to the genes to model, and the known order in obs[COLUMN]. The order is
given as numbers (they may be missing for some cells), or as stages that --stages lists from first to last (cells of
other stages have no known order). The score is the Spearman correlation of the known order with scanpy's diffusion
pseudotime (Haghverdi et al. 2016), the median over five of the earliest cells as root. Cells that cannot be reached
come last. If the cells belong to several lineages that do not branch within the data, pseudotime from one root is not
informative about the others. So each of --lineages (the types of one lineage) is also measured separately, with its own
roots on the same graph (mean over lineages). All methods use all cells and no batches.

  pca          30 dimensions of log-normalised counts
  pca 10       10 dimensions, the same number as SCVI
  scvae        scanpy.pp.neighbors on X_scvae
  scvae draws  scvae.tl.neighbors, the graph over draws from the posterior
  scvi         scanpy.pp.neighbors on SCVI's latent means (nb, defaults otherwise; PYTHON has scvi-tools; slow)

Rows are written to benchmarks/results/trajectory/METHOD.json; rows of other data sets are kept. --table only prints the
existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

RESULTS = Path(__file__).parent / "results" / "trajectory"
PEER = Path(__file__).parent / "_scvi_peer.py"
METHODS = ("pca", "scvae", "scvi")
KINDS = ("pca", "pca 10", "scvi", "scvae", "scvae draws")
ROOTS = slice(0, 50, 10)  # positions of the root cells in the known order

Row = dict[str, Any]


def known_order(adata: ad.AnnData, column: str, stages: list[str]) -> np.ndarray:
    """A number for each cell that increases along the process; NaN if the order of the cell is unknown."""
    if not stages:
        return adata.obs[column].to_numpy(dtype=float)
    rank = {stage: float(i) for i, stage in enumerate(stages)}
    return np.array([rank.get(stage, np.nan) for stage in adata.obs[column].astype(str)])


def correlation(adata: ad.AnnData, order: np.ndarray) -> float:
    """Correlation of pseudotime on the diffusion map of `adata` with the known order."""
    import scanpy as sc
    from scipy.stats import spearmanr

    known, found = np.isfinite(order), []
    for root in np.argsort(np.where(known, order, np.inf), kind="stable")[ROOTS]:
        adata.uns["iroot"] = int(root)
        sc.tl.dpt(adata)
        time = adata.obs["dpt_pseudotime"].to_numpy()
        reached = np.isfinite(time)
        time = np.where(reached, time, time[reached].max())
        found.append(float(spearmanr(time[known], order[known])[0]))
    return statistics.median(found)


def scores(graph: ad.AnnData, order: np.ndarray, lineages: list[np.ndarray]) -> dict[str, float]:
    """Over all cells, and over the cells of each lineage."""
    import scanpy as sc

    sc.tl.diffmap(graph, random_state=0)
    found = {"spearman": correlation(graph, order)}
    if lineages:
        within = [correlation(graph, np.where(members, order, np.nan)) for members in lineages]
        found["within_lineages"] = statistics.fmean(within)
    return found


def graph_on(latent: np.ndarray) -> ad.AnnData:
    """scanpy's neighbours of an embedding, with the defaults."""
    import scanpy as sc

    graph = ad.AnnData(obsm={"latent": np.asarray(latent, np.float32)})
    sc.pp.neighbors(graph, use_rep="latent", random_state=0)
    return graph


def pca(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    import scanpy as sc

    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    for kind, n_comps in (("pca", 30), ("pca 10", 10)):
        yield kind, graph_on(sc.pp.pca(adata.X, n_comps=n_comps, random_state=seed))


def scvae(adata: ad.AnnData, seed: int) -> Iterator[tuple[str, ad.AnnData]]:
    import scvae

    model = scvae.fit(adata, rng=seed, verbose=False)
    yield "scvae", graph_on(adata.obsm["X_scvae"])
    scvae.tl.neighbors(adata, model, rng=seed)
    yield "scvae draws", adata


def scvi(adata: ad.AnnData, seed: int, peer: str | None) -> Iterator[tuple[str, ad.AnnData]]:
    if peer is None:
        raise SystemExit("pass --peer-python, an interpreter with scvi-tools, or leave scvi out of --methods")
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "data.h5ad", Path(folder) / "out.npz"
        ad.AnnData(adata.X).write_h5ad(data)
        subprocess.run([peer, str(PEER), "latent", str(data), str(data), str(out), "--seed", str(seed)], check=True)
        yield "scvi", graph_on(np.load(out)["values"])


def measure(method: str, words: argparse.Namespace) -> None:
    path, seeds, peer = words.data, words.seeds, words.peer_python
    adata = ad.read_h5ad(path)
    known = known_order(adata, words.order, [stage for stage in words.stages.split(",") if stage])
    lineages = [adata.obs[words.types].isin(names.split(",")).to_numpy() for names in words.lineages]
    made: list[Row] = []
    for seed in range(seeds if method != "pca" else 1):
        one = adata.copy()
        graphs = pca(one, seed) if method == "pca" else scvae(one, seed) if method == "scvae" else scvi(one, seed, peer)
        for kind, graph in graphs:
            made.append({"set": path.stem, "kind": kind, "seed": seed} | scores(graph, known, lineages))
            print(json.dumps(made[-1]), flush=True)
    out = RESULTS / f"{method}.json"
    kept = [row for row in json.loads(out.read_text()) if row["set"] != path.stem] if out.exists() else []
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(kept + made, indent=1) + "\n")


def print_table() -> None:
    rows: list[Row] = [row for path in sorted(RESULTS.glob("*.json")) for row in json.loads(path.read_text())]
    for name in sorted({row["set"] for row in rows}):
        print(f"\n| {name} | spearman by seed | mean | mean within lineages |\n|---|---|---|---|")
        for kind in KINDS:
            some = [row for row in rows if (row["set"], row["kind"]) == (name, kind)]
            if not some:
                continue
            values = [row["spearman"] for row in some]
            within = [row["within_lineages"] for row in some if "within_lineages" in row]
            means = [f"{statistics.fmean(those):.3f}" if those else "" for those in (values, within)]
            print(f"| {kind} | {', '.join(f'{value:.3f}' for value in values)} | {' | '.join(means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--order", default="time")
    parser.add_argument("--stages", default="")
    parser.add_argument("--lineages", nargs="+", default=[])
    parser.add_argument("--types", default="cell_type")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--table", action="store_true", help="only print")
    words = parser.parse_args()
    if not words.table:
        if words.data is None:
            parser.error("name a file, or pass --table")
        for method in words.methods:
            measure(method, words)
    print_table()


if __name__ == "__main__":
    main()
