"""The state of a training run, and the file it can be resumed from."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..common.distributed import ALONE, Ranks
from ..common.files import read_tensors, write_tensors
from ..model.optimizer import Adam
from ..model.vae import VAE

CHECKPOINT = "scvae checkpoint"
COUNTERS = ("epoch", "history", "best_objective", "best_epoch", "skipped_steps", "failures_in_a_row", "seconds")


@dataclass(eq=False, slots=True)
class Progress:
    """Everything that changes while training runs, besides the model and the optimizer.

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
    """

    epoch: int = 0
    history: dict[str, list[float]] = field(default_factory=dict)
    best_objective: float = -math.inf
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    skipped_steps: int = 0
    failures_in_a_row: int = 0
    seconds: float = 0.0


def save_checkpoint(
    path: str | os.PathLike[str],
    progress: Progress,
    model: VAE,
    optimizer: Adam,
    identity: dict[str, Any],
) -> None:
    """Writes all that `resume` needs to go on exactly where this epoch ended."""
    tensors = {f"model/{name}": t for name, t in model.state_dict().items()}
    tensors |= {f"best/{name}": t for name, t in progress.best_weights.items()}
    tensors |= {f"optimizer/{name}": t for name, t in optimizer.state().items()}
    counters = {name: getattr(progress, name) for name in COUNTERS}
    write_tensors(path, tensors, CHECKPOINT, {"identity": identity, "progress": counters})


def resume(
    path: str | os.PathLike[str],
    progress: Progress,
    model: VAE,
    optimizer: Adam,
    identity: dict[str, Any],
    ranks: Ranks = ALONE,
) -> None:
    """Puts progress, weights and optimizer back to where `save_checkpoint` found them.

    Of several processes the first reads the file, which the others need not have.
    """
    tensors, saved = ranks.first(lambda: _read(path, identity))
    for name, value in saved["progress"].items():
        setattr(progress, name, value)
    model.load_state_dict(_under("model", tensors))
    progress.best_weights = _under("best", tensors)
    optimizer.load(_under("optimizer", tensors))


def _read(path: str | os.PathLike[str], identity: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
