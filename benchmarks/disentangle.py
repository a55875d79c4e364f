"""Whether dimensions of z are the programmes behind the cells: mutual information gap and DCI at β = 1 and β = 4.

Usage: python benchmarks/disentangle.py [--seeds 3] [--table]

Cells of one type with five independent programmes, each with genes of its own (scvae.datasets.simulate(n_types=1,
programs=True)), 2,000 cells, 300 genes. Default fits with ten latent dimensions at β = 1 and 4; posterior means in the
network's coordinates and in those of the metric. For comparison: the programmes themselves, a random rotation of them,
and the first five principal components of log-normalised counts.

mig: mutual information gap (Chen et al. 2018, equation 6), the mean over programmes of the difference between the two
dimensions with most information about it, over its entropy; from 20 bins of equally many cells. disentanglement,
completeness: entropies of the importance of each dimension for each programme; informativeness: R² on other cells
(Eastwood & Williams 2018, equations 2 to 4, with extremely randomised trees). All are 1 at best.

Rows are written to benchmarks/results/disentangle.json. --table only prints them.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import scanpy as sc
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.metrics import mutual_info_score

import scvae

RESULTS = Path(__file__).parent / "results" / "disentangle.json"
SCORES = ("mig", "disentanglement", "completeness", "informativeness", "active", "held_out_elbo")
N_BINS = 20
N_PROGRAMS, N_LATENT = 5, 10


def binned(column: np.ndarray) -> np.ndarray:
    ranks = column.argsort().argsort()
    return ranks * N_BINS // len(column)


def mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """The mutual information gap of some dimensions, cells x codes, about the factors, cells x factors."""
    of_codes, of_factors = ([binned(column) for column in table.T] for table in (codes, factors))
    told = np.array([[mutual_info_score(code, factor) for code in of_codes] for factor in of_factors])
    first, second = np.sort(told, axis=1)[:, ::-1][:, :2].T
    return float(np.mean((first - second) / np.log(N_BINS)))


def dci(codes: np.ndarray, factors: np.ndarray) -> dict[str, float]:
    """Disentanglement, completeness and informativeness."""
    half = len(codes) // 2
    importance, right = [], []
    for factor in factors.T:
        trees = ExtraTreesRegressor(100, min_samples_leaf=5, random_state=0).fit(codes[:half], factor[:half])
        importance.append(trees.feature_importances_)
        right.append(trees.score(codes[half:], factor[half:]))
    table = np.array(importance).T + 1e-12  # codes x factors
    of_code, of_factor = table / table.sum(1, keepdims=True), table / table.sum(0)
    each = 1 + (of_code * np.log(of_code)).sum(1) / np.log(table.shape[1])
    whole = 1 + (of_factor * np.log(of_factor)).sum(0) / np.log(table.shape[0])
    weight = table.sum(1) / table.sum()
    return {
        "disentanglement": float(weight @ each),
        "completeness": float(whole.mean()),
        "informativeness": float(np.mean(right)),
    }


def rows_of(seed: int) -> list[dict[str, Any]]:
    """The rows of one seed, of data and fits."""
    adata = scvae.datasets.simulate(
        n_cells=2000, n_genes=300, n_latent=N_PROGRAMS, n_types=1, programs=True, signal=1.0, truth=False, rng=seed
    )
    factors = adata.obsm["z"].astype(float)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((N_PROGRAMS, N_PROGRAMS)))[0]
    logged = adata.copy()
    sc.pp.normalize_total(logged)
    sc.pp.log1p(logged)
    sc.pp.pca(logged, n_comps=N_PROGRAMS, random_state=seed)
    found: dict[str, tuple[np.ndarray, dict[str, Any]]] = {
        "the programmes": (factors, {}),
        "rotated": (factors @ rotation, {}),
        "principal components": (logged.obsm["X_pca"], {}),
    }
    for beta in (1.0, 4.0):
        model = scvae.fit(adata, n_latent=N_LATENT, beta=beta, metric="latent", rng=seed, verbose=False)
        more = {"active": model.outcome.active_dimensions, "held_out_elbo": model.outcome.held_out_elbo}
        found[f"β = {beta:g}"] = adata.obsm["X_scvae"], more
        scvae.fit(adata, n_latent=N_LATENT, beta=beta, rng=seed, verbose=False)
        found[f"β = {beta:g}, metric"] = adata.obsm["X_scvae"], {}
    return [
        {"option": name, "seed": seed, "mig": mig(codes, factors)} | dci(codes, factors) | more
        for name, (codes, more) in found.items()
    ]


def print_table(rows: list[dict[str, Any]]) -> None:
    print("| | " + " | ".join(SCORES) + " |\n" + "|---" * (len(SCORES) + 1) + "|")
    for option in dict.fromkeys(row["option"] for row in rows):
        shown = []
        for score in SCORES:
            values = [row[score] for row in rows if row["option"] == option and score in row]
            shown.append(f"{statistics.fmean(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else "")
        print(f"| {option} | " + " | ".join(shown) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true")
    arguments = parser.parse_args()
    rows = json.loads(RESULTS.read_text(encoding="utf-8")) if arguments.table else []
    for seed in range(0 if arguments.table else arguments.seeds):
        rows += rows_of(seed)
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_table(rows)


if __name__ == "__main__":
    main()
