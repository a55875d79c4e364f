"""Measurements of scvi-tools' SCVI (nb), each in its own process: `python -m _speed.peer TASK SETTINGS`.

Runs in the interpreter that has scvi-tools and imports nothing from scvae.
"""

from __future__ import annotations

import logging
import time
import warnings
from typing import Any

warnings.filterwarnings("ignore")

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402
from scipy import sparse  # noqa: E402
from scvi.model._utils import get_max_epochs_heuristic  # noqa: E402

from . import worker  # noqa: E402
from .worker import Answer  # noqa: E402

logging.getLogger("lightning").setLevel(logging.ERROR)
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
ACCELERATORS = {"cpu": "cpu", "cuda": "gpu"}


class Clock(Callback):  # type: ignore[misc]
    """Training seconds at the end of each epoch, without the time spent on validation."""

    def __init__(self) -> None:
        self.started = self.paused = self.validating_since = 0.0
        self.seconds: list[float] = []

    def on_train_start(self, *_: object) -> None:
        self.started = time.perf_counter()

    def on_validation_start(self, *_: object) -> None:
        self.validating_since = time.perf_counter()

    def on_validation_end(self, *_: object) -> None:
        self.paused += time.perf_counter() - self.validating_since

    def on_train_epoch_end(self, *_: object) -> None:
        self.seconds.append(time.perf_counter() - self.started - self.paused)


def versions(device: str) -> Answer:
    """Versions of scvi-tools and its dependencies."""
    return worker.versions(device, ("torch", "scvi-tools", "lightning", "numpy"))


def training(data: str, batch_size: int | None, least_seconds: float, device: str) -> Answer:
    """Seconds of a training epoch, without validation cells; a batch size of None is the default."""
    adata = anndata.read_h5ad(data)
    sizes = {} if batch_size is None else {"batch_size": batch_size}
    scvi.model.SCVI.setup_anndata(adata)

    def run(epochs: int) -> float:
        model = _model(adata, n_hidden=128, n_layers=1, n_latent=10)
        start = time.perf_counter()
        _train(model, device, max_epochs=epochs, train_size=1.0, **sizes)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    answer = worker.seconds_per_epoch(run, least_seconds)
    return answer | {"cells_per_second": adata.n_obs / answer["epoch_seconds"]}


def fit(data: str, device: str, early_stopping: bool, epochs: int | None = None) -> Answer:
    """Seconds from registration to the end of training, with or without early stopping; `epochs` is for a trial run."""
    adata = anndata.read_h5ad(data)
    scvi.settings.seed = 0
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata)
    model = _model(adata)
    _train(model, device, max_epochs=epochs, early_stopping=early_stopping)
    return {"seconds": time.perf_counter() - start, "epochs": len(model.history["elbo_train"])}


def projected_fit(data: str, device: str, batch_key: str, epochs: int) -> Answer:
    """Seconds of the default fit: those up to the end of the first epoch, and those of an epoch for each other one.

    Parameters
    ----------
    epochs
        Epochs after the first whose seconds are measured; the default fit has `default_epochs`.
    """
    adata = anndata.read_h5ad(data)

    def run(epochs: int) -> float:
        scvi.settings.seed = 0
        start = time.perf_counter()
        scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
        _train(_model(adata), device, max_epochs=epochs)
        return time.perf_counter() - start

    first = run(1)  # with everything that is done once in a process
    epoch = (run(1 + epochs) - run(1)) / epochs
    default = int(get_max_epochs_heuristic(adata.n_obs))
    answer = {"seconds": first + (default - 1) * epoch, "first_epoch_seconds": first, "epoch_seconds": epoch}
    return answer | {"epochs": epochs, "default_epochs": default}


def quality(data: str, seed: int, n_samples: int, device: str, epochs: int | None = None) -> Answer:
    """SCVI with its defaults on the same cells as scvae: its curve, and the log-likelihood of the held-out cells.

    `seconds` is the time of the whole call without the validation after each epoch, which is not a default of SCVI.
    """
    adata = anndata.read_h5ad(data)
    aside = adata.obs[f"held_out_{seed}"].to_numpy()
    indices = [np.flatnonzero(~aside), np.flatnonzero(aside)]
    scvi.settings.seed = seed
    clock = Clock()
    start = time.perf_counter()
    scvi.model.SCVI.setup_anndata(adata)
    model = _model(adata)
    _train(
        model,
        device,
        max_epochs=epochs,
        datasplitter_kwargs={"external_indexing": indices},
        check_val_every_n_epoch=1,
        callbacks=[clock],
    )
    seconds = time.perf_counter() - start - clock.paused
    # averaged over cells: SCVI's own value averages minibatch means, which gives a short last batch too much weight
    bound = model.get_marginal_ll(indices=indices[1], n_mc_samples=n_samples, return_mean=False)
    elbo = -model.history["elbo_validation"]["elbo_validation"].to_numpy(dtype=float)
    return {
        "seconds": seconds,
        "validation_seconds": clock.paused,
        "epochs": len(elbo),
        "log_likelihood": float(bound.numpy().mean()),
        "curve": {
            "seconds": [round(value, 4) for value in clock.seconds],
            "elbo": [round(float(value), 3) for value in elbo],
        },
    }


def memory(cells: int, genes: int, share: float) -> Answer:
    """Peak memory of a fit of one epoch."""

    def fit_once(x: sparse.csr_matrix) -> int:
        adata = anndata.AnnData(x)
        scvi.model.SCVI.setup_anndata(adata)
        model = _model(adata)
        _train(model, "cpu", max_epochs=1)
        return sum(p.numel() * p.element_size() for p in model.module.parameters())

    return worker.peak_memory(fit_once, n_cells=cells, n_genes=genes, share=share)


def embed(data: str, least_seconds: float, device: str) -> Answer:
    """Cells per second of `get_latent_representation`."""
    adata = anndata.read_h5ad(data)
    scvi.model.SCVI.setup_anndata(adata)
    model = _model(adata, n_hidden=128, n_layers=1, n_latent=10)
    _train(model, device, max_epochs=1)
    seconds = worker.seconds_per_call(lambda: model.get_latent_representation(adata), least_seconds)
    return {"seconds": seconds, "cells_per_second": adata.n_obs / seconds}


def _model(adata: anndata.AnnData, **architecture: int) -> scvi.model.SCVI:
    return scvi.model.SCVI(adata, gene_likelihood="nb", **architecture)


def _train(model: scvi.model.SCVI, device: str, **settings: Any) -> None:
    model.train(accelerator=ACCELERATORS[device], devices=1, enable_progress_bar=False, **settings)


if __name__ == "__main__":
    tasks = (versions, training, fit, projected_fit, quality, memory, embed)
    worker.serve({task.__name__: task for task in tasks})
