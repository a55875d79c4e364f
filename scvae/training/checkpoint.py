"""The state of a training run, and the file it can be resumed from."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Int
from torch import Tensor

from ..common.distributed import ranks
from ..common.files import read_tensors, write_tensors
from ..config import to_json
from ..data.batches import chunks
from ..data.intake import Cells
from ..data.stored_rows import StoredRows
from ..model.optimizer import Adam
from ..model.vae import VAE
from .settings import Settings

CHECKPOINT = "scvae checkpoint"
COUNTERS = ("epoch", "history", "best_objective", "best_epoch", "skipped_steps", "failures_in_a_row", "seconds")
LOOKED_AT = 512  # cells at once; of cells on disk, cells in all

Identity = Mapping[str, Any]
Ending = Literal["finished", "stopped early", "interrupted"]


@dataclass(eq=False, slots=True)
class Progress:
    """Everything that changes while training runs, besides the network and the optimizer.

    Parameters
    ----------
    epoch
        Epochs done.
    history
        One list per column of the history, an entry an epoch.
    best_objective, best_epoch, best_weights
        Of the epoch to keep: the latest until β is attained, from then on the one with the best validation objective.
    skipped_steps, failures_in_a_row
        Steps whose loss or gradient was not finite.
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
        """Keeps the latest weights; once epochs are `ranked` (β was attained), those with the best objective."""
        if ranked and not (math.isnan(objective) and self.best_objective == -math.inf):
            if not objective > self.best_objective:  # nor if it is not a number
                return
            self.best_objective = objective
        self.best_epoch = self.epoch
        for name, tensor in network.state_dict().items():
            if name in self.best_weights:
                self.best_weights[name].copy_(tensor)
            else:
                self.best_weights[name] = tensor.detach().clone()

    def give_weights(self, network: VAE) -> None:
        """Puts the weights that were kept into the network; where there are several processes, those of the first."""
        network.load_state_dict(self.best_weights or network.state_dict())
        ranks().take_from_first(list(network.state_dict().values()))
        self.seconds, self.history = ranks().first(lambda: (self.seconds, self.history))


def identity_of(network: VAE, cells: Cells, settings: Settings, start: str | None, *, with_data: bool) -> Identity:
    """What a checkpoint and its run must have in common, and several processes with each other.

    Parameters
    ----------
    start
        Tells weights to start from that do not follow from the seed.
    with_data
        Whether to look at the cells, which takes a pass over them.
    """
    beta = list(settings.beta) if isinstance(settings.beta, tuple) else settings.beta  # as JSON gives it back
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
    """Writes all that `resume` needs to go on exactly where this epoch ended; of several processes the first does."""
    with ranks().all_or_none():
        if ranks().is_first:
            tensors = {f"model/{name}": t for name, t in network.state_dict().items()}
            tensors |= {f"best/{name}": t for name, t in progress.best_weights.items()}
            tensors |= {f"optimizer/{name}": t for name, t in optimizer.state().items()}
            counters = {name: getattr(progress, name) for name in COUNTERS}
            write_tensors(path, tensors, CHECKPOINT, {"identity": dict(identity), "progress": counters})


def resume(path: str | os.PathLike[str] | None, network: VAE, optimizer: Adam, identity: Identity) -> Progress:
    """The progress of the run whose file this is, with its weights and optimizer; a new one where there is no file.

    Of several processes the first reads the file, which the others need not have.

    Raises
    ------
    ValueError
        If the checkpoint belongs to another run.
    """
    progress = Progress()
    if path is None or not ranks().first(Path(path).exists):
        return progress
    tensors, saved = ranks().first(lambda: _read(path, identity))
    for name, value in saved["progress"].items():
        setattr(progress, name, value)
    network.load_state_dict(_under("model", tensors))
    progress.best_weights = _under("best", tensors)
    optimizer.load(_under("optimizer", tensors))
    return progress


def _read(path: str | os.PathLike[str], identity: Identity) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and the record of the checkpoint of this very run."""
    tensors, saved = read_tensors(path, CHECKPOINT)
    differing = sorted(name for name in identity if saved["identity"].get(name) != identity[name])
    if differing:
        raise ValueError(
            f"checkpoint {path} belongs to another run: {', '.join(differing)} differ. "
            "Delete it to start again, or pass another path."
        )
    return tensors, saved


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(f"{prefix}/"): t for name, t in tensors.items() if name.startswith(f"{prefix}/")}


def _content(settings: Settings, cells: Cells) -> str:
    """A digest of every value a model is trained on, so that a checkpoint is not resumed with other data."""
    digest = hashlib.blake2b(json.dumps(settings.schema.to_json()).encode(), digest_size=16)
    for array in (cells.library, cells.codes, cells.numeric, np.array(cells.names.astype(str), dtype=str)):
        digest.update(np.ascontiguousarray(array).tobytes())

    def add(tensor: Tensor) -> Tensor:
        digest.update(tensor.numpy().tobytes())
        return tensor

    for part in _looked_at(cells):
        cells.rows.take(part).map(add)
    return digest.hexdigest()


def _looked_at(cells: Cells) -> list[Int[np.ndarray, " cells"]]:
    """All cells in pieces; of cells on disk, whose sums are known, only some: to read all takes as long as an epoch."""
    if not isinstance(cells.rows, StoredRows):
        return chunks(len(cells), LOOKED_AT)
    return [np.unique(np.linspace(0, len(cells) - 1, LOOKED_AT).astype(np.int64))]
