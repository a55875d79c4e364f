"""Example data: bundled counts, and cells simulated from a random model."""

from ._blood import pbmc3k, pbmc_citeseq
from ._simulate import simulate

__all__ = ["pbmc3k", "pbmc_citeseq", "simulate"]
