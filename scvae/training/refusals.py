"""Settings of a fit that cannot work together, refused by name before anything is read."""

from __future__ import annotations

from ..common.distributed import ranks
from ..config import NetworkConfig, TrainingConfig
from .priors import check_droppable


def check_together(
    network: NetworkConfig,
    training: TrainingConfig,
    *,
    n_latent: int | str,
    beta: float | tuple[float, float],
    conditions: bool,
    labels: bool,
) -> None:
    """Checks settings of priors, discrete latents, decoders that read the data, and trainings without an encoder.

    Parameters
    ----------
    network, training
        The settings.
    n_latent, beta
        As in `scvae.fit`, checked.
    conditions
        Whether there are batches or covariates.
    labels
        Whether there are labels.

    Raises
    ------
    ValueError
        If some cannot work together; the message names both.
    """
    _check_prior(network, training, n_latent, beta)
    _check_latent(network, training, n_latent, beta)
    discrete = (network.latent != "normal", f"latent={network.latent!r}: take one of them")
    if labels and network.latent != "normal":
        _refuse("labels_key", (True, f"NetworkConfig.latent={network.latent!r}, which has groups of its own"))
    has_penalty = conditions and training.consistency > 0
    penalty, of_range, auto = "the consistency term", "a range of β", "n_latent='auto'"
    if network.skip != "none":
        _refuse(
            f"NetworkConfig.skip={network.skip!r}",
            (has_penalty, f"{penalty}, which decodes cells without their data: pass TrainingConfig(consistency=0)"),
            (isinstance(beta, tuple), f"{of_range}, because its layer has no weights for each β: pass one β"),
            (n_latent == "auto", f"{auto}, which removes dimensions that the gate reads: pass a number"),
            discrete,
        )
    if training.inference == "per_cell":
        of_encoder = [name for name in ("dropout", "input_dropout", "encode_conditions") if getattr(network, name)]
        _refuse(
            "TrainingConfig.inference='per_cell'",
            (has_penalty, f"{penalty}, which trains an encoder: pass TrainingConfig(consistency=0)"),
            (isinstance(beta, tuple), f"{of_range}, which needs an encoder that knows β: pass one β"),
            (n_latent == "auto", f"{auto}, which trains again from the encoder: pass a number"),
            discrete,
            (ranks().world > 1, "several processes, which would each hold all posteriors: start one"),
            (labels, "labels_key, whose names for new cells need an encoder: leave it out"),
            *((True, f"NetworkConfig.{name}, a setting of the encoder: leave it out") for name in of_encoder),
        )


def _check_prior(
    network: NetworkConfig, training: TrainingConfig, n_latent: int | str, beta: float | tuple[float, float]
) -> None:
    """Raises ValueError for settings that do not go with `NetworkConfig.prior`."""
    name = network.prior
    if name == "normal":
        return
    if isinstance(beta, tuple):
        raise ValueError(
            f"NetworkConfig.prior={name!r} needs a single β: it is trained to lie where the cells do, and they lie "
            "elsewhere at each β; pass one beta, or leave prior out"
        )
    if training.free_bits:
        raise ValueError(
            f"TrainingConfig.free_bits is the KL of each dimension, and under NetworkConfig.prior={name!r} the KL has "
            "no part for each; leave out either"
        )
    if training.capacity is not None:
        raise ValueError(
            f"TrainingConfig.capacity needs a fixed prior: one that is trained, as NetworkConfig.prior={name!r}, would "
            "reach any KL by moving away from the cells; leave out either"
        )
    if n_latent == "auto":
        check_droppable(network)
    if name == "flow" and n_latent == 1:
        raise ValueError(
            "NetworkConfig.prior='flow' moves some dimensions by functions of the others, so n_latent must be at least "
            "2; found 1"
        )


def _check_latent(
    network: NetworkConfig, training: TrainingConfig, n_latent: int | str, beta: float | tuple[float, float]
) -> None:
    """Raises ValueError for settings that do not go with `NetworkConfig.latent`, or would have no effect."""
    latent = network.latent
    if latent == "normal":
        return
    if isinstance(beta, tuple):
        raise ValueError(f"NetworkConfig.latent={latent!r} needs one β; found beta=({beta[0]:g}, {beta[1]:g})")
    if latent == "categorical":
        return
    without_effect = {
        f"beta={beta:g}": beta != 1.0,
        f"TrainingConfig.free_bits={training.free_bits:g}": training.free_bits > 0,
        "TrainingConfig.capacity": training.capacity is not None,
        "n_latent='auto'": n_latent == "auto",
    }
    given = [name for name, is_given in without_effect.items() if is_given]
    if given:
        raise ValueError(
            f"{given[0]} has no effect with NetworkConfig.latent='quantized', whose rate has no gradient; leave it "
            "out, and set the rate by NetworkConfig.n_codes"
        )


def _refuse(name: str, *cases: tuple[bool, str]) -> None:
    for is_so, what in cases:
        if is_so:
            raise ValueError(f"{name} does not work with {what}")
