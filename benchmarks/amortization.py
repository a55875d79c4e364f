"""What an encoder costs and gives: held-out bounds and seconds with it, with steps after it, and without it.

Usage: python benchmarks/amortization.py DATA_FOLDER [--seeds 2] [--sets pbmc3k paul15 zheng_sorted2k] [--table]

Of each set, the genes found in most cells are modelled, and 200 cells at random are kept from the fit.

  amortized           the default fit: q(z | x) from the encoder
  amortized + refine  the same model: each cell's mean and log variance take 200 gradient steps after the encoder
  per cell            TrainingConfig(inference="per_cell"): decoder and each cell's own q trained together; new cells by
                      200 gradient steps from the prior
  per cell + refine   200 further steps after these

elbo and iw: bounds on log p(x) of the held-out cells in nats (64 draws, at β = 1). fit_s: processor seconds of the
training alone. cell_ms: processor milliseconds to embed one new cell, all 200 at once. knn: share of the training cells
whose label is right by a vote of their 15 neighbours in the embedding.

Rows are written to benchmarks/results/amortization.json; rows of other sets and seeds are kept. --table only prints
them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae import TrainingConfig
from scvae.data.intake import DataKeys
from scvae.inference.cells import read_cells
from scvae.inference.posterior import posterior_moments
from scvae.kernels.context import computing
from scvae.training import run
from scvae.training.fit import read_and_train
from scvae.training.settings import Request

RESULTS = Path(__file__).parent / "results" / "amortization.json"
SETS = ("pbmc3k", "paul15", "zheng_sorted2k")
SCORES = ("elbo", "iw", "fit_s", "cell_ms", "knn")
HELD_OUT, STEPS, DRAWS = 200, 200, 64

Row = dict[str, Any]


def load(path: Path, n_genes: int) -> tuple[ad.AnnData, ad.AnnData]:
    """Training and held-out cells, with the genes that most cells express."""
    whole = ad.read_h5ad(path)
    whole.X = sp.csr_matrix(whole.X).astype(np.float32)
    expressed = np.argsort(-np.asarray((whole.X > 0).sum(0)).ravel(), kind="stable")[:n_genes]
    whole = whole[:, np.sort(expressed)].copy()
    whole = whole[np.asarray(whole.X.sum(1)).ravel() >= 10].copy()
    order = np.random.default_rng(0).permutation(whole.n_obs)
    return whole[np.sort(order[HELD_OUT:])].copy(), whole[order[:HELD_OUT]].copy()


@computing()
def fitted(cells: ad.AnnData, inference: str, seed: int) -> tuple[scvae.FittedModel, float]:
    """A model without its density and metric, which take gradient steps of their own; and seconds of the training."""
    training = TrainingConfig(inference=inference)
    request = Request(rng=seed, metric="latent", training=training, device="cpu", verbose=False)
    seconds = []
    train, with_density = run.train, run.with_density

    def timed(*arguments: Any, **options: Any) -> Any:
        started = time.process_time()
        progress = train(*arguments, **options)
        seconds.append(time.process_time() - started)
        return progress

    run.train, run.with_density = timed, lambda model, _: model
    try:
        return read_and_train(cells, DataKeys(), request)[0], seconds[0]
    finally:
        run.train, run.with_density = train, with_density


def rows_of(cells: ad.AnnData, held_out: ad.AnnData, seed: int) -> list[Row]:
    """The rows of one set and seed."""
    rows = []
    labels = cells.obs["cell_type"].astype(str).to_numpy() if "cell_type" in cells.obs else None
    for inference, name in (("amortized", "amortized"), ("per_cell", "per cell")):
        model, seconds = fitted(cells, inference, seed)
        read, of_fit = read_cells(held_out, model, None), read_cells(cells, model, None)
        for refine in (0, STEPS):
            started = time.process_time()
            computing()(posterior_moments)(model, read, refine=refine)
            took = time.process_time() - started
            bounds = {
                kind: float(scvae.tl.log_likelihood(held_out, model, kind=kind, n_samples=DRAWS, refine=refine).mean())
                for kind in ("elbo", "iw")
            }
            row = {"option": name + (" + refine" if refine else ""), "seed": seed, **bounds, "fit_s": seconds}
            row["cell_ms"] = 1e3 * took / held_out.n_obs
            if labels is not None:
                some = np.random.default_rng(0).permutation(cells.n_obs)[:1000]
                mean, _ = computing()(posterior_moments)(model, of_fit.taken(np.sort(some)), refine=refine)
                votes = cross_val_score(KNeighborsClassifier(15), mean, labels[np.sort(some)])
                row["knn"] = float(votes.mean())
            rows.append(row)
    return rows


def print_tables(rows: list[Row]) -> None:
    names, options = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "option"))
    for score in SCORES:
        print(f"\n| {score} | " + " | ".join(names) + " | mean |\n" + "|---" * (len(names) + 2) + "|")
        for option in options:
            found = [
                [row[score] for row in rows if (row["option"], row["set"]) == (option, name) and score in row]
                for name in names
            ]
            means = [statistics.fmean(values) for values in found if values]
            digits = 3 if score == "knn" else 2
            shown = " | ".join(f"{statistics.fmean(values):.{digits}f}" if values else "" for values in found)
            print(f"| {option} | {shown} | {statistics.fmean(means):.{digits}f} |" if means else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--genes", type=int, default=500)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    rows = {(row["option"], row["set"], row["seed"]): row for row in kept}
    for seed in range(0 if arguments.table else arguments.seeds):
        for name in arguments.sets:
            for row in rows_of(*load(arguments.data / f"{name}.h5ad", arguments.genes), seed):
                row["set"] = name
                print(json.dumps(row), flush=True)
                rows[row["option"], name, seed] = row
            RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_tables(list(rows.values()))


if __name__ == "__main__":
    main()
