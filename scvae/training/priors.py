"""What a trained prior of the latent variables goes together with, and how many components a mixture has."""

from __future__ import annotations

from dataclasses import replace

from ..config import NetworkConfig, TrainingConfig

MOST_COMPONENTS = 30


def with_components(config: NetworkConfig, n_cells: int) -> NetworkConfig:
    """The settings with the number of components of a mixture, if they leave it open."""
    if config.prior != "mixture" or config.prior_components is not None:
        return config
    return replace(config, prior_components=default_components(n_cells))


def default_components(n_cells: int) -> int:
    """Components of a trained mixture for so many training cells.

    For the measurements behind it see "Why the defaults are what they are" in `benchmarks/README.md`.
    """
    return MOST_COMPONENTS


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
            f"NetworkConfig.prior={name!r} needs a single β: at each β the cells lie elsewhere, and the prior is trained "
            "to lie where they do; pass one beta, or leave prior out"
        )
    if training_config.free_bits:
        raise ValueError(
            f"TrainingConfig.free_bits is the KL of each dimension, and under NetworkConfig.prior={name!r} the KL has no "
            "part for each; leave out either"
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
