"""A trained network with the record of its training: what computes with a model sees of it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ..common.checks import check_not_negative, check_positive
from ..common.provenance import AT, REFINED
from ..config import NetworkConfig, TrainingConfig, ViewLikelihood
from ..data.beta_range import BetaRange
from ..data.libraries import LibrarySizes
from ..data.schema import Schema
from ..model.vae import VAE
from .coverage import Coverage
from .density import Density
from .known_labels import KnownLabels
from .metric import Metric, MetricName
from .outcome import Outcome
from .reference import Reference

ROUNDING = 1e-6  # a β outside the range by at most this relative error, as from exp(log β), counts as its end


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """The fields of `FittedModel`, which describes them and adds words and files, and what follows from them alone."""

    network: VAE
    schema: Schema
    likelihood: ViewLikelihood
    n_latent: int
    beta: float | tuple[float, float]
    network_config: NetworkConfig
    training_config: TrainingConfig
    outcome: Outcome
    history: pd.DataFrame
    seed: int
    versions: dict[str, str]
    trained_on: str
    libraries: LibrarySizes | None = None
    threads: int | None = None
    metric: Metric | None = None
    density: Density | None = None
    labels: KnownLabels | None = None
    reference: Reference | None = None
    licence: str | None = None
    view_libraries: tuple[LibrarySizes, ...] = ()
    coverages: tuple[Coverage | None, ...] = ()

    @property
    def genes(self) -> pd.Index:
        """Names of the modelled genes, in the model's order."""
        return pd.Index(self.schema.genes)

    @property
    def metric_name(self) -> MetricName:
        """`metric` as given to `scvae.fit`."""
        return "latent" if self.metric is None else "expression"

    @property
    def digest(self) -> str:
        """Identifies the model in what is derived from it."""
        return digest_of(self.network, self.metric)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.network.device

    def written(self, z: Float[np.ndarray, "*cells latent"]) -> Float[np.ndarray, "*cells latent"]:
        """Latent variables of the network in the coordinates of the embedding.

        Parameters
        ----------
        z
            Means or draws in the network's own coordinates, in which the prior is N(0, I).

        Returns
        -------
        numpy.ndarray
            `z` itself without a metric; else float32 values of the same shape.
        """
        return z if self.metric is None else self.metric.written(z)

    def beta_of(self, beta: float | None) -> float:
        """The β to use for the argument `beta`.

        Parameters
        ----------
        beta
            A β that the model was trained for. None gives the only β of a model, or 1 for a model of a range of β (the
            geometric mean of the range if 1 is outside it).

        Raises
        ------
        ValueError
            If the model was not trained for this β.
        """
        betas = range_of(self.beta)
        if beta is None:
            return self.beta if betas is None else betas.default  # type: ignore[return-value]
        beta = check_positive(beta, "beta") if betas else check_not_negative(beta, "beta")
        if betas is not None:
            nearest = min(max(beta, betas.low), betas.high)
            beta = nearest if math.isclose(beta, nearest, rel_tol=ROUNDING) else beta
        if betas is not None and not betas.low <= beta <= betas.high:
            raise ValueError(
                f"beta is {beta:g}, but the model was trained for β from {betas.low:g} to {betas.high:g}; pass a value "
                "in this range, or fit over a wider one"
            )
        if betas is None and beta != self.beta:
            raise ValueError(
                f"beta is {beta:g}, but the model was trained at β = {self.beta:g} alone; leave beta out, or fit over "
                f"a range of β: scvae.fit(adata, beta=({min(beta, self.beta) or 0.1:g}, {max(beta, self.beta):g}))"
            )
        return beta

    def density_at(self, beta: float | None) -> Density:
        """The density of the cells of the fit at the argument `beta`.

        Parameters
        ----------
        beta
            As in `beta_of`.

        Raises
        ------
        ValueError
            If the model has none, or it is that of another β.
        """
        at = self.beta_of(beta)
        if self.density is None:
            raise ValueError(
                "the model has no density of its cells, because it was saved before scvae fitted one; add it: "
                "model = scvae.tl.fit_density(adata, model), with the cells of the fit"
            )
        if at != self.density.beta:
            raise ValueError(
                f"beta is {at:g}, but the model's density of its cells is that at β = {self.density.beta:g}; fit it "
                f"at this β: model = scvae.tl.fit_density(adata, model, beta={at:g}), with the cells of the fit"
            )
        return self.density


def range_of(beta: float | tuple[float, float]) -> BetaRange | None:
    """The range of β of a model; None for a model of one β."""
    return BetaRange(*beta) if isinstance(beta, tuple) else None


def digest_of(network: VAE, metric: Metric | None = None) -> str:
    """A digest of all weights, and of the metric if there is one."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    if metric is not None:
        digest.update(metric.matrix.tobytes())
    return digest.hexdigest()


def identity_of(model: Trained, beta: float | None = None, refine: int = 0) -> str:
    """Identifies a model in what is derived from its embedding.

    For a model of many β, with the β of the embedding; with its gradient steps after the encoder, if it has any.
    """
    at = f"{AT}{model.beta_of(beta):g}" if isinstance(model.beta, tuple) else ""
    return f"{model.digest}{at}{f'{REFINED}{refine}' if refine else ''}"
