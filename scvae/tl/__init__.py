"""Tools: each takes `adata` and a fitted model."""

from ._denoise import denoise
from ._diagnose import diagnose
from ._embed import embed
from ._log_likelihood import log_likelihood
from ._neighbors import neighbors
from ._prune import prune

__all__ = ["denoise", "diagnose", "embed", "log_likelihood", "neighbors", "prune"]
