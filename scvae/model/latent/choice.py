"""The latent variables that the settings of a network ask for."""

from __future__ import annotations

import torch

from ...config import NetworkConfig
from .categorical import Categorical
from .codebook import Codebook
from .flow import Flow
from .mixture import TrainedMixture
from .prior import Prior, StandardNormal

N_CODES, N_CATEGORIES = 64, 10


def make_prior(config: NetworkConfig, n_latent: int, generator: torch.Generator) -> Prior:
    """The prior of a new network."""
    if config.latent == "quantized":
        return Codebook(config.n_codes or N_CODES, n_latent)
    if config.latent == "categorical":
        n = config.n_categories or N_CATEGORIES
        return Categorical(n, n_latent, relaxation=config.relaxation)
    if config.prior == "flow":
        return Flow(n_latent, generator=generator)
    if config.prior == "mixture":
        assert config.prior_components is not None
        return TrainedMixture(n_latent, config.prior_components, generator=generator)
    return StandardNormal(n_latent)
