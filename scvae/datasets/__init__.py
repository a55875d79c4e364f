"""Example data: bundled counts, and cells simulated from a random model."""

from ._pbmc3k import pbmc3k
from ._simulate import simulate

__all__ = ["pbmc3k", "simulate"]
