"""Compares generated cells with real held-out cells: can a classifier separate them?

Usage: python benchmarks/generate.py DATA.h5ad ... [--methods scvae scvi] [--seeds 3] [--peer-python PYTHON] [--table]

Each file holds raw counts in X, restricted to the genes to model. If obs["batch"] has several values, it is passed as
the batch. A fifth of the cells (numpy default_rng(0)) is held out. Models are fitted to the rest, and as many cells are
generated as are held out. PYTHON is an interpreter with scvi-tools. SCVI is fitted with seed 0 only, because a fit
takes minutes.

  real             training cells, drawn without replacement: the score of a perfect model
  scvae posterior  scvae.tl.sample of the held-out cells (lenient, because the model is given these cells)
  scvae like       scvae.tl.generate, like the training cells
  scvae            scvae.tl.generate, from the density of the cells of the fit
  scvae prior      the same of a model without a density, so from the prior
  scvi posterior   SCVI's posterior_predictive_sample of the held-out cells

auc: gradient boosting on 30 principal components of log1p(counts per median library size), log library size and share
of zeros, cross-validated in 5 folds; 0.5 is best. A held-out cell and the draw from it are in the same fold.
auc_depth: the same on log library size and share of zeros alone.
Per gene: correlation of log means, median |log ratio| of the variances (genes with a mean above 0.05), and mean
|difference| of the zero fractions.

Rows are written to benchmarks/results/generate/METHOD.json; rows of other data sets are kept. --table only prints the
existing rows.
"""

from __future__ import annotations

import argparse
import dataclasses
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
import scipy.sparse as sp

RESULTS = Path(__file__).parent / "results" / "generate"
PEER = Path(__file__).parent / "_scvi_peer.py"
KEYS = ("set", "kind", "seed")
METHODS = ("real", "scvae", "scvi")
SCORES = ("auc", "auc_depth", "mean_correlation", "variance_error", "zero_error")

Row = dict[str, Any]


