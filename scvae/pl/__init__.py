"""Plots: each reads what a tool or a fit has written into an AnnData."""

from ._rate_distortion import rate_distortion

__all__ = ["rate_distortion"]
