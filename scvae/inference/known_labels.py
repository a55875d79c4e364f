"""What a model keeps of the labels of its fit: where labelled cells lie, and how its classifier did on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

PREFIX = "labels."  # of the names of its tensors in a file
ARRAYS = ("place", "label", "held_out", "held_out_place", "truth")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class KnownLabels:
    """Labelled cells of a fit: places and numbers, but no data.

    Parameters
    ----------
    temperature
        The logits of the classifier are divided by it.
    uniform
        Share of the labels held out of the training that are taken to be random.
    place
        float32 posterior means, in the network's coordinates, of labelled cells of the training.
    label
        int64 labels of these cells: of a coarser name, the most probable label under it.
    held_out
        float32 logits of labelled cells that were held out of the training.
    held_out_place
        Their posterior means, as `place`.
    truth
        int64 codes of the labels they were given, as `data.labels.Labels.codes` returns them.
    """

    temperature: float
    uniform: float
    place: Float[np.ndarray, "cells latent"]
    label: Int[np.ndarray, " cells"]
    held_out: Float[np.ndarray, "judged labels"]
    held_out_place: Float[np.ndarray, "judged latent"]
    truth: Int[np.ndarray, " judged"]

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file holds; the numbers are in `to_json`."""
        return {PREFIX + name: torch.from_numpy(np.ascontiguousarray(getattr(self, name))) for name in ARRAYS}

    def to_json(self) -> dict[str, Any]:
        """The numbers of the record."""
        return {"temperature": self.temperature, "uniform": self.uniform}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor], record: dict[str, Any] | None) -> KnownLabels | None:
        """The record in a file, whose tensors are removed from `tensors`; None if it has none."""
        if record is None:
            return None
        arrays: dict[str, Any] = {name: tensors.pop(PREFIX + name).numpy() for name in ARRAYS}
        return cls(**record, **arrays)
