"""Run by torchrun in two processes: goes through all that ends well, or with an error that all can survive.

Writes what each process found to <folder>/<rank>.pt.
"""

import os
import signal
import sys
import warnings
from pathlib import Path
from unittest.mock import patch

import anndata
import numpy as np
import torch
from scenarios import CASES, FITS, data, fit, fitted, gradients_of, record_of

import scvae
from scvae import NetworkConfig
from scvae.common.distributed import RankError, process_group, ranks
from scvae.data.feeds import Feed

FOLDER = Path(sys.argv[1])
RANK = int(os.environ["RANK"])


def refusal(call, *args, **options):
    """Kind and text of the error of a call."""
    try:
        call(*args, **options)
    except (ValueError, OSError, RankError, FloatingPointError) as error:
        return type(error).__name__, str(error)
    return "none", ""


def in_rank(rank, name, replacement):
    """Replaces something in one process."""
    return patch(name, replacement) if rank == RANK else warnings.catch_warnings()


class Recording(Feed):
    """A feed that keeps the positions it was asked for."""

    def __init__(self, feed):
        self.feed, self.asked, self.shuffle = feed, [], feed.shuffle

    def batches(self, plan):
        self.asked.append([part.tolist() for part in plan])
        yield from self.feed.batches(plan)


def positions_of_a_fit(n_cells, batch_size, path=None):
    """For each pass over a feed: the positions that this process read in each batch."""
    feeds, original = [], scvae.training.train.make_feed

    def made(*args, **options):
        feeds.append(Recording(original(*args, **options)))
        return feeds[-1]

    plans, plan_of = [], scvae.training.train.epoch_plan

    def planned(*args, **options):
        plans.append(plan_of(*args, **options))
        return plans[-1]

    training = scvae.TrainingConfig(epochs=2, batch_size=batch_size, validation_fraction=0.0, memory=0.0)
    with patch("scvae.training.train.make_feed", made), patch("scvae.training.train.epoch_plan", planned):
        fit(data(n_cells) if path is None else path, training=training)
    passes = [asked for asked in feeds[0].asked if asked]
    return {"read": passes, "planned": [[part.tolist() for part in plan] for plan in plans]}


def on_disk():
    """More cells than fit into the window that each process reads."""
    path = FOLDER / "cells.h5ad"
    positions = positions_of_a_fit(700, 64, path)
    embedding = anndata.read_h5ad(path).obsm["X_scvae"]
    return positions | {"embedding": embedding}


def other_data():
    adata = data()
    if RANK == 1:
        adata.X.data[11] += 1
    return adata


def broken_data():
    adata = data()
    if RANK == 1:
        adata.X = adata.X.astype(np.float32)
        adata.X.data[3] = np.nan
    return adata


def not_finite_once():
    original, calls = scvae.training.step.loss, []

    def loss(*args, **options):
        calls.append(1)
        return original(*args, **options) * (float("nan") if len(calls) == 3 else 1.0)

    with in_rank(1, "scvae.training.step.loss", loss):
        adata = data()
        return record_of(fit(adata), adata)


def never_finite():
    original = scvae.training.step.loss
    with in_rank(1, "scvae.training.step.loss", lambda *args, **options: original(*args, **options) * float("nan")):
        return refusal(fit, data())


def stopped_by_hand():
    """Ctrl-C in rank 1 while epoch 3 is planned."""
    original = scvae.training.train.epoch_plan

    def planned(*args, **options):
        if options["epoch"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return original(*args, **options)

    with in_rank(1, "scvae.training.train.epoch_plan", planned), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        adata = data()
        record = record_of(fit(adata), adata)
    return record | {"warnings": [str(warning.message) for warning in said]}


def full_disk():
    def save(*_):
        raise OSError(28, "No space left on device")

    with in_rank(0, "scvae.training.train.save_checkpoint", save):
        return refusal(fit, data(), checkpoint=FOLDER / "full")


def of_another_run():
    fit(data(), checkpoint=FOLDER / "run")
    return refusal(fit, data(), checkpoint=FOLDER / "run", beta=2.0)


def dropped_out():
    adata = data()
    return record_of(fit(adata, network=NetworkConfig(width=16, dropout=0.2, input_dropout=0.1)), adata)


def continued():
    """A fit that one process began and was stopped in."""
    adata = data()
    return record_of(fit(adata, checkpoint=FOLDER / "begun"), adata)


def without_a_seed():
    adata = data()
    return record_of(fit(adata, rng=None), adata)


def main():
    results = {}
    with process_group():
        results["gradients"] = {case: gradients_of(case) for case in CASES}
        results["ranks"] = (ranks().rank, ranks().world)
    parts = {
        "fits": lambda: {case: fitted(case) for case in FITS},
        "positions": lambda: {sizes: positions_of_a_fit(*sizes) for sizes in ((41, 8), (7, 8), (9, 1))},
        "on disk": on_disk,
        "other data": lambda: refusal(fit, other_data()),
        "other seed": lambda: refusal(fit, data(), rng=3 + RANK),
        "broken data": lambda: refusal(fit, broken_data()),
        "not finite once": not_finite_once,
        "never finite": never_finite,
        "stopped by hand": stopped_by_hand,
        "full disk": full_disk,
        "of another run": of_another_run,
        "continued": continued,
        "dropout": dropped_out,
        "without a seed": without_a_seed,
    }
    for name, part in parts.items():
        sys.stdout.write(f"rank {RANK}: {name}\n")  # where it stopped, if it does
        sys.stdout.flush()
        results[name] = part()
    results["group is left"] = not torch.distributed.is_initialized()
    torch.save(results, FOLDER / f"{RANK}.pt")


if __name__ == "__main__":
    warnings.simplefilter("error")
    main()
