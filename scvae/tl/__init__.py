"""Tools: each takes `adata` and a fitted model."""

from ._denoise import denoise
from ._diagnose import diagnose
from ._embed import embed
from ._generate import generate
from ._log_likelihood import log_likelihood
from ._neighbors import neighbors
from ._prune import prune
from ._sample import sample

__all__ = ["denoise", "diagnose", "embed", "generate", "log_likelihood", "neighbors", "prune", "sample"]
