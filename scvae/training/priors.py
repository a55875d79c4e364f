"""How many components a trained mixture has, and which priors can lose dimensions."""

from __future__ import annotations

from dataclasses import replace

from ..config import NetworkConfig

MOST_COMPONENTS, CELLS_FOR_EACH = 30, 30


def with_components(config: NetworkConfig, n_cells: int) -> NetworkConfig:
    """The settings with the number of components of a mixture, if they leave it open."""
    if config.prior != "mixture" or config.prior_components is not None:
        return config
    return replace(config, prior_components=default_components(n_cells))


def default_components(n_cells: int) -> int:
    """Components of a trained mixture: one for every 30 training cells, at least 2 and at most 30.

    The most were measured: see "Options of the latent space" in `benchmarks/README.md`. Fewer for few cells were not.
    """
    return max(2, min(MOST_COMPONENTS, n_cells // CELLS_FOR_EACH))


def check_droppable(network_config: NetworkConfig) -> None:
    """Checks that latent dimensions can be removed.

    Raises
    ------
    ValueError
        If the prior has no closed form without some of them.
    """
    if network_config.prior == "flow":
        raise ValueError(
            "NetworkConfig.prior='flow' has no closed form without some of its dimensions, so none can be removed by "
            "n_latent='auto' or scvae.tl.prune; fit with a smaller n_latent, or with another prior"
        )
