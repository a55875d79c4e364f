"""Compares Gaussian and Bernoulli likelihoods with PCA on the same input, by kNN label accuracy.

Usage: python benchmarks/heads.py DATA_FOLDER [--seeds 3] [--out benchmarks/results/heads.json]

DATA_FOLDER holds levine32.h5ad (mass cytometry, arcsinh), hao_adt224.h5ad (raw protein counts, transformed here by the
centred log-ratio) and atac_forebrain.h5ad (0/1 accessibility), each with obs["cell_type"]. The accuracy is that of a
15-neighbour classifier with 5-fold cross-validation, as in the comparison of count models. PCA has the same number of
dimensions as the latent space, and is also measured with 10.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from pathlib import Path

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.decomposition import PCA
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scvae

SETS = {"levine32": "gaussian", "hao_adt224": "gaussian", "atac_forebrain": "bernoulli"}


def read(path: Path) -> ad.AnnData:
    adata = ad.read_h5ad(path)
    if path.stem == "hao_adt224":  # centred log-ratio over the proteins of a cell (Stoeckius et al. 2017)
        log = np.log1p(adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X))
        adata.X = (log - log.mean(axis=1, keepdims=True)).astype(np.float32)
    return adata


def accuracy(z: np.ndarray, labels: np.ndarray) -> float:
    common = np.isin(labels, [c for c in set(labels) if (labels == c).sum() >= 5])
    return float(cross_val_score(KNeighborsClassifier(15), z[common], labels[common], cv=5).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sets", nargs="+", default=list(SETS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "heads.json")
    arguments = parser.parse_args()
    rows = []
    for name in arguments.sets:
        adata = read(arguments.data / f"{name}.h5ad")
        labels = adata.obs["cell_type"].astype(str).to_numpy()
        dense = adata.X.toarray() if sp.issparse(adata.X) else np.asarray(adata.X)
        row = {"data": name, "cells": adata.n_obs, "features": adata.n_vars, "likelihood": SETS[name]}
        for seed in range(arguments.seeds):
            started = time.perf_counter()
            model = scvae.fit(adata, likelihood=SETS[name], rng=seed, verbose=False)
            row.setdefault("fit_s", []).append(time.perf_counter() - started)
            row.setdefault("scvae", []).append(accuracy(adata.obsm["X_scvae"], labels))
            row.setdefault("held_out_elbo", []).append(model.outcome.held_out_elbo)
            row.setdefault("active", []).append(model.outcome.active_dimensions)
        for dimensions in (10, model.n_latent):
            z = PCA(dimensions, random_state=0).fit_transform(dense)
            row[f"pca{dimensions}"] = accuracy(z, labels)
        row["input"] = accuracy(dense, labels)
        rows.append(row)
        print(json.dumps(row), flush=True)
    machine = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
    arguments.out.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
