"""The arguments of a fit, and the settings that follow from them once the cells are read."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Literal

import torch

from ..common.rng import SeedLike
from ..config import NetworkConfig, TrainingConfig, ViewLikelihood
from ..data.beta_range import BetaRange
from ..data.schema import Schema
from ..inference.fitted import FittedModel
from ..inference.metric import MetricName
from .recipe import Recipe, make_recipe


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """Arguments of `scvae.fit` that define the model and its training, as given by the user and not yet checked."""

    likelihood: ViewLikelihood = "nb"
    n_latent: int | Literal["auto"] | None = None
    beta: float | tuple[float, float] = 1.0
    metric: MetricName = "expression"
    rng: SeedLike = None
    device: str | torch.device = "auto"
    network: NetworkConfig | None = None
    training: TrainingConfig | None = None
    init: FittedModel | None = None
    checkpoint: str | os.PathLike[str] | None = None
    verbose: bool = True


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything a training needs besides the network and the cells.

    Parameters
    ----------
    schema
        Description of the data.
    likelihood, beta, seed
        As in `scvae.fit`.
    network_config, training_config
        Settings of the networks and of the training.
    """

    schema: Schema
    likelihood: ViewLikelihood
    beta: float | tuple[float, float]
    seed: int
    network_config: NetworkConfig
    training_config: TrainingConfig

    @property
    def final_beta(self) -> float:
        """The β of the model; for a range of β, its default."""
        return BetaRange(*self.beta).default if isinstance(self.beta, tuple) else self.beta

    def recipe(self, n_cells: int) -> Recipe:
        """The recipe for `n_cells` training cells, whose number determines what the settings leave open."""
        return make_recipe(
            self.training_config,
            n_cells,
            self.network_config.decoder,
            conditions=self.schema.n_conditions > 0,
            many_betas=isinstance(self.beta, tuple),
        )

    def following(self, recipe: Recipe) -> Settings:
        """The complete settings, as stored in the model and compared with those of a checkpoint."""
        return replace(self, training_config=replace(self.training_config, **recipe._asdict()))


def settings_of(model: FittedModel) -> Settings:
    """The settings of a fitted model."""
    configs = model.network_config, model.training_config
    return Settings(model.schema, model.likelihood, model.beta, model.seed, *configs)
