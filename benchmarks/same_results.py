"""Prints digests of the results of many kinds of fit, to compare before and after a change that must not alter them.

Usage: python benchmarks/same_results.py [> FILE]        (both on one machine, with the same OMP_NUM_THREADS)
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import numpy as np

import scvae
from scvae import NetworkConfig, TrainingConfig

SHORT = TrainingConfig(epochs=8)


def show(name: str, *values: object) -> None:
    """Prints one line: a name and a digest of all bytes."""
    digest = hashlib.blake2b(digest_size=12)
    for value in values:
        digest.update(np.ascontiguousarray(value).tobytes())
    print(f"{name:32} {digest.hexdigest()}", flush=True)


def fit(name: str, adata, **options) -> scvae.FittedModel:
    """Fits, and prints digests of the embedding, its variances and the history."""
    model = scvae.fit(adata, **{"rng": 0, "verbose": False, "training": SHORT} | options)
    history = model.history.drop(columns="seconds").to_numpy(dtype=float)
    show(name, adata.obsm["X_scvae"], adata.obsm["X_scvae_var"], history, model.outcome.kl_per_dimension)
    return model


def simulated(**options):
    return scvae.datasets.simulate(
        **{"n_cells": 400, "n_genes": 120, "n_batches": 3, "truth": False, "rng": 0} | options
    )


def main() -> None:
    """Prints one line for each case."""
    cells = scvae.datasets.pbmc3k()
    fit("pbmc3k, default", cells, training=None)
    path = fit("pbmc3k, path", cells, beta=(0.1, 10.0))
    scvae.tl.embed(cells, path, beta=3.0)
    show("path at beta 3", cells.obsm["X_scvae"])

    batches = simulated()
    query = batches[batches.obs["batch"] == batches.obs["batch"].iloc[0]].copy()
    known = batches[batches.obs["batch"] != batches.obs["batch"].iloc[0]].copy()
    reference = fit("batches", known, batch_key="batch", training=None)
    mapped = scvae.tl.map_query(query, reference, verbose=False)
    show("query mapped", query.obsm["X_scvae"], query.obsm["X_scvae_var"])
    lacking = query[:, :90].copy()
    scvae.tl.embed(lacking, mapped)
    show("query that lacks genes", lacking.obsm["X_scvae"])
    scvae.tl.denoise(known, reference, n_samples=3)
    likelihoods = scvae.tl.log_likelihood(known, reference, n_samples=10)
    scvae.tl.rank_genes(known, reference, groupby="cell_type", key_added="ranked")
    scores = known.uns["ranked"]["scores"]
    show("after the fit", known.layers["scvae_denoised"], likelihoods, [list(row) for row in scores])
    fit("went on from a model", simulated(rng=1), init=reference, training=None)
    for likelihood in ("zinb", "poisson", "bernoulli", "gaussian"):
        fit(likelihood, simulated(likelihood=likelihood), likelihood=likelihood, batch_key="batch")
    network = NetworkConfig(
        norm="batch", dropout=0.1, encoder_layers=2, encode_conditions=True, dispersion="gene-batch"
    )
    fit("batch norm, dropout", simulated(), batch_key="batch", network=network)
    fit("linear", simulated(), network=NetworkConfig(decoder="linear"))
    fit("n_latent=auto", simulated(), n_latent="auto", training=TrainingConfig(epochs=20))
    fit("capacity, cycles", simulated(), training=TrainingConfig(epochs=8, warmup=0.5, warmup_cycles=2, capacity=3.0))

    tuned = simulated()
    found = scvae.tune_beta(tuned, labels_key="cell_type", betas=[0.3, 1, 3], rng=0, training=SHORT, verbose=False)
    show("tune_beta", found.table.drop(columns="recommended").to_numpy(dtype=float), tuned.obsm["X_scvae"])
    swept = scvae.tune_beta(simulated(), betas=[0.3, 1, 3], method="sweep", rng=0, training=SHORT, verbose=False)
    show("sweep", swept.table.drop(columns="recommended").to_numpy(dtype=float))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.h5ad"
        simulated(n_cells=2000).write_h5ad(path)
        streamed = scvae.fit(path, rng=0, verbose=False, training=TrainingConfig(epochs=4, memory=1e-4))
        show("streamed", streamed.history.drop(columns="seconds").to_numpy(dtype=float))


if __name__ == "__main__":
    main()
