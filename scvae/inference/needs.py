"""Checks that a model has what a tool needs: an encoder, or a decoder of z alone."""

from __future__ import annotations

from .fitted import FittedModel


def check_amortized(model: FittedModel, what: str) -> None:
    """Checks that the model has an encoder, which `what` needs.

    Raises
    ------
    ValueError
        If it has none.
    """
    if not model.network.is_amortized:
        raise ValueError(
            f"{what} needs an encoder, which a model fitted with TrainingConfig(inference='per_cell') lacks; fit again "
            "with inference='amortized', the default"
        )


def check_without_skip(model: FittedModel, what: str) -> None:
    """Checks that the decoder reads z and conditions alone, which `what` needs.

    Raises
    ------
    ValueError
        If it also reads the data of each cell.
    """
    if model.network.decoder.skip is not None:
        raise ValueError(
            f"{what} needs a decoder of z alone, but this model's also reads the data of each cell "
            f"(NetworkConfig(skip={model.network_config.skip!r})); fit again with skip='none', the default"
        )
