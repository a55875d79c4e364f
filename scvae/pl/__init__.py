"""Plots: each reads what a tool or a fit has written into an AnnData."""

from ._beta_explorer import beta_explorer
from ._rate_distortion import rate_distortion

__all__ = ["beta_explorer", "rate_distortion"]
