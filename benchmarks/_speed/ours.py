"""Measurements of scvae, each in its own process: `python -m _speed.ours TASK SETTINGS`."""

from __future__ import annotations

import importlib
import os
import time

if first := os.environ.get("IMPORTED_FIRST"):
    importlib.import_module(first)
started = time.perf_counter()  # before any library is imported, so that the import takes as long as for a user
import scvae  # noqa: E402

IMPORT_SECONDS = time.perf_counter() - started

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from scipy import sparse  # noqa: E402

from . import worker  # noqa: E402
from .worker import Answer  # noqa: E402

ARCHITECTURE = scvae.NetworkConfig(width=128, encoder_layers=1, decoder_layers=1)
N_LATENT = 10
HIGHLY_VARIABLE = 2_000  # genes
MOST_CELLS = 20_000  # with more cells SCVI's KL weight does not reach 1 by default, and the two objectives differ
SPLIT_TOLERANCE = 2e-3  # relative difference of two estimates of the same mean ELBO


def versions(device: str) -> Answer:
    """Versions of scvae and its dependencies."""
    return worker.versions(device, ("torch", "numba", "numpy")) | {"scvae": scvae.__version__}


def simulate(path: str, cells: int, genes: int, tile: int = 1) -> Answer:
    """Writes simulated counts, with the cells repeated `tile` times; 0.25 counts per gene, as in shallow data."""
    adata = scvae.datasets.simulate(n_cells=cells, n_genes=genes, mean_library=genes / 4, truth=False)
    _plain(sparse.vstack([adata.X] * tile, format="csr")).write_h5ad(path)
    return {"cells": cells * tile, "non_zeros": adata.X.nnz / (cells * genes)}


def prepare(source: str | None, path: str, seeds: list[int]) -> Answer:
    """Writes the counts of `source` (None: the bundled set) and the cells that `fit` holds out at each seed."""
    from scvae.data.batches import split

    x = sparse.csr_matrix(_bundled() if source is None else anndata.read_h5ad(source).X, dtype=np.float32)
    x = x[:, np.asarray(x.sum(0)).ravel() > 0]
    x = x[np.asarray(x.sum(1)).ravel() > 0]
    if x.shape[0] > MOST_CELLS:
        raise ValueError(
            f"{source} has {x.shape[0]} cells; pass a set of at most {MOST_CELLS}, where SCVI reaches KL weight 1"
        )
    adata = _plain(x)
    fraction = scvae.TrainingConfig().validation_fraction
    for seed in seeds:
        held_out = np.zeros(len(adata), bool)
        held_out[split(len(adata), fraction, seed)[1]] = True
        adata.obs[f"held_out_{seed}"] = held_out
    adata.write_h5ad(path)
    return _shape(x)


def prepare_batches(source: str, path: str, key: str) -> Answer:
    """Writes the counts of the 2,000 highly variable genes of `source` and its column `key`; {} if it has none."""
    adata = anndata.read_h5ad(source)
    if key not in adata.obs:
        return {}
    if "in_all_batches" in adata.var:
        adata = adata[:, adata.var["in_all_batches"].astype(bool)].copy()
    x = sparse.csr_matrix(_highly_variable(adata).X, dtype=np.float32)
    filled = np.asarray(x.sum(1)).ravel() > 0
    found = _plain(x[filled])
    found.obs[key] = adata.obs[key].astype(str).to_numpy()[filled]
    found.write_h5ad(path)
    return _shape(found.X) | {"batches": found.obs[key].nunique()}


def warm() -> Answer:
    """Compiles the kernels that a first run on a machine would compile, into the cache on disk."""
    for share in (0.05, 0.5):  # sparse and dense blocks use different kernels
        adata = anndata.AnnData(worker.draw_counts(300, 200, share, np.random.default_rng(0)))
        adata.obs["batch"] = ["a", "b"] * 150
        one = scvae.TrainingConfig(epochs=1)
        scvae.fit(adata, batch_key="batch", rng=0, verbose=False, training=one)
        model = scvae.fit(adata, rng=0, verbose=False, training=one)
        scvae.tl.embed(adata, model)
        scvae.tl.log_likelihood(adata, model, n_samples=2)
    return {}


