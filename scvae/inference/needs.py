"""Checks that a model has what a tool needs: an encoder, a decoder of z alone, or a reference in its file."""

from __future__ import annotations

from .reference import Reference
from .trained import Trained


def check_amortized(model: Trained, what: str) -> None:
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


def check_without_skip(model: Trained, what: str) -> None:
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


def reference_of_model(model: Trained, what: str, *, beta: float | None, umap: bool = False) -> Reference:
    """The reference of the model, which `what` needs, at the argument `beta`.

    Raises
    ------
    ValueError
        If it has none, or one at another β; if `umap`, also if the reference has no UMAP.
    """
    reference, at = model.reference, model.beta_of(beta)
    if reference is None:
        raise ValueError(
            f"{what} needs a reference in the model's file, and it has none; add it with the cells of the reference: "
            "scvae.load(model.save(path, reference=adata, labels=['cell_type'], umap=True))"
        )
    if at != reference.beta:
        raise ValueError(
            f"beta is {at:g}, but the model's reference is at β = {reference.beta:g}; pass beta={reference.beta:g}, or "
            f"save a reference at this β: model.save(path, reference=adata, beta={at:g})"
        )
    if umap and reference.umap is None:
        raise ValueError(
            f"{what} needs a UMAP, and the model's reference has none; save it again with "
            "model.save(path, reference=adata, umap=True)"
        )
    return reference
