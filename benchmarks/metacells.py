"""Codes of a quantized latent as metacells, against k-means clusters of the default latent and SEACells.

Usage: python benchmarks/metacells.py EVALUATE.py DATA_FOLDER REFERENCE_FOLDER [--seeds 2] [--sets SET ...]
    [--seacells-python PYTHON] [--table]

EVALUATE.py and REFERENCE_FOLDER are those of benchmarks/quality.py; so are the data sets, their genes and the split.
Each model is fitted to four fifths of the cells. The other scores of codes are in benchmarks/latents.py.

  codes N           the codes of NetworkConfig(latent="quantized", n_codes=N)
  k-means N         as many k-means clusters of the default fit's z as there are codes in use
  SEACells N        as many SEACells of principal components, if there is an interpreter that has SEACells

The scores are those of SEACells (Persad et al. 2023, "SEACells infers transcriptional and epigenomic cellular states
from single-cell genomics data", Methods). purity: share of cells with the commonest label of their metacell.
compactness: variance of the diffusion components within a metacell, mean over components and metacells (small is good).
separation: distance of a metacell's mean diffusion components to those of the nearest other, mean over metacells (large
is good). The ten diffusion components are those of scanpy on 50 principal components of log-normalised counts, scaled
by λ / (1 - λ), so no model has a part in them. Metacells of one cell are left out of compactness.
SEACells are also kept apart on a kernel of these principal components, so separation and compactness lean to them.

Rows are written to benchmarks/results/metacells.json; rows of other sets and seeds are kept. --table only prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.neighbors import NearestNeighbors

import scvae
from scvae import NetworkConfig

RESULTS = Path(__file__).parent / "results" / "metacells.json"
KEYS = ("option", "set", "seed")
NUMBERS = (64, 256)  # of codes
SCORES = ("purity", "compactness", "separation")

Row = dict[str, Any]


def diffusion_components(cells: ad.AnnData) -> np.ndarray:
    """Ten components, scaled so that Euclidean distances are those of diffusion at all times."""
    work = ad.AnnData(cells.X.copy())
    sc.pp.normalize_total(work)
    sc.pp.log1p(work)
    sc.pp.pca(work, n_comps=50)
    sc.pp.neighbors(work, n_neighbors=30)
    sc.tl.diffmap(work, n_comps=11)
    values = work.uns["diffmap_evals"][1:]
    return np.asarray(work.obsm["X_diffmap"][:, 1:] * (values / (1.0 - values)))


def of_metacells(groups: np.ndarray, labels: np.ndarray, components: np.ndarray) -> Row:
    """Purity, compactness and separation of some metacells."""
    known = labels != "unlabelled"
    table = pd.crosstab(groups[known], labels[known])
    frame = pd.DataFrame(components).groupby(groups)
    centres = frame.mean().to_numpy()
    distance = NearestNeighbors(n_neighbors=2).fit(centres).kneighbors(centres)[0][:, 1]
    return {
        "purity": float(table.max(axis=1).sum() / table.to_numpy().sum()),
        "compactness": float(frame.var(ddof=0)[frame.size() > 1].to_numpy().mean()),
        "separation": float(distance.mean()),
    }


def seacells(cells: ad.AnnData, python: str, number: int, seed: int) -> np.ndarray:
    """The SEACell of each cell."""
    with tempfile.TemporaryDirectory() as folder:
        source, out = Path(folder, "cells.h5ad"), Path(folder, "found.npz")
        ad.AnnData(cells.X, obs=pd.DataFrame(index=cells.obs_names)).write_h5ad(source)
        peer = Path(__file__).parent / "_seacells_peer.py"
        subprocess.run([python, peer, source, out, str(number), "--seed", str(seed)], check=True)
        return np.load(out)["metacell"]


def rows_of(cells: ad.AnnData, seed: int, batch: str | None, python: str | None) -> Iterator[Row]:
    """The rows of all options on one set."""
    labels, components = cells.obs["cell_type"].astype(str).to_numpy(), diffusion_components(cells)
    scvae.fit(cells, batch_key=batch, rng=seed, verbose=False)
    default = cells.obsm["X_scvae"].copy()
    for number in NUMBERS:
        network = NetworkConfig(latent="quantized", n_codes=number)
        scvae.fit(cells, batch_key=batch, network=network, rng=seed, verbose=False)
        codes = cells.obs["scvae_code"].astype(str).to_numpy()
        clusters = KMeans(len(set(codes)), n_init=3, random_state=seed).fit_predict(default)
        ways = {f"codes {number}": codes, f"k-means {number}": clusters}
        if python is not None:
            ways[f"SEACells {number}"] = seacells(cells, python, len(set(codes)), seed)
        for option, groups in ways.items():
            yield {"option": option, "seed": seed} | of_metacells(groups, labels, components)


def print_tables(rows: list[Row]) -> None:
    names, options = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "option"))
    for score in SCORES:
        print(f"\n| {score} | " + " | ".join(names) + " |\n" + "|---" * (len(names) + 1) + "|")
        for option in options:
            found = [[row[score] for row in rows if (row["option"], row["set"]) == (option, name)] for name in names]
            shown = " | ".join(f"{statistics.fmean(values):.3f}" if values else "" for values in found)
            print(f"| {option} | {shown} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--seacells-python")
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    of_set = argparse.ArgumentParser()
    of_set.add_argument("--batch")
    listed = [shlex.split(line) for line in (arguments.reference / "datasets.txt").read_text().splitlines() if line]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {tuple(row[key] for key in KEYS): row for row in kept}
    spec = importlib.util.spec_from_file_location("evaluate", arguments.evaluate)
    assert spec is not None
    assert spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    for seed in range(0 if arguments.table else arguments.seeds):
        for name, *given in listed:
            if arguments.sets and name not in arguments.sets:
                continue
            whole, train, _ = evaluate.load(arguments.data / f"{name}.h5ad", 2000)
            batch = of_set.parse_known_args(given)[0].batch
            for row in rows_of(whole[train].copy(), seed, batch, arguments.seacells_python):
                row["set"] = name
                print(json.dumps(row), flush=True)
                rows[tuple(row[key] for key in KEYS)] = row
                RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_tables(list(rows.values()))


if __name__ == "__main__":
    main()
