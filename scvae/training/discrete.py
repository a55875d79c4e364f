"""Which settings of a training suit discrete latent variables."""

from __future__ import annotations

from ..config import NetworkConfig, TrainingConfig


def check_discrete(
    network_config: NetworkConfig,
    training_config: TrainingConfig,
    beta: float | tuple[float, float],
    n_latent: int | str,
) -> None:
    """Raises ValueError for settings that do not go with `NetworkConfig.latent`, or would have no effect."""
    latent = network_config.latent
    if latent == "normal":
        return
    if isinstance(beta, tuple):
        raise ValueError(f"NetworkConfig.latent={latent!r} needs one β; found beta=({beta[0]:g}, {beta[1]:g})")
    if latent == "categorical":
        return
    without_effect = {
        f"beta={beta:g}": beta != 1.0,
        f"TrainingConfig.free_bits={training_config.free_bits:g}": training_config.free_bits > 0,
        "TrainingConfig.capacity": training_config.capacity is not None,
        "n_latent='auto'": n_latent == "auto",
    }
    given = [name for name, is_given in without_effect.items() if is_given]
    if given:
        raise ValueError(
            f"{given[0]} has no effect with NetworkConfig.latent='quantized', whose rate has no gradient; leave it "
            "out, and set the rate by NetworkConfig.n_codes"
        )
