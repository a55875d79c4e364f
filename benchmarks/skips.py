"""A ladder of decoder strength: which decoders empty the latent space, and what brings it back.

Usage: python benchmarks/skips.py DATA_FOLDER [--seeds 2] [--table]

Default fits but for the decoder: one or three hidden layers; without a skip, with z in every layer, and with a plain or
a gated skip. On 1,000 cells of eight types at the corners of a simplex (seven normal variables, two latent dimensions,
half of the run as warm-up; see benchmarks/collapse_toy.py), on 1,000 simulated cells of five types (200 genes) and on
pbmc3k (the 500 genes found in most cells).

active: latent dimensions with a mean KL above 0.05 nats; kl: their sum; knn: share of cells whose type is right by a
vote of 15 neighbours in the embedding, in five parts; elbo: held out, in nats. With a skip it is no bound on the
density of a cell, because the decoder has read the cell.

Rows are written to benchmarks/results/skips.json. --table only prints them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
from amortization import load
from sklearn.model_selection import cross_val_score
from sklearn.neighbors import KNeighborsClassifier

import scvae
from scvae import NetworkConfig, TrainingConfig

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "science"))
from toys import equidistant_types

RESULTS = Path(__file__).parent / "results" / "skips.json"
OPTIONS = {
    "no skip": {},
    "z to every layer": {"z_to": "every"},
    "plain skip": {"skip": "plain"},
    "plain skip, z to every layer": {"skip": "plain", "z_to": "every"},
    "gated skip": {"skip": "gated"},
}
LAYERS = (1, 3)
SCORES = ("active", "kl", "knn", "elbo")

Row = dict[str, Any]


def sets(folder: Path, seed: int) -> dict[str, tuple[ad.AnnData, str, dict[str, Any]]]:
    """Cells, the column of their types, and arguments of the fit."""
    toy = equidistant_types(1000, rng=np.random.default_rng(seed))
    of_toy = {"likelihood": "gaussian", "n_latent": 2, "training": TrainingConfig(warmup=0.5, patience=None)}
    simulated = scvae.datasets.simulate(n_cells=1000, n_genes=200, truth=False, rng=seed)
    return {
        "toy": (toy, "type", of_toy),
        "simulated": (simulated, "cell_type", {"n_latent": 5}),
        "pbmc3k": (load(folder / "pbmc3k.h5ad", 500)[0], "cell_type", {}),
    }


def row_of(adata: ad.AnnData, labels: str, arguments: dict[str, Any], network: NetworkConfig, seed: int) -> Row:
    """One fit."""
    model = scvae.fit(adata, network=network, metric="latent", rng=seed, verbose=False, **arguments)
    votes = cross_val_score(KNeighborsClassifier(15), adata.obsm["X_scvae"], adata.obs[labels].astype(str))
    outcome = model.outcome
    return {
        "active": outcome.active_dimensions,
        "kl": sum(outcome.kl_per_dimension),
        "knn": float(votes.mean()),
        "elbo": outcome.held_out_elbo,
    }


def print_tables(rows: list[Row]) -> None:
    for name in dict.fromkeys(row["set"] for row in rows):
        print(f"\n| {name} | layers | " + " | ".join(SCORES) + " |\n" + "|---" * (len(SCORES) + 2) + "|")
        for option, layers in dict.fromkeys((row["option"], row["layers"]) for row in rows):
            some = [row for row in rows if (row["set"], row["option"], row["layers"]) == (name, option, layers)]
            if some:
                means = [statistics.fmean(row[score] for row in some) for score in SCORES]
                print(f"| {option} | {layers} | " + " | ".join(f"{mean:.2f}" for mean in means) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if arguments.table else []
    for seed in range(0 if arguments.table else arguments.seeds):
        for name, (adata, labels, of_fit) in sets(arguments.data, seed).items():
            for option, settings in OPTIONS.items():
                for layers in LAYERS:
                    network = NetworkConfig(decoder_layers=layers, **settings)
                    row = {"option": option, "layers": layers, "set": name, "seed": seed}
                    row |= row_of(adata, labels, of_fit, network, seed)
                    print(json.dumps(row), flush=True)
                    rows.append(row)
            RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_tables(rows)


if __name__ == "__main__":
    main()
