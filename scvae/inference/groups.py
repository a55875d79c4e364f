"""Codes and categories of cells, for models whose latent has a discrete part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ..common.keys import Keys
from ..kernels.context import working_on
from ..model.latent.discrete import Discrete
from ..model.latent.posterior import DiagonalNormal
from .fitted import FittedModel

Moments = tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, "cells latent"]]

AT_ONCE = 2**14  # cells


def discrete_of(model: FittedModel) -> Discrete | None:
    """The discrete latent of a model; None if it has none."""
    prior = model.network.prior
    return prior if isinstance(prior, Discrete) else None


@torch.no_grad()
def memberships(model: FittedModel, moments: Moments) -> Float[np.ndarray, "cells groups"]:
    """Probability of each group for cells with these posterior means and variances; float32."""
    prior = discrete_of(model)
    assert prior is not None
    found = np.empty((len(moments[0]), len(prior.share)), np.float32)
    with working_on(model.device):
        for start in range(0, len(found), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            mean, variance = (torch.from_numpy(moment[part]).to(model.device) for moment in moments)
            found[part] = prior.membership(DiagonalNormal(mean, variance.log())).cpu().numpy()
    return found


def group_of(model: FittedModel, moments: Moments) -> pd.Categorical:
    """The code, or the most probable category, of each cell."""
    found = memberships(model, moments)
    return pd.Categorical.from_codes(found.argmax(1), [str(group) for group in range(found.shape[1])])


def group_columns(model: FittedModel, moments: Moments, keys: Keys) -> dict[str, pd.Categorical]:
    """The columns of obs that an embedding has with a discrete latent."""
    prior = discrete_of(model)
    if prior is None:
        return {}
    return {keys.code if prior.kind == "code" else keys.category: group_of(model, moments)}


def group_matrices(model: FittedModel, moments: Moments, keys: Keys) -> dict[str, Any]:
    """The entries of obsm that an embedding has with a discrete latent."""
    prior = discrete_of(model)
    return {keys.categories: memberships(model, moments)} if prior is not None and prior.kind == "category" else {}


def group_slots(model: FittedModel, keys: Keys) -> dict[str, list[str]]:
    """Names of the columns of obs and the entries of obsm that an embedding has with a discrete latent."""
    prior = discrete_of(model)
    if prior is None:
        return {"obs": [], "obsm": []}
    return (
        {"obs": [keys.code], "obsm": []}
        if prior.kind == "code"
        else {"obs": [keys.category], "obsm": [keys.categories]}
    )


def refuse_discrete(
    model: FittedModel, function: str, *, kinds: Sequence[str], remedy: str = "pass a model with latent='normal'"
) -> None:
    """Raises ValueError if a model has a discrete latent of one of these kinds, which `function` does not know."""
    prior = discrete_of(model)
    if prior is not None and prior.kind in kinds:
        raise ValueError(
            f"the model was fitted with NetworkConfig(latent={model.network_config.latent!r}), which {function} does "
            f"not know; {remedy}"
        )
