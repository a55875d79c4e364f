"""Variational autoencoders for single-cell counts: `scvae.fit(adata)`, then scanpy."""

from __future__ import annotations

from ._version import __version__
from ._version import refuse_namesake as _refuse_namesake

_refuse_namesake()

from . import datasets, pl, tl
from .config import NetworkConfig, TrainingConfig
from .inference.fitted import FittedModel, load
from .tl._tune_beta import BetaPath, tune_beta
from .training.fit import fit
from .training.step import NonFiniteLossError

__all__ = [
    "BetaPath",
    "FittedModel",
    "NetworkConfig",
    "NonFiniteLossError",
    "TrainingConfig",
    "__version__",
    "datasets",
    "fit",
    "load",
    "pl",
    "tl",
    "tune_beta",
]
