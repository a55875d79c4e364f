"""scvi-tools' SCVI on the same backed file: `python -m _streaming.peer SETTINGS`; imports nothing from scvae."""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings

warnings.filterwarnings("ignore")

import anndata  # noqa: E402
import numpy as np  # noqa: E402
import scvi  # noqa: E402
import torch  # noqa: E402
from lightning.pytorch.callbacks import Callback  # noqa: E402

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
WARM_UP = 3  # batches


class Clock(Callback):  # type: ignore[misc]
    """The time at which each batch ended."""

    def __init__(self) -> None:
        self.done: list[float] = []

    def on_train_batch_end(self, *_: object) -> None:
        self.done.append(time.perf_counter())


def measure(path: str, n_genes: int | None, n_batches: int, batch_size: int) -> dict[str, object]:
    """Cells per second of training on batches of random cells, from a file in backed mode."""
    torch.set_num_threads(int(torch.get_num_threads()))
    adata = anndata.read_h5ad(path, backed="r")
    if n_genes is not None:  # SCVI cannot train on a view of a backed file, so its cells are read into memory
        raise SystemExit("SCVI takes no selection of genes from a backed file")
    scvi.settings.seed = 0
    scvi.model.SCVI.setup_anndata(adata)
    model, clock = scvi.model.SCVI(adata), Clock()
    model.train(
        max_epochs=1,
        accelerator="cpu",
        batch_size=batch_size,
        train_size=1.0,
        limit_train_batches=n_batches,
        callbacks=[clock],
        enable_progress_bar=False,
        logger=False,
        enable_model_summary=False,
    )
    seconds = np.diff(clock.done[WARM_UP:])
    return {"cells_per_second": batch_size / float(seconds.mean()), "batches": len(seconds)}


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
