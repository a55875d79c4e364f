"""Tools: each takes `adata` and a fitted model."""

from ._diagnose import diagnose
from ._embed import embed
from ._log_likelihood import log_likelihood
from ._map_query import map_query
from ._prune import prune
from ._transfer_labels import transfer_labels

__all__ = ["diagnose", "embed", "log_likelihood", "map_query", "prune", "transfer_labels"]
