"""Settings of a fit that cannot work together, refused by name before anything is read."""

from __future__ import annotations

from ..common.distributed import ranks
from ..config import NetworkConfig, TrainingConfig


def check_together(
    network: NetworkConfig,
    training: TrainingConfig,
    *,
    n_latent: object,
    beta: object,
    conditions: bool,
) -> None:
    """Checks the settings of a decoder that reads the data, and of a training without an encoder.

    Parameters
    ----------
    network, training
        The settings.
    n_latent, beta
        As in `scvae.fit`, checked.
    conditions
        Whether there are batches or covariates.

    Raises
    ------
    ValueError
        If some cannot work together; the message names both.
    """
    if network.skip != "none":
        name = f"NetworkConfig.skip={network.skip!r}"
        _refuse(
            name,
            conditions and training.consistency > 0,
            "decodes cells under other conditions, without data: pass TrainingConfig(consistency=0)",
            "the consistency term",
        )
        _refuse(name, isinstance(beta, tuple), "needs weights for each β: pass one β", "a range of β")
        _refuse(name, n_latent == "auto", "removes dimensions that the gate reads: pass a number", "n_latent='auto'")
    if training.inference == "per_cell":
        name = "TrainingConfig.inference='per_cell'"
        _refuse(
            name,
            conditions and training.consistency > 0,
            "trains an encoder: pass TrainingConfig(consistency=0)",
            "the consistency term",
        )
        _refuse(name, isinstance(beta, tuple), "needs an encoder that knows β: pass one β", "a range of β")
        _refuse(name, n_latent == "auto", "trains again from the encoder: pass a number", "n_latent='auto'")
        _refuse(name, ranks().world > 1, "would each hold all posteriors: start one process", "several processes")
        given = [k for k in ("dropout", "input_dropout", "encode_conditions") if getattr(network, k)]
        _refuse(
            name, bool(given), "is a setting of the encoder: leave it out", f"NetworkConfig.{given[0] if given else ''}"
        )


def _refuse(name: str, wrong: bool, why: str, other: str) -> None:
    if wrong:
        raise ValueError(f"{name} does not work with {other}, which {why}")
