"""Scores denoised expression on held-out molecules and counts, for scvae, SCVI and a mean profile.

Usage: python benchmarks/denoise.py DATA.h5ad ... [--methods mean scvae scvi] [--tests thinning dropout]
    [--seeds 3] [--peer-python P] [--table]

Each file holds raw counts in X, restricted to the genes to model. If obs["batch"] has several values, it is passed as
the batch. P is an interpreter with scvi-tools. SCVI is fitted with seed 0 only, because a fit takes minutes.

thinning: each molecule is kept with probability 0.8 (binomial thinning of the counts). The kept molecules are fitted
and denoised, and the others are scored. The score is the mean log-likelihood of a held-out molecule under the denoised
proportions of its cell, in nats (multinomial; higher is better). Given the true proportions of a cell, the held-out
molecules are independent of the fitted ones, so copying the data does not help (Batson, Royer & Webber 2019, "Molecular
cross-validation").

dropout: 10 % of the non-zero counts, chosen uniformly, are set to 0. The expected counts at the library size of the
corrupted cell are compared with the true counts there: median and mean absolute error (Lopez et al. 2018, figure 2).

Both tests use genes with a count in the corrupted matrix. Methods: `mean`, the proportions of all cells together;
`scvae`, scvae.tl.denoise; `scvae_mean`, the same at the posterior mean alone; `scvae_long`, a fit of 100 epochs on all
cells, with none held out for validation; `scvi`, get_normalized_expression with 25 draws. A default fit stops when
held-out *cells* no longer improve, which is well before held-out molecules of the fitted cells stop improving.

Rows are written to benchmarks/results/denoise/METHOD.json; rows of other data sets are kept. --table only prints the
existing rows.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp

RESULTS = Path(__file__).parent / "results" / "denoise"
PEER = Path(__file__).parent / "_scvi_peer.py"
KEPT, DROPPED = 0.8, 0.1
KEYS = ("set", "test", "seed")
METHODS = ("mean", "scvae", "scvae_mean", "scvae_long", "scvi")
LONG = {"epochs": 100, "validation_fraction": 0.0}
SCORES = {"thinning": ("log_likelihood",), "dropout": ("median_error", "mean_error")}

Row = dict[str, Any]
Truth = sp.csr_matrix


def thinned(counts: sp.csr_matrix) -> tuple[sp.csr_matrix, Truth]:
    """The kept molecules and the held-out ones."""
    kept = counts.copy()
    kept.data = np.random.default_rng(0).binomial(counts.data.astype(np.int64), KEPT).astype(np.float32)
    kept.eliminate_zeros()
    return kept, (counts - kept).tocsr()


def dropped(counts: sp.csr_matrix) -> tuple[sp.csr_matrix, Truth]:
    """The counts with some of them set to 0, and the true values of those."""
    lost = np.random.default_rng(0).random(counts.nnz) < DROPPED
    left, truth = counts.copy(), counts.copy()
    left.data = np.where(lost, 0, counts.data).astype(np.float32)
    truth.data = np.where(lost, counts.data, 0).astype(np.float32)
    left.eliminate_zeros()
    truth.eliminate_zeros()
    return left, truth


CORRUPTIONS: dict[str, Callable[[sp.csr_matrix], tuple[sp.csr_matrix, Truth]]] = {
    "thinning": thinned,
    "dropout": dropped,
}


def corrupted(path: Path, test: str) -> tuple[ad.AnnData, Truth]:
    whole = ad.read_h5ad(path)
    left, truth = CORRUPTIONS[test](sp.csr_matrix(whole.X))
    cells, genes = np.asarray(left.sum(1)).ravel() > 0, np.asarray(left.sum(0)).ravel() > 0
    obs = whole.obs[["batch"]] if "batch" in whole.obs and whole.obs["batch"].nunique() > 1 else whole.obs[[]]
    adata = ad.AnnData(left[cells][:, genes], obs=obs[cells], var=whole.var[[]][genes])
    return adata, truth[cells][:, genes]


def scored(test: str, proportions: np.ndarray, adata: ad.AnnData, truth: Truth) -> Row:
    rows, columns = truth.nonzero()
    true = np.asarray(truth[rows, columns]).ravel().astype(np.float64)
    found = proportions[rows, columns].astype(np.float64)
    if test == "thinning":
        return {"log_likelihood": float((true * np.log(found)).sum() / true.sum())}
    error = np.abs(found * np.asarray(adata.X.sum(1)).ravel()[rows] - true)
    return {"median_error": float(np.median(error)), "mean_error": float(error.mean())}


def mean_profile(adata: ad.AnnData, _seed: int, _peer: str | None) -> tuple[np.ndarray, float]:
    total = np.asarray(adata.X.sum(0)).ravel()
    return np.broadcast_to(total / total.sum(), adata.shape), 0.0


def scvae_draws(
    adata: ad.AnnData,
    seed: int,
    _peer: str | None,
    n_samples: int | None = None,
    training: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[np.ndarray, float]:
    import scvae

    batch_key = "batch" if "batch" in adata.obs else None
    started = time.perf_counter()
    model = scvae.fit(adata, batch_key=batch_key, training=scvae.TrainingConfig(**training), rng=seed, verbose=False)
    seconds = time.perf_counter() - started
    options = {} if n_samples is None else {"n_samples": n_samples}
    scvae.tl.denoise(adata, model, **options)
    return adata.layers["scvae_denoised"], seconds


def scvae_posterior_mean(adata: ad.AnnData, seed: int, peer: str | None) -> tuple[np.ndarray, float]:
    return scvae_draws(adata, seed, peer, n_samples=0)


def scvae_long(adata: ad.AnnData, seed: int, peer: str | None) -> tuple[np.ndarray, float]:
    return scvae_draws(adata, seed, peer, training=LONG)


def scvi(adata: ad.AnnData, seed: int, peer: str | None) -> tuple[np.ndarray, float]:
    if peer is None:
        raise SystemExit("pass --peer-python, an interpreter with scvi-tools, or leave scvi out of --methods")
    with tempfile.TemporaryDirectory() as folder:
        data, out = Path(folder) / "train.h5ad", Path(folder) / "out.npz"
        adata.write_h5ad(data)
        subprocess.run([peer, str(PEER), "expression", str(data), str(data), str(out), "--seed", str(seed)], check=True)
        with np.load(out) as found:
            return found["values"], float(found["seconds"])


RUN = {
    "mean": mean_profile,
    "scvae": scvae_draws,
    "scvae_mean": scvae_posterior_mean,
    "scvae_long": scvae_long,
    "scvi": scvi,
}


def measure(method: str, tests: list[str], files: list[Path], seeds: int, peer: str | None) -> None:
    rows = {tuple(row[key] for key in KEYS): row for row in _stored(method)}
    for seed in range(seeds if method.startswith("scvae") else 1):
        for test in tests:
            for path in files:
                adata, truth = corrupted(path, test)
                proportions, seconds = RUN[method](adata, seed, peer)
                row = {"set": path.stem, "test": test, "method": method, "seed": seed, "fit_seconds": seconds}
                row |= scored(test, proportions, adata, truth)
                print(json.dumps(row), flush=True)
                rows[tuple(row[key] for key in KEYS)] = row
                text = json.dumps(list(rows.values()), indent=1) + "\n"
                (RESULTS / f"{method}.json").write_text(text, encoding="utf-8")


def print_tables() -> None:
    rows = [row for method in METHODS for row in _stored(method)]
    sets = list(dict.fromkeys(row["set"] for row in rows))
    for test, scores in SCORES.items():
        for score in scores:
            print(f"\n| {test}: {score} | " + " | ".join(sets) + " | mean |\n" + "|---" * (len(sets) + 2) + "|")
            for method in METHODS:
                found = {
                    name: [r[score] for r in rows if (r["set"], r["test"], r["method"]) == (name, test, method)]
                    for name in sets
                }
                means = [statistics.fmean(values) if values else None for values in found.values()]
                if any(mean is not None for mean in means):
                    shown = ["" if mean is None else f"{mean:.4f}" for mean in means]
                    every = "" if None in means else f"{statistics.fmean(m for m in means if m is not None):.4f}"
                    print(f"| {method} | " + " | ".join(shown) + f" | {every} |")


def _stored(method: str) -> list[Row]:
    path = RESULTS / f"{method}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="DATA.h5ad")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tests", nargs="+", choices=list(CORRUPTIONS), default=list(CORRUPTIONS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for method in arguments.methods:
            measure(method, arguments.tests, arguments.files, arguments.seeds, arguments.peer_python)
    print_tables()


if __name__ == "__main__":
    main()
