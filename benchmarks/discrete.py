"""Categories and codes against the default latent: likelihood, neighbours, agreement with labels, metacells.

Usage: python benchmarks/discrete.py EVALUATE.py DATA_FOLDER REFERENCE_FOLDER [--seeds 2] [--sets SET ...] [--table]

EVALUATE.py and REFERENCE_FOLDER are those of benchmarks/quality.py; so are the data sets, their genes and the split.
Each model is fitted to four fifths of the cells.

  normal            the default fit
  categorical N     NetworkConfig(latent="categorical", n_categories=N)
  straight N        the same with relaxation="straight_through"
  quantized N       NetworkConfig(latent="quantized", n_codes=N)

test_ll: log-likelihood of the held-out cells in nats: importance-weighted with 200 samples, exact for codes.
density_ll: the same under the density of the cells of the fit (none for codes). knn: accuracy of the labels of held-out
cells by the 15 nearest cells of the fit. kmeans: adjusted Rand index of the labels with k-means of z, with as many
clusters as labels. groups, used, perplexity: adjusted Rand index of the labels with the codes or categories of the
cells of the fit, their number that have cells, and exp of the entropy of their shares. seconds: processor time of the
fit.

The codes as metacells, by the scores of SEACells (Persad et al. 2023, "SEACells infers transcriptional and epigenomic
cellular states from single-cell genomics data", Methods), against as many k-means clusters of the default fit's z:
purity: share of cells with the commonest label of their metacell. compactness: variance of the diffusion components
within a metacell, mean over components and metacells (small is good). separation: distance of a metacell's mean
diffusion components to those of the nearest other, mean over metacells (large is good). The ten diffusion components
are those of scanpy on 50 principal components of log-normalised counts, scaled by λ / (1 - λ), so no model has a part
in them. Metacells of one cell are left out of compactness.

Rows are written to benchmarks/results/discrete.json; rows of other sets and seeds are kept. --table only prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import shlex
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import KNeighborsClassifier, NearestNeighbors

import scvae
from scvae import NetworkConfig

RESULTS = Path(__file__).parent / "results" / "discrete.json"
KEYS = ("option", "set", "seed")
OPTIONS = {
    "normal": {},
    "categorical 10": {"latent": "categorical", "n_categories": 10},
    "quantized 64": {"latent": "quantized", "n_codes": 64},
    "quantized 256": {"latent": "quantized", "n_codes": 256},
    "straight 10": {"latent": "categorical", "n_categories": 10, "relaxation": "straight_through"},
}
SCORES = ("test_ll", "density_ll", "knn", "kmeans", "groups", "used", "perplexity", "seconds")
OF_METACELLS = ("purity", "compactness", "separation")
SLOTS = {"categorical": "scvae_category", "quantized": "scvae_code"}
N_SAMPLES = 200

Row = dict[str, Any]


def row_of(cells: ad.AnnData, held_out: ad.AnnData, settings: dict[str, Any], seed: int, batch: str | None) -> Row:
    """The scores of one fit to `cells`, whose slots hold it afterwards."""
    started = time.process_time()
    model = scvae.fit(cells, batch_key=batch, network=NetworkConfig(**settings), rng=seed, verbose=False)
    seconds = time.process_time() - started
    scvae.tl.embed(held_out, model)
    here, there = (adata[adata.obs["cell_type"].astype(str) != "unlabelled"] for adata in (cells, held_out))
    labels, z = here.obs["cell_type"].astype(str).to_numpy(), here.obsm["X_scvae"]
    judge = KNeighborsClassifier(15).fit(z, labels)
    clusters = KMeans(len(set(labels)), n_init=10, random_state=0).fit_predict(z)
    row = {
        "seed": seed,
        "seconds": seconds,
        "test_ll": float(scvae.tl.log_likelihood(held_out, model, n_samples=N_SAMPLES).mean()),
        "knn": float(judge.score(there.obsm["X_scvae"], there.obs["cell_type"].astype(str))),
        "kmeans": float(adjusted_rand_score(labels, clusters)),
    }
    latent = settings.get("latent", "normal")
    if latent != "quantized":
        row["density_ll"] = float(scvae.tl.log_likelihood(held_out, model, kind="density", n_samples=N_SAMPLES).mean())
    if latent != "normal":
        row["groups"] = float(adjusted_rand_score(labels, here.obs[SLOTS[latent]].astype(str)))
        row["used"] = int(cells.obs[SLOTS[latent]].nunique())
        share = cells.obs[SLOTS[latent]].value_counts(normalize=True)
        row["perplexity"] = float(np.exp(-(share * np.log(share.where(share > 0, 1.0))).sum()))
    return row


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


def rows_of(cells: ad.AnnData, held_out: ad.AnnData, seed: int, batch: str | None) -> Iterator[Row]:
    """The rows of all options on one set."""
    labels = cells.obs["cell_type"].astype(str).to_numpy()
    components, default = diffusion_components(cells), np.empty(0)
    for option, settings in OPTIONS.items():
        row = row_of(cells, held_out, settings, seed, batch) | {"option": option}
        if option == "normal":
            default = cells.obsm["X_scvae"].copy()
        if option.startswith("quantized"):
            groups = cells.obs["scvae_code"].astype(str).to_numpy()
            clusters = KMeans(row["used"], n_init=3, random_state=seed).fit_predict(default)
            row |= of_metacells(groups, labels, components)
            row |= {f"kmeans_{key}": value for key, value in of_metacells(clusters, labels, components).items()}
        yield row


def print_tables(rows: list[Row]) -> None:
    names, options = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "option"))
    for score in (*SCORES, *OF_METACELLS, *(f"kmeans_{score}" for score in OF_METACELLS)):
        print(f"\n| {score} | " + " | ".join(names) + " | mean |\n" + "|---" * (len(names) + 2) + "|")
        for option in options:
            found = [
                [row[score] for row in rows if (row["option"], row["set"]) == (option, name) and score in row]
                for name in names
            ]
            if all(found):
                means = [statistics.fmean(values) for values in found]
                digits = 1 if score in ("test_ll", "density_ll", "seconds", "used", "perplexity") else 3
                shown = " | ".join(f"{mean:.{digits}f}" for mean in means)
                print(f"| {option} | {shown} | {statistics.fmean(means):.{max(digits, 2)}f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+")
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
            whole, train, test = evaluate.load(arguments.data / f"{name}.h5ad", 2000)
            batch = of_set.parse_known_args(given)[0].batch
            for row in rows_of(whole[train].copy(), whole[test].copy(), seed, batch):
                row["set"] = name
                print(json.dumps(row), flush=True)
                rows[tuple(row[key] for key in KEYS)] = row
                RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_tables(list(rows.values()))


if __name__ == "__main__":
    main()
