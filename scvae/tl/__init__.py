"""Tools: each takes `adata` and a fitted model."""

from ._diagnose import diagnose
from ._embed import embed
from ._latent_genes import latent_genes
from ._log_likelihood import log_likelihood
from ._prune import prune
from ._rank_genes import rank_genes

__all__ = ["diagnose", "embed", "latent_genes", "log_likelihood", "prune", "rank_genes"]
