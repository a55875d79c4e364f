"""SCVI's surgery (scArches) on one held-out batch: python peer.py DATA.h5ad BATCH default|scarches SEED THREADS."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

from task import Task  # in the same folder

# settings of the reference in scvi-tools' scArches tutorial; the query is trained for 200 epochs without weight decay
SETTINGS = {
    "default": {},
    "scarches": {
        "use_layer_norm": "both",
        "use_batch_norm": "none",
        "encode_covariates": True,
        "dropout_rate": 0.2,
        "n_layers": 2,
    },
}


def main() -> None:
    warnings.simplefilter("ignore")
    import scvi
    import torch

    path, held_out, settings, seed, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    scvi.settings.seed = int(seed)
    task = Task.read(Path(path), held_out)
    quiet = {"enable_progress_bar": False, "accelerator": "cpu"}
    reference = task.reference.copy()
    scvi.model.SCVI.setup_anndata(reference, batch_key="batch")
    started = time.perf_counter()
    model = scvi.model.SCVI(reference, gene_likelihood="nb", **SETTINGS[settings])
    model.train(**quiet)
    fitted = time.perf_counter() - started
    latent = model.get_latent_representation(reference)
    row = task.row(method=f"scvi_{settings}", seed=int(seed), fit_seconds=fitted)
    for kind, cells in task.queries.items():
        query = cells.copy()
        started = time.perf_counter()
        scvi.model.SCVI.prepare_query_anndata(query, model)
        mapped = scvi.model.SCVI.load_query_data(query, model)
        mapped.train(max_epochs=200, plan_kwargs={"weight_decay": 0.0}, **quiet)
        row[f"{kind}_seconds"] = time.perf_counter() - started
        row[f"{kind}_accuracy"] = task.accuracy(latent, mapped.get_latent_representation(query))
    print(json.dumps(row))


if __name__ == "__main__":
    main()