def read(path: Path) -> tuple[ad.AnnData, ad.AnnData]:
    """The cells to fit and the held-out cells."""
    whole = ad.read_h5ad(path)
    whole.X = sp.csr_matrix(whole.X)
    whole.obs = whole.obs[["batch"]] if "batch" in whole.obs and whole.obs["batch"].nunique() > 1 else whole.obs[[]]
    order = np.random.default_rng(0).permutation(whole.n_obs)
    held_out, rest = np.sort(order[: whole.n_obs // 5]), np.sort(order[whole.n_obs // 5 :])
    seen = np.asarray(whole.X[rest].sum(0)).ravel() > 0  # a model can only generate genes that it was fitted to
    return whole[rest][:, seen].copy(), whole[held_out][:, seen].copy()


def features(counts: sp.csr_matrix, median: float) -> tuple[np.ndarray, np.ndarray]:
    library = np.maximum(np.asarray(counts.sum(1)).ravel(), 1.0)
    zeros = 1.0 - np.diff(counts.indptr) / counts.shape[1]
    return np.log1p(counts.toarray() * (median / library)[:, None]), np.column_stack([np.log(library), zeros])


def area(columns: np.ndarray, is_real: np.ndarray, groups: np.ndarray) -> float:
    from sklearn.ensemble import HistGradientBoostingClassifier
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    classifier = HistGradientBoostingClassifier(max_iter=100, random_state=0)
    options = {"cv": GroupKFold(5), "groups": groups, "method": "predict_proba"}
    return float(roc_auc_score(is_real, cross_val_predict(classifier, columns, is_real, **options)[:, 1]))


def scored(real: sp.csr_matrix, drawn: sp.csr_matrix) -> Row:
    from sklearn.decomposition import PCA

    drawn = sp.csr_matrix(drawn)
    drawn.eliminate_zeros()
    median = float(np.median(np.asarray(real.sum(1))))
    (real_genes, real_depth), (drawn_genes, drawn_depth) = features(real, median), features(drawn, median)
    genes, depth = np.vstack([real_genes, drawn_genes]), np.vstack([real_depth, drawn_depth])
    components = PCA(30, random_state=0).fit_transform(genes)
    is_real = np.repeat([True, False], [real.shape[0], drawn.shape[0]])
    # a cell and its posterior draw are in the same fold; all other draws are paired with cells at random
    groups = np.concatenate([np.arange(real.shape[0]), np.arange(drawn.shape[0])])
    mean, other = (np.asarray(table.mean(0)).ravel() for table in (real, drawn))
    square, other_square = (np.asarray(table.power(2).mean(0)).ravel() for table in (real, drawn))
    common = (mean > 0.05) & (other > 0)
    ratio = np.log((square - mean**2)[common] / np.maximum(other_square - other**2, 1e-12)[common])
    zeros = (np.asarray((table > 0).mean(0)).ravel() for table in (real, drawn))
    return {
        "auc": area(np.hstack([components, depth]), is_real, groups),
        "auc_depth": area(depth, is_real, groups),
        "mean_correlation": float(np.corrcoef(np.log(mean[common]), np.log(other[common]))[0, 1]),
        "variance_error": float(np.median(np.abs(ratio))),
        "zero_error": float(np.abs(np.subtract(*zeros)).mean()),
    }


def real(train: ad.AnnData, held_out: ad.AnnData, seed: int, _peer: str | None) -> Iterator[tuple[str, sp.csr_matrix]]:
    chosen = np.random.default_rng(seed).permutation(train.n_obs)[: held_out.n_obs]
    yield "real", train.X[chosen]


def scvae(train: ad.AnnData, held_out: ad.AnnData, seed: int, _peer: str | None) -> Iterator[tuple[str, sp.csr_matrix]]:
    import scvae

    model = scvae.fit(train, batch_key="batch" if "batch" in train.obs else None, rng=seed, verbose=False)
    n = held_out.n_obs
    yield "scvae posterior", scvae.tl.sample(held_out, model, rng=seed).X
    yield "scvae like", scvae.tl.generate(model, n=n, like=train, rng=seed).X
    yield "scvae", scvae.tl.generate(model, n=n, rng=seed).X
    yield "scvae prior", scvae.tl.generate(dataclasses.replace(model, density=None), n=n, rng=seed).X


def scvi(train: ad.AnnData, held_out: ad.AnnData, seed: int, peer: str | None) -> Iterator[tuple[str, sp.csr_matrix]]:
    if peer is None:
        raise SystemExit("pass --peer-python, an interpreter with scvi-tools, or leave scvi out of --methods")
    with tempfile.TemporaryDirectory() as folder:
        data, query, out = (Path(folder) / name for name in ("train.h5ad", "query.h5ad", "out.npz"))
        train.write_h5ad(data)
        held_out.write_h5ad(query)
        subprocess.run([peer, str(PEER), "sample", str(data), str(query), str(out), "--seed", str(seed)], check=True)
        with np.load(out) as found:
            yield "scvi posterior", sp.csr_matrix(found["values"])


RUN = {"real": real, "scvae": scvae, "scvi": scvi}


def measure(method: str, files: list[Path], seeds: int, peer: str | None) -> None:
    target = RESULTS / f"{method}.json"
    rows = {tuple(row[key] for key in KEYS): row for row in _stored(target)}
    for seed in range(1 if method == "scvi" else seeds):
        for path in files:
            train, held_out = read(path)
            for kind, drawn in RUN[method](train, held_out, seed, peer):
                row = {"set": path.stem, "kind": kind, "seed": seed} | scored(held_out.X, drawn)
                print(json.dumps(row), flush=True)
                rows[tuple(row[key] for key in KEYS)] = row
            target.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")


def print_tables() -> None:
    rows = [row for method in METHODS for row in _stored(RESULTS / f"{method}.json")]
    sets, kinds = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "kind"))
    for score in SCORES:
        print(f"\n| {score} | " + " | ".join(sets) + " | mean |\n" + "|---" * (len(sets) + 2) + "|")
        for kind in kinds:
            found = [[r[score] for r in rows if (r["set"], r["kind"]) == (name, kind)] for name in sets]
            means = [statistics.fmean(values) if values else None for values in found]
            shown = ["" if mean is None else f"{mean:.3f}" for mean in means]
            every = "" if None in means else f"{statistics.fmean(m for m in means if m is not None):.3f}"
            print(f"| {kind} | " + " | ".join(shown) + f" | {every} |")


def _stored(path: Path) -> list[Row]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="*", metavar="DATA.h5ad")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer-python", default=os.environ.get("PEER_PYTHON"))
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        for method in arguments.methods:
            measure(method, arguments.files, arguments.seeds, arguments.peer_python)
    print_tables()


if __name__ == "__main__":
    main()
