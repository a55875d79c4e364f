"""Tools: each takes `adata` and a fitted model."""

from ._denoise import denoise
from ._diagnose import diagnose
from ._embed import embed
from ._generate import generate
from ._log_likelihood import log_likelihood
from ._map_query import map_query
from ._neighbors import neighbors
from ._prune import prune
from ._sample import sample
from ._transfer_labels import transfer_labels

__all__ = [
    "denoise",
    "diagnose",
    "embed",
    "generate",
    "log_likelihood",
    "map_query",
    "neighbors",
    "prune",
    "sample",
    "transfer_labels",
]
