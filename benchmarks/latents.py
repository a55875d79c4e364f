"""Options of the latent space against the default: likelihood, drawn cells, embedding and seconds, in one table.

Usage: python benchmarks/latents.py EVALUATE.py DATA_FOLDER REFERENCE_FOLDER [--seeds 2] [--sets SET ...]
    [--options OPTION ...] [--table | --seconds]

EVALUATE.py and REFERENCE_FOLDER are those of benchmarks/quality.py; so are the data sets, their genes and the split.
Each model is fitted to four fifths of the cells. Of the rest, and of new cells:

  prior N(0, I)   the default fit; log p(x) under N(0, I), cells drawn from N(0, I)
  density         the same fit; log p(x) under the density of its cells (kind="density"), cells drawn from it
  OPTION          another fit (see OPTIONS); log p(x) under its prior, cells drawn from this

test_ll: importance-weighted log-likelihood of the held-out cells in nats, 200 samples (exact for codes). auc: see
benchmarks/generate.py (as many cells are drawn as are held out; 0.5 is best). doublets: AUC with which log p(z) at the
posterior mean tells held-out cells from as many artificial doublets, half the counts of two held-out cells of different
types together (not for categories and codes). seconds: processor time of the fit without its density, and of what the
density adds. components: those of the density or of the prior. groups, perplexity: adjusted Rand index of the labels
with the categories or codes of the cells, and exp of the entropy of the shares of these. The scores of the embedding of
all cells, which the density does not change, are those of EVALUATE.py; without scib-metrics, iLISI and BRAS are left
out.

Rows are written to benchmarks/results/latents.json; rows of other sets and seeds are kept. --table only prints them.
--seconds prints processor seconds of fits, with the density, and neither scores nor writes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import shlex
import statistics
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import scipy.sparse as sp
import torch
from generate import scored
from sklearn.metrics import adjusted_rand_score, roc_auc_score

import scvae
from scvae.inference.cells import read_cells
from scvae.inference.cloud import density_of_fit
from scvae.inference.density import Density
from scvae.inference.fitted import FittedModel
from scvae.inference.posterior import BoundKind, posterior_moments
from scvae.kernels.context import computing
from scvae.model.latent.prior import Prior

RESULTS = Path(__file__).parent / "results" / "latents.json"
KEYS = ("option", "set", "seed")
EMBEDDING = ("knn_acc", "ari", "nmi", "kmeans_ari", "asw", "ilisi", "bras", "spearman")
SCORES = ("test_ll", "auc", "doublets", *EMBEDDING, "groups", "perplexity", "seconds", "components")
N_SAMPLES = 200
DEFAULT = "prior N(0, I)"
OPTIONS: dict[str, dict[str, Any]] = {  # settings of NetworkConfig
    DEFAULT: {},
    "mixture": {"prior": "mixture"},
    "mixture, 10": {"prior": "mixture", "prior_components": 10},
    "flow": {"prior": "flow"},
    "10 categories": {"latent": "categorical", "n_categories": 10},
    "straight through": {"latent": "categorical", "n_categories": 10, "relaxation": "straight_through"},
    "64 codes": {"latent": "quantized", "n_codes": 64},
    "256 codes": {"latent": "quantized", "n_codes": 256},
    "z to every layer": {"z_to": "every"},
}
GROUPS = {"categorical": "scvae_category", "quantized": "scvae_code"}  # columns of obs

Row = dict[str, Any]


def rows_of(
    option: str, model: FittedModel, cells: ad.AnnData, held_out: ad.AnnData, seed: int, seconds: float
) -> list[Row]:
    """The rows of one fit to `cells`, which took `seconds`."""
    read = read_cells(cells, model, None)
    started = time.process_time()
    fitted = computing()(density_of_fit)(model, read)
    added = time.process_time() - started
    rows = []
    ways: list[tuple[str, Density | None, BoundKind]] = [(option, None, "iw")]
    for name, density, kind in ways + ([("density", fitted, "density")] if option == DEFAULT else []):
        of = dataclasses.replace(model, density=density)
        drawn = scvae.tl.generate(of, n=held_out.n_obs, rng=seed)
        row = {
            "option": name,
            "seed": seed,
            "test_ll": float(np.mean(scvae.tl.log_likelihood(held_out, of, kind=kind, n_samples=N_SAMPLES))),
            "auc": scored(held_out.X, drawn.X)["auc"],
            "seconds": seconds - added if density is None else added,
            "components": (model.network_config.prior_components or 1) if density is None else density.n_components,
        }
        if model.network_config.latent == "normal":
            row["doublets"] = doublets_found(
                of, of.network.prior if density is None else density.latent, held_out, seed
            )
        rows.append(row)
    return rows


def doublets_found(model: FittedModel, latent: Prior, cells: ad.AnnData, seed: int) -> float:
    """AUC with which the log density of `latent` tells the cells from doublets."""
    both = with_doublets(cells, seed)
    where = torch.from_numpy(computing()(posterior_moments)(model, read_cells(both, model, None))[0])
    with torch.no_grad():
        log_prob = latent.log_prob(where).numpy()
    return float(roc_auc_score(np.arange(both.n_obs) < cells.n_obs, log_prob))


def group_scores(cells: ad.AnnData, latent: str) -> Row:
    """Agreement of the groups of the cells of a fit with their labels, and their perplexity."""
    if latent not in GROUPS:
        return {}
    labels, group = cells.obs["cell_type"].astype(str), cells.obs[GROUPS[latent]].astype(str)
    known = labels != "unlabelled"
    share = group.value_counts(normalize=True)
    return {
        "groups": float(adjusted_rand_score(labels[known], group[known])),
        "perplexity": float(np.exp(-(share * np.log(share)).sum())),
    }


def embedding_scores(evaluate: Any, model: FittedModel, whole: ad.AnnData, batch: str | None, time_key: str) -> Row:
    """The scores of EVALUATE.py for the embedding of all cells."""
    cells = whole.copy()
    scvae.tl.embed(cells, model)
    batch = batch if importlib.util.find_spec("scib_metrics") else None
    scores = evaluate.score(cells, cells.obsm["X_scvae"], "cell_type", batch, time_key)
    return {name: float(scores[name]) for name in EMBEDDING if name in scores}


def with_doublets(cells: ad.AnnData, seed: int) -> ad.AnnData:
    """The cells, followed by as many doublets of the same mean depth."""
    rng = np.random.default_rng(seed)
    first, second = rng.integers(cells.n_obs, size=(2, 20 * cells.n_obs))
    types = cells.obs["cell_type"].astype(str).to_numpy()
    of_two = np.flatnonzero(types[first] != types[second])[: cells.n_obs]
    doublets = cells[first[of_two]].copy()
    doublets.X = sp.csr_matrix(doublets.X + cells.X[second[of_two]])
    doublets.X.data = rng.binomial(doublets.X.data.astype(np.int64), 0.5).astype(np.float32)
    doublets.obs_names = [f"doublet_{i}" for i in range(doublets.n_obs)]
    return ad.concat([cells, doublets])


def print_tables(rows: list[Row]) -> None:
    names, options = (list(dict.fromkeys(row[key] for row in rows)) for key in ("set", "option"))
    for score in (score for score in SCORES if any(score in row for row in rows)):
        print(f"\n| {score} | " + " | ".join(names) + " | mean |\n" + "|---" * (len(names) + 2) + "|")
        for option in options:
            found = [
                [row[score] for row in rows if (row["option"], row["set"]) == (option, name) and score in row]
                for name in names
            ]
            means = [statistics.fmean(values) if values else None for values in found]
            there = [mean for mean in means if mean is not None]
            if there:
                digits = 1 if score in ("test_ll", "seconds", "components", "perplexity") else 3
                shown = " | ".join("" if mean is None else f"{mean:.{digits}f}" for mean in means)
                print(f"| {option} | {shown} | {statistics.fmean(there):.{max(digits, 2)}f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--sets", nargs="+")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS))
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--seconds", action="store_true")
    arguments = parser.parse_args()
    of_set = argparse.ArgumentParser()
    of_set.add_argument("--batch")
    of_set.add_argument("--time")
    listed = [shlex.split(line) for line in (arguments.reference / "datasets.txt").read_text().splitlines() if line]
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() and not arguments.seconds else []
    rows = {tuple(row[key] for key in KEYS): row for row in kept}
    spec = importlib.util.spec_from_file_location("evaluate", arguments.evaluate)
    assert spec is not None
    assert spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    for batch_key in () if arguments.table else (None, "batch"):  # reads or compiles the kernels
        some = scvae.datasets.simulate(n_cells=200, n_genes=50, n_batches=2, rng=0)
        scvae.fit(some, batch_key=batch_key, rng=0, verbose=False)
    for seed in range(0 if arguments.table else arguments.seeds):
        for name, *given in listed:
            if arguments.sets and name not in arguments.sets:
                continue
            options = of_set.parse_known_args(given)[0]
            whole, train, test = evaluate.load(arguments.data / f"{name}.h5ad", 2000)
            cells, held_out = whole[train].copy(), whole[test].copy()
            for option in arguments.options:
                started = time.process_time()
                network = scvae.NetworkConfig(**OPTIONS[option])
                model = scvae.fit(cells, batch_key=options.batch, network=network, rng=seed, verbose=False)
                seconds = time.process_time() - started
                if arguments.seconds:
                    rows[option, name, seed] = {"option": option, "set": name, "seconds": seconds}
                    continue
                made = rows_of(option, model, cells, held_out, seed, seconds)
                made[0] |= group_scores(cells, network.latent)
                made[0] |= embedding_scores(evaluate, model, whole, options.batch, options.time)
                for row in made:
                    row["set"] = name
                    print(json.dumps(row), flush=True)
                    rows[tuple(row[key] for key in KEYS)] = row
                RESULTS.write_text(json.dumps(list(rows.values()), indent=1) + "\n", encoding="utf-8")
    print_tables(list(rows.values()))


if __name__ == "__main__":
    main()
