"""One fit in its own process: `python -m _streaming.ours SETTINGS`; prints its measurements as JSON."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import anndata
import numpy as np
import torch

import scvae
from scvae import train as loop

warnings.simplefilter("ignore")


def megabytes(name: str) -> float:
    """Memory of this process; getrusage also counts that of the process that started it."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def opened(path: str) -> anndata.AnnData:
    """The file as an AnnData whose values stay on disk."""
    if path.endswith(".h5ad"):
        return anndata.read_h5ad(path, backed="r")
    import zarr
    from anndata.io import read_elem, sparse_dataset

    root = zarr.open_group(path, mode="r")
    return anndata.AnnData(sparse_dataset(root["X"]), read_elem(root["obs"]), read_elem(root["var"]))


def measure(path: str, n_genes: int | None, epochs: int | None, memory: float | None, seed: int) -> dict[str, object]:
    """Cells per second over all epochs but the first, peak memory without imports, and the held-out ELBO.

    Processor seconds are counted as well: they measure the work of an epoch, in all threads, even if other programs run
    on the machine.

    Parameters
    ----------
    n_genes
        Number of genes to model, those with the most counts; None for all.
    memory
        `TrainingConfig.memory`; None to read the whole file into memory first.
    """
    scvae.fit(scvae.datasets.simulate(n_cells=100, n_genes=20, rng=0), verbose=False, rng=0)  # imports, compilation
    imports = megabytes("VmRSS")
    adata = anndata.read_h5ad(path) if memory is None else opened(path)
    mask = np.arange(adata.n_vars) < (n_genes or adata.n_vars)  # genes are sorted by their counts
    training = scvae.TrainingConfig(epochs=epochs, patience=None, **({} if memory is None else {"memory": memory}))
    marks: list[float] = []
    original = loop.record

    def record(*arguments: object) -> None:
        marks.append(time.process_time())
        original(*arguments)

    loop.record = record
    model = scvae.fit(adata, mask_var=mask, training=training, rng=seed, verbose=False)
    seconds = model.history["seconds"].to_numpy()
    trained = adata.n_obs - min(round(0.1 * adata.n_obs), 20_000)
    return {
        "cells_per_second": trained / float(np.median(np.diff(seconds))),
        "cells_per_cpu_second": trained / float(np.median(np.diff(marks))),
        "seconds": float(seconds[-1]),
        "epochs": len(seconds),
        "peak_mb": megabytes("VmHWM") - imports,
        "held_out_elbo": model.outcome.held_out_elbo,
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
