"""The state of a training run, and the file it can be resumed from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ..common.distributed import ranks
from ..common.files import as_path, read_tensors, write_tensors
from ..config import NetworkConfig, TrainingConfig, to_json
from ..data.batches import chunks
from ..data.cells import Cells
from ..data.stored_rows import StoredRows
from ..model.optimizer import Adam
from ..model.vae import VAE
from .settings import Settings

CHECKPOINT = "scvae checkpoint"
COUNTERS = ("epoch", "history", "best_objective", "best_epoch", "skipped_steps", "failures_in_a_row", "seconds")
LOOKED_AT = 512  # cells read at a time for the digest; for cells on disk, the total number

Identity = Mapping[str, Any]
Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass(eq=False, slots=True)
class Progress:
    """Everything that changes during training, besides the network and the optimizer.

    Parameters
    ----------
    epoch
        Number of completed epochs.
    history
        One list per column of the history, one entry per epoch.
    best_objective, best_epoch, best_weights
        Those of the epoch to keep: the latest until β is reached, then the one with the best validation objective.
    skipped_steps, failures_in_a_row
        Number of steps whose loss or gradient was not finite: in total, and the latest ones in a row.
    seconds
        Wall-clock seconds so far.
    ended
        Why training ended.
    """

    epoch: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    best_objective: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    skipped_steps: int = 0
    failures_in_a_row: int = 0
    seconds: float = 0.0
    ended: Ending = "finished"

    def record(self, row: Mapping[str, float]) -> None:
        """Appends one epoch to the history."""
        for name, value in row.items():
            self.history.setdefault(name, []).append(value)

    def keep_weights(self, network: VAE, objective: float, *, ranked: bool) -> None:
        """Keeps the latest weights or, once epochs are `ranked` (β was reached), those with the best objective."""
        if ranked and not (math.isnan(objective) and self.best_objective == -math.inf):
            if not objective > self.best_objective:  # also if it is NaN
                return
            self.best_objective = objective
        self.best_epoch = self.epoch
        for name, tensor in network.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(tensor)
            else:
                self.best_weights[name] = tensor.detach().clone()

    def give_weights(self, network: VAE) -> None:
        """Copies the kept weights to the network; several processes all take those of rank 0."""
        network.load_state_dict(self.best_weights or network.state_dict())
        ranks().take_from_first(list(network.state_dict().values()))
        self.seconds, self.history = ranks().first(lambda: (self.seconds, self.history))


def identity_of(network: VAE, cells: Cells, settings: Settings, start: str | None, *, with_data: bool) -> Identity:
    """What must agree between a checkpoint and the run that resumes it, and between several processes.

    Parameters
    ----------
    start
        Identifies the initial weights if they do not follow from the seed.
    with_data
        Whether to include a digest of the cells, which takes one pass over them.
    """
    beta = list(settings.beta) if isinstance(settings.beta, tuple) else settings.beta  # as read from JSON
    identity = {
        "likelihood": settings.likelihood,
        "n_latent": network.n_latent,
        "beta": beta,
        "seed": settings.seed,
        "network": to_json(settings.network_config),
        "training": to_json(settings.training_config),
        "data": _content(settings, cells) if with_data or ranks().world > 1 else None,
    }
    if start is not None:
        identity["start"] = start
    ranks().agree({name: json.dumps(value) for name, value in identity.items()})
    return identity


def save_checkpoint(
    path: str | os.PathLike[str], progress: Progress, network: VAE, optimizer: Adam, identity: Identity
) -> None:
    """Writes everything `resume` needs to continue exactly where this epoch ended; only rank 0 writes."""
    with ranks().all_or_none():
        if ranks().is_first:
            tensors = {f"model/{name}": t for name, t in network.state_dict().items()}
            tensors |= {f"best/{name}": t for name, t in progress.best_weights.items()}
            tensors |= {f"optimizer/{name}": t for name, t in optimizer.state().items()}
            counters = {name: getattr(progress, name) for name in COUNTERS}
            write_tensors(path, tensors, CHECKPOINT, {"identity": dict(identity), "progress": counters})


def resume(path: str | os.PathLike[str] | None, network: VAE, optimizer: Adam, identity: Identity) -> Progress:
    """Loads weights and optimizer state from the file and returns the run's progress; new progress without a file.

    If there are several processes, only rank 0 reads the file; the others do not need it.

    Raises
    ------
    ValueError
        If the checkpoint was written by another run.
    """
    progress = Progress()
    if path is None or not ranks().first(as_path(path).exists):
        return progress
    tensors, saved = ranks().first(lambda: _read(path, identity))
    for name, value in saved["progress"].items():
        setattr(progress, name, value)
    network.load_state_dict(_under("model", tensors))
    progress.best_weights = _under("best", tensors)
    optimizer.load(_under("optimizer", tensors))
    return progress


def _read(path: str | os.PathLike[str], identity: Identity) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a checkpoint, which must belong to this run."""
    tensors, saved = read_tensors(path, CHECKPOINT)
    earlier = dict(saved["identity"])
    for name, config in (("network", NetworkConfig), ("training", TrainingConfig)):
        if name in earlier:  # settings that did not exist yet have their defaults
            earlier[name] = to_json(config()) | earlier[name]
    differing = sorted(name for name in identity if earlier.get(name) != identity[name])
    if differing:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {', '.join(differing)} differ. "
            "Delete it to start again, or pass another path."
        )
    return tensors, saved


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def _content(settings: Settings, cells: Cells) -> str:
    """A digest of the training data, so that a checkpoint is not resumed with other data."""
    digest = hashlib.blake2b(json.dumps(settings.schema.to_json()).encode(), digest_size=16)
    labels = () if cells.labels is None else (cells.labels,)
    for array in (cells.library, cells.codes, cells.numeric, *labels, np.array(cells.names.astype(str), dtype=str)):
        digest.update(np.ascontiguousarray(array).tobytes())

    def add(tensor: Tensor) -> Tensor:
        digest.update(tensor.numpy().tobytes())
        return tensor

    for part in _looked_at(cells):
        cells.rows.take(part).map(add)
    for view in cells.views:
        digest.update(view.present.tobytes())
        for part in chunks(len(cells), LOOKED_AT):
            view.rows.take(part).map(add)
    return digest.hexdigest()


def _looked_at(cells: Cells) -> list[Int[np.ndarray, " cells"]]:
    """All cells in chunks. For cells on disk, only some: their sums are known, and reading all takes a whole epoch."""
    if not isinstance(cells.rows, StoredRows):
        return chunks(len(cells), LOOKED_AT)
    return [np.unique(np.linspace(0, len(cells) - 1, LOOKED_AT).astype(np.int64))]