def training(data: str, batch_size: int | None, least_seconds: float, device: str) -> Answer:
    """Seconds of a training epoch, without validation cells; a batch size of None is the default."""
    adata = anndata.read_h5ad(data)
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    used: list[int | None] = []

    def run(epochs: int) -> float:
        config = scvae.TrainingConfig(epochs=epochs, validation_fraction=0.0, **sizes)
        start = time.perf_counter()
        model = scvae.fit(
            adata, n_latent=N_LATENT, network=ARCHITECTURE, training=config, rng=0, device=device, verbose=False
        )
        if device == "cuda":
            torch.cuda.synchronize()
        used.append(model.training_config.batch_size)
        return time.perf_counter() - start

    answer = worker.seconds_per_epoch(run, least_seconds)
    return answer | {"cells_per_second": adata.n_obs / answer["epoch_seconds"], "batch_size": used[-1]}


def fit(data: str, device: str, epochs: int | None = None, batch_key: str | None = None) -> Answer:
    """Seconds of the whole call with the defaults; `epochs` is for a trial run."""
    adata = anndata.read_h5ad(data)
    training = scvae.TrainingConfig(epochs=epochs)
    start = time.perf_counter()
    model = scvae.fit(adata, rng=0, batch_key=batch_key, device=device, verbose=False, training=training)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "epochs": model.outcome.epochs, "threads": model.threads}


def quality(data: str, seed: int, n_samples: int, device: str, epochs: int | None = None) -> Answer:
    """The default fit (or one with other epochs), its curve, and the log-likelihood of the cells it held out."""
    adata = anndata.read_h5ad(data)
    start = time.perf_counter()
    model = scvae.fit(adata, rng=seed, device=device, verbose=False, training=scvae.TrainingConfig(epochs=epochs))
    seconds = time.perf_counter() - start
    held_out = adata[adata.obs[f"held_out_{seed}"].to_numpy()].copy()
    elbo = scvae.tl.log_likelihood(held_out, model, kind="elbo", n_samples=10).mean()
    if not abs(elbo - model.outcome.held_out_elbo) < SPLIT_TOLERANCE * abs(elbo):
        raise RuntimeError(
            f"the held-out ELBO of the fit is {model.outcome.held_out_elbo:.2f}, but {elbo:.2f} on the cells that "
            "prepare() in _speed/ours.py takes for the held-out ones: it must split as scvae does"
        )
    return {
        "seconds": seconds,
        "epochs": model.outcome.epochs,
        "best_epoch": model.outcome.best_epoch,
        "log_likelihood": float(scvae.tl.log_likelihood(held_out, model, n_samples=n_samples).mean()),
        "curve": {
            "seconds": [round(value, 4) for value in model.history["seconds"]],
            "elbo": [round(value, 3) for value in model.history["validation_elbo"]],
        },
    }


def recipe(data: str, batch_size: int, seed: int, device: str, epochs: int | None = None) -> Answer:
    """Seconds and held-out ELBO of the default fit with another batch size and its learning rate."""
    adata = anndata.read_h5ad(data)
    training = scvae.TrainingConfig(batch_size=batch_size, epochs=epochs)
    start = time.perf_counter()
    model = scvae.fit(adata, rng=seed, device=device, verbose=False, training=training)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "epochs": model.outcome.epochs, "elbo": model.outcome.held_out_elbo}


def start_up() -> Answer:
    """Seconds of the import, and of a fit of one step with 128 cells after the import."""
    adata = anndata.AnnData(worker.draw_counts(128, 2_000, 0.1, np.random.default_rng(0)))
    config = scvae.TrainingConfig(epochs=1, batch_size=128, validation_fraction=0.0)
    start = time.perf_counter()
    scvae.fit(adata, rng=0, device="cpu", verbose=False, training=config)
    return {"import_seconds": IMPORT_SECONDS, "fit_seconds": time.perf_counter() - start}


