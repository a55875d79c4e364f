"""Data to try things on: real counts that come with the package, and cells drawn from the model itself."""

from ._pbmc3k import pbmc3k
from ._simulate import simulate

__all__ = ["pbmc3k", "simulate"]
