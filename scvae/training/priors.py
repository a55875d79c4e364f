"""What a trained prior of the latent variables goes together with, and how many components a mixture has."""

from __future__ import annotations

from dataclasses import replace

from ..config import NetworkConfig, TrainingConfig

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


def check_prior(
    network_config: NetworkConfig,
    training_config: TrainingConfig,
    *,
    n_latent: int | str,
    beta: float | tuple[float, float],
) -> None:
    """Checks that a trained prior goes with the other settings.

    Raises
    ------
    ValueError
        If it does not; the message says why.
    """
    name = network_config.prior
    if name == "normal":
        return
    if isinstance(beta, tuple):
        raise ValueError(
            f"NetworkConfig.prior={name!r} needs a single β: it is trained to lie where the cells do, and they lie "
            "elsewhere at each β; pass one beta, or leave prior out"
        )
    if training_config.free_bits:
        raise ValueError(
            f"TrainingConfig.free_bits is the KL of each dimension, and under NetworkConfig.prior={name!r} the KL has "
            "no part for each; leave out either"
        )
    if training_config.capacity is not None:
        raise ValueError(
            f"TrainingConfig.capacity needs a fixed prior: one that is trained, as NetworkConfig.prior={name!r}, would "
            "reach any KL by moving away from the cells; leave out either"
        )
    if n_latent == "auto":
        check_droppable(network_config)
    if name == "flow" and n_latent == 1:
        raise ValueError(
            "NetworkConfig.prior='flow' moves some dimensions by functions of the others, so n_latent must be at least "
            "2; found 1"
        )


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
