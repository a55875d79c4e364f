"""Settings of a fit that cannot work together, refused by name before anything is read."""

from __future__ import annotations

from ..common.distributed import ranks
from ..config import NetworkConfig, TrainingConfig
from .discrete import check_discrete
from .priors import check_prior


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
    check_prior(network, training, n_latent=n_latent, beta=beta)
    check_discrete(network, training, beta, n_latent)
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


def _refuse(name: str, *cases: tuple[bool, str]) -> None:
    for is_so, what in cases:
        if is_so:
            raise ValueError(f"{name} does not work with {what}")
