"""What the bound of a VAE costs: beside a flow whose likelihood is exact, and with priors that are trained.

Usage: python benchmarks/flow.py EVALUATE.py DATA_FOLDER [--sets pbmc3k paul15] [--seed 0] [--table]

EVALUATE.py is that of benchmarks/quality.py; so are the genes and the split. Two comparisons on the held-out cells:

  pcs     the same 10 principal components of log-normalised counts for both, standardised (nats per cell):
          a flow of 4 couplings by itself (exact log-likelihood), a normal with full covariance (exact), and a VAE with
          the Gaussian head and as many latent dimensions, by its ELBO and its importance-weighted bound
  counts  a fit with each prior: ELBO, importance-weighted bound (300 samples) and the difference, which is a lower
          bound of the variational gap; microseconds of processor time to embed a cell that is new

Rows are written to benchmarks/results/flow.json; rows of other sets are kept. --table only prints them.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import torch

import scvae
from scvae.common.rng import torch_generator
from scvae.model.latent.flow import Flow
from scvae.model.optimizer import Adam, Group
from scvae.training.schedules import one_cycle

RESULTS = Path(__file__).parent / "results" / "flow.json"
N_PCS, N_SAMPLES = 10, 300
EPOCHS, BATCH, RATE, HELD_OUT = 200, 128, 3e-3, 10  # of the flow alone; one cell in ten chooses its epoch

Row = dict[str, Any]


def flow_alone(train: np.ndarray, test: np.ndarray, seed: int) -> float:
    """Mean exact log-likelihood of the test cells under a flow fitted by maximum likelihood."""
    rows, judged = (torch.from_numpy(part).float() for part in (train, test))
    generator = torch_generator(seed, 0)
    order = torch.randperm(len(rows), generator=generator)
    judges, rows = rows[order[: len(rows) // HELD_OUT]], rows[order[len(rows) // HELD_OUT :]]
    flow = Flow(rows.shape[1], generator=generator)
    optimizer = Adam([Group(list(flow.parameters()))])
    best, found = -np.inf, np.nan
    for epoch in range(EPOCHS):
        for part in torch.randperm(len(rows), generator=generator).split(BATCH):
            loss = -flow.log_prob(rows[part]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step(one_cycle(epoch / EPOCHS, peak=RATE), loss)
        with torch.no_grad():
            objective = float(flow.log_prob(judges).mean())
            if objective > best:
                best, found = objective, float(flow.log_prob(judged).mean())
    return found


def rows_on_pcs(train: ad.AnnData, test: ad.AnnData, seed: int) -> Row:
    """Log-likelihoods of the principal components of the test cells."""
    from sklearn.decomposition import PCA

    logs = [np.log1p(part.X.toarray() / part.X.sum(1) * 1e4) for part in (train, test)]
    pca = PCA(N_PCS, random_state=0).fit(np.asarray(logs[0]))
    first, second = (pca.transform(np.asarray(values)) for values in logs)
    first, second = ((values / first.std(0)).astype(np.float32) for values in (first, second))
    covariance = np.cov(first, rowvar=False)
    normal = torch.distributions.MultivariateNormal(torch.from_numpy(first.mean(0)).double(), torch.tensor(covariance))
    model = scvae.fit(
        ad.AnnData(first), likelihood="gaussian", n_latent=N_PCS, rng=seed, verbose=False, metric="latent"
    )
    held_out = ad.AnnData(second)
    bounds = {
        kind: float(scvae.tl.log_likelihood(held_out, model, kind=kind, n_samples=N_SAMPLES).mean())
        for kind in ("elbo", "iw", "density")
    }
    return {
        "kind": "pcs",
        "normal": float(normal.log_prob(torch.from_numpy(second).double()).mean()),
        "flow": flow_alone(first, second, seed),
        **{f"vae {kind}": value for kind, value in bounds.items()},
    }


def rows_on_counts(train: ad.AnnData, test: ad.AnnData, seed: int) -> list[Row]:
    """ELBO, importance-weighted bound and cost of an embedding with each prior."""
    made = []
    for prior in ("normal", "mixture", "flow"):
        network = scvae.NetworkConfig(prior=prior)
        model = scvae.fit(train, network=network, rng=seed, verbose=False)
        elbo, bound = (
            float(scvae.tl.log_likelihood(test, model, kind=kind, n_samples=N_SAMPLES).mean())
            for kind in ("elbo", "iw")
        )
        started = time.process_time()
        scvae.tl.embed(test, model)
        cost = (time.process_time() - started) / test.n_obs
        made.append({"kind": "counts", "prior": prior, "elbo": elbo, "iw": bound, "microseconds": 1e6 * cost})
    return made


def print_tables(rows: list[Row]) -> None:
    columns = ("normal", "flow", "vae elbo", "vae iw", "vae density")
    print("| set | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 1) + "|")
    for row in rows:
        if row["kind"] == "pcs":
            print(f"| {row['set']} | " + " | ".join(f"{row[name]:.2f}" for name in columns) + " |")
    columns = ("set", "prior", "ELBO", "importance-weighted", "difference", "microseconds a new cell")
    print("\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        if row["kind"] == "counts":
            gap = row["iw"] - row["elbo"]
            numbers = f"{row['elbo']:.2f} | {row['iw']:.2f} | {gap:.2f} | {row['microseconds']:.0f}"
            print(f"| {row['set']} | {row['prior']} | {numbers} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluate", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="+", default=["pbmc3k", "paul15"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true")
    words = parser.parse_args()
    rows: list[Row] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    spec = importlib.util.spec_from_file_location("evaluate", words.evaluate)
    assert spec is not None
    assert spec.loader is not None
    evaluate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(evaluate)
    for name in [] if words.table else words.sets:
        whole, train, test = evaluate.load(words.data / f"{name}.h5ad", 2000)
        cells, held_out = whole[train].copy(), whole[test].copy()
        made = [rows_on_pcs(cells, held_out, words.seed), *rows_on_counts(cells, held_out, words.seed)]
        rows = [row for row in rows if row["set"] != name] + [{"set": name} | row for row in made]
        RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print_tables(rows)


if __name__ == "__main__":
    main()
