"""The density of the cells of a fit in latent space, kept with the model."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..kernels.context import working_on
from ..model.latent.mixture import Mixture

PREFIX = "density."  # of the names of its tensors in a file


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Density:
    """Where cells lie in latent space, in the network's coordinates, and which library sizes they have there.

    Parameters
    ----------
    mixture
        Mixture of normals over z; except for real values also over the normal score of a cell's library size among
        those of its batch, in the last column.
    share
        Weights of the components in each batch.
    n_latent
        Number of latent dimensions.
    beta
        The β of the posteriors that the mixture was fitted to.
    """

    mixture: Mixture
    share: Float[np.ndarray, "batches components"]
    n_latent: int
    beta: float

    @property
    def n_components(self) -> int:
        """Number of components."""
        return len(self.mixture.weight)

    @property
    def latent(self) -> Mixture:
        """The density of z alone."""
        marginal = copy.deepcopy(self.mixture)
        with working_on(marginal.centre.device):
            marginal.drop_dimensions(torch.arange(marginal.centre.shape[1]) >= self.n_latent)
        return marginal

    def draw(
        self, batch: Int[np.ndarray, " cells"], generator: torch.Generator
    ) -> tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, "cells columns"]]:
        """z of new cells of the given batches, float32; and their ranks in library size, from 0 to 1, if there are any.

        The ranks are cells x 1, or cells x 0 for real values.
        """
        component = torch.multinomial(torch.from_numpy(self.share[batch]), 1, generator=generator)[:, 0]
        points = self.mixture.draw(component, generator)
        return points[:, : self.n_latent].numpy(), torch.special.ndtr(points[:, self.n_latent :].double()).numpy()

    def followed_by(self, others: Float[np.ndarray, "more components"]) -> Density:
        """The same density with the shares of further batches."""
        return replace(self, share=np.concatenate([self.share, others[len(self.share) :]]))

    def tensors(self) -> dict[str, Tensor]:
        """The tensors that a file holds; the numbers are in `to_json`."""
        named = {**self.mixture.state_dict(), "share": torch.from_numpy(self.share)}
        return {PREFIX + name: tensor for name, tensor in named.items()}

    def to_json(self) -> dict[str, Any]:
        """The numbers of the record."""
        return {"n_latent": self.n_latent, "beta": self.beta}

    @classmethod
    def taken_from(cls, tensors: dict[str, Tensor], record: dict[str, Any] | None) -> Density | None:
        """The density in a file, whose tensors are removed from `tensors`; None if it has none."""
        if record is None:
            return None
        weight, centre, factor, share = (tensors.pop(PREFIX + name) for name in ("weight", "centre", "factor", "share"))
        return cls(mixture=Mixture(weight, centre, factor), share=share.numpy(), **record)
