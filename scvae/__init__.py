"""Variational autoencoders for single-cell counts: `scvae.fit(adata)`, then scanpy."""

from __future__ import annotations

from ._version import __version__
from ._version import refuse_namesake as _refuse_namesake

_refuse_namesake()

from . import datasets, pl, tl
from .common.checks import MissingKeyError
from .common.distributed import RankError
from .config import NetworkConfig, TrainingConfig, View
from .diagnostics.diagnosis import Diagnosis
from .diagnostics.findings.finding import Finding
from .inference.fitted import FittedModel
from .inference.load import load
from .inference.outcome import Outcome
from .inference.reference import Reference
from .tl._tune_beta import BetaPath, tune_beta
from .training.fit import NotWrittenError, fit
from .training.step import NonFiniteLossError

__all__ = [
    "BetaPath",
    "Diagnosis",
    "Finding",
    "FittedModel",
    "MissingKeyError",
    "NetworkConfig",
    "NonFiniteLossError",
    "NotWrittenError",
    "Outcome",
    "RankError",
    "Reference",
    "TrainingConfig",
    "View",
    "__version__",
    "datasets",
    "fit",
    "load",
    "pl",
    "tl",
    "tune_beta",
]
