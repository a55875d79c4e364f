"""Tools: functions that take `adata` and a fitted model."""

from ._beta_embeddings import beta_embeddings
from ._denoise import denoise
from ._density import density, fit_density
from ._diagnose import diagnose
from ._differential_abundance import differential_abundance
from ._embed import embed
from ._explain_label import explain_label
from ._generate import generate
from ._highly_variable_genes import highly_variable_genes
from ._impute import impute
from ._latent_genes import latent_genes
from ._log_likelihood import log_likelihood
from ._map_query import map_query
from ._metacells import metacells
from ._nearest_cells import nearest_cells
from ._neighbors import neighbors
from ._place import place
from ._predict_labels import predict_labels
from ._prune import prune
from ._rank_genes import rank_genes
from ._sample import sample
from ._transfer_labels import transfer_labels

__all__ = [
    "beta_embeddings",
    "denoise",
    "density",
    "diagnose",
    "differential_abundance",
    "embed",
    "explain_label",
    "fit_density",
    "generate",
    "highly_variable_genes",
    "impute",
    "latent_genes",
    "log_likelihood",
    "map_query",
    "metacells",
    "nearest_cells",
    "neighbors",
    "place",
    "predict_labels",
    "prune",
    "rank_genes",
    "sample",
    "transfer_labels",
]