def memory(cells: int, genes: int, share: float, batch_size: int | None = None) -> Answer:
    """Peak memory of a fit of one epoch; if a batch size is given, of a fit that trains on all cells."""
    training = scvae.TrainingConfig(epochs=1)
    if batch_size is not None:
        training = scvae.TrainingConfig(epochs=1, batch_size=batch_size, validation_fraction=0.0)

    def fit_once(x: sparse.csr_matrix) -> int:
        model = scvae.fit(anndata.AnnData(x), rng=0, device="cpu", verbose=False, training=training)
        return sum(p.numel() * p.element_size() for p in model.network.parameters())

    return worker.peak_memory(fit_once, n_cells=cells, n_genes=genes, share=share)


def embed(data: str, least_seconds: float, device: str) -> Answer:
    """Cells per second of `tl.embed`, including reading and checking the cells."""
    adata = anndata.read_h5ad(data)
    one = scvae.TrainingConfig(epochs=1, validation_fraction=0.0)
    model = scvae.fit(adata, n_latent=N_LATENT, network=ARCHITECTURE, training=one, rng=0, device=device, verbose=False)
    seconds = worker.seconds_per_call(lambda: scvae.tl.embed(adata, model), least_seconds)
    return {"seconds": seconds, "cells_per_second": adata.n_obs / seconds}


def mapped(cells: int, genes: int, least_seconds: float, device: str) -> Answer:
    """Seconds of mapping simulated cells of a new batch, and of embedding them and as many cells of the fit."""
    adata = scvae.datasets.simulate(n_cells=2 * cells, n_genes=genes, n_batches=2, mean_library=genes / 4, truth=False)
    is_new = (adata.obs["batch"] == "batch_1").to_numpy()
    known, query = adata[~is_new].copy(), adata[is_new].copy()
    one = scvae.TrainingConfig(epochs=1)
    model = scvae.fit(known, batch_key="batch", training=one, rng=0, device=device, verbose=False)
    start = time.perf_counter()
    both = scvae.tl.map_query(query, model, verbose=False)
    answer: Answer = {"map_seconds": time.perf_counter() - start}
    for name, some in (("known_seconds", known), ("mapped_seconds", query)):
        answer[name] = worker.seconds_per_call(lambda some=some: scvae.tl.embed(some, both), least_seconds)
    return answer | {"mapped/known": answer["mapped_seconds"] / answer["known_seconds"]}


def _plain(x: sparse.csr_matrix) -> anndata.AnnData:
    """Counts with names only, so that no column of the source can change what either package does."""
    adata = anndata.AnnData(x)
    adata.obs_names = [f"cell_{i}" for i in range(adata.n_obs)]
    adata.var_names = [f"gene_{g}" for g in range(adata.n_vars)]
    return adata


def _shape(x: sparse.csr_matrix) -> Answer:
    return {"cells": x.shape[0], "genes": x.shape[1], "non_zeros": x.nnz / (x.shape[0] * x.shape[1])}


def _bundled() -> sparse.csr_matrix:
    """The bundled set with its 2,000 highly variable genes."""
    return _highly_variable(scvae.datasets.pbmc3k()).X


def _highly_variable(adata: anndata.AnnData) -> anndata.AnnData:
    """The counts of the 2,000 highly variable genes, or of all genes if there are not more."""
    import scanpy as sc

    sc.pp.filter_genes(adata, min_cells=3)
    if adata.n_vars > HIGHLY_VARIABLE:
        sc.pp.highly_variable_genes(adata, n_top_genes=HIGHLY_VARIABLE, flavor="seurat_v3", subset=True)
    return adata


if __name__ == "__main__":
    preparations = (versions, simulate, prepare, prepare_batches, warm)
    tasks = (*preparations, training, fit, quality, recipe, start_up, memory, embed, mapped)
    worker.serve({task.__name__: task for task in tasks})
