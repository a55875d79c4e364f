"""SCVI's results for denoise.py, donors.py, generate.py and trajectory.py; needs an interpreter with scvi-tools.

Usage: python _scvi_peer.py TASK TRAIN.h5ad QUERY.h5ad OUT.npz [--seed 0]

Each task fits SCVI (nb, defaults otherwise; obs["batch"] is the batch if it exists) on TRAIN.

expression: writes the expected proportions of the cells of QUERY, averaged over 25 posterior draws.
sample: writes one posterior predictive draw of their counts.
latent: writes their latent means.
differences: writes, for each column "split_*" of QUERY.obs (whether a cell of TRAIN is on the second side), the false
discovery rate of each gene: the mean probability of no change of all genes that are at least as probable to change.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
import warnings

import anndata as ad
import numpy as np
import scipy.sparse as sp

warnings.filterwarnings("ignore")

DRAWS = 25


def rates(model, train: ad.AnnData, side: np.ndarray) -> np.ndarray:
    found = model.differential_expression(train, idx1=side, idx2=~side, mode="change", silent=True)
    unchanged = 1.0 - found["proba_de"].loc[train.var_names].to_numpy()
    order = np.argsort(unchanged, kind="stable")
    rate = np.empty(len(order))
    rate[order] = np.cumsum(unchanged[order]) / np.arange(1, len(order) + 1)
    return rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["expression", "sample", "latent", "differences"])
    parser.add_argument("train")
    parser.add_argument("query")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    import scvi
    import torch

    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi.settings.seed = arguments.seed
    scvi.settings.verbosity = logging.ERROR
    train, query = ad.read_h5ad(arguments.train), ad.read_h5ad(arguments.query)
    for adata in (train, query):
        adata.X = sp.csr_matrix(adata.X).astype(np.float32)
    scvi.model.SCVI.setup_anndata(train, batch_key="batch" if "batch" in train.obs else None)
    model = scvi.model.SCVI(train, gene_likelihood="nb")
    started = time.perf_counter()
    model.train(accelerator="cpu", enable_progress_bar=False, logger=False, enable_checkpointing=False)
    seconds = time.perf_counter() - started
    if arguments.task == "expression":
        values = model.get_normalized_expression(query, n_samples=DRAWS, return_mean=True, return_numpy=True)
    elif arguments.task == "sample":
        values = model.posterior_predictive_sample(query, n_samples=1).todense()
    elif arguments.task == "differences":
        splits = [key for key in query.obs if key.startswith("split_")]
        values = np.stack([rates(model, train, query.obs[key].to_numpy(bool)) for key in splits])
    else:
        values = model.get_latent_representation(query)
    values = np.asarray(values, dtype=np.float32).reshape(len(values), -1)
    np.savez_compressed(arguments.out, values=values, seconds=seconds)


if __name__ == "__main__":
    main()
