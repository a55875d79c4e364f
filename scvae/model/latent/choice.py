"""The latent variables that the settings of a network ask for."""

from __future__ import annotations

from ...config import NetworkConfig
from .categorical import Categorical
from .codebook import Codebook
from .prior import Prior, StandardNormal

N_CODES, N_CATEGORIES = 64, 10


def make_prior(config: NetworkConfig, n_latent: int) -> Prior:
    """The prior of a new network."""
    if config.latent == "quantized":
        return Codebook(config.n_codes or N_CODES, n_latent)
    if config.latent == "categorical":
        n = config.n_categories or N_CATEGORIES
        return Categorical(n, n_latent, relaxation=config.relaxation)
    return StandardNormal(n_latent)
