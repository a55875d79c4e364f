"""From a network and checked cells to a FittedModel: the first training, and training again with fewer dimensions."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from .._version import __version__
from ..common.checks import warn
from ..common.distributed import ranks
from ..config import NetworkConfig, TrainingConfig, to_json
from ..data.batches import chunks, split
from ..data.beta_range import BetaRange
from ..data.feeds import single_pass
from ..data.intake import Cells
from ..data.libraries import LibrarySizes
from ..data.schema import Schema
from ..data.stored_rows import StoredRows
from ..data.summary import summarize
from ..inference.fitted import FittedModel, Outcome, beta_range
from ..kernels.csr import CSR
from ..likelihoods import LikelihoodName
from ..model.vae import VAE, make_model
from .checkpoint import Progress
from .recipe import make_recipe
from .train import EVALUATION_CHUNK, Ending, Evaluation, evaluate, train, verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All that a training is told besides the network and the cells.

    Parameters
    ----------
    schema
        What was read.
    likelihood, beta, seed
        As in `scvae.fit`.
    network, training
        The two records of settings.
    """

    schema: Schema
    likelihood: LikelihoodName
    beta: float | tuple[float, float]
    seed: int
    network: NetworkConfig
    training: TrainingConfig


def fit_cells(
    cells: Cells,
    settings: Settings,
    n_latent: int,
    *,
    device: torch.device,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
) -> tuple[FittedModel, Ending]:
    """Trains a new model, and says why training ended."""
    training_cells, _ = split_of(cells, settings)
    recipe = make_recipe(
        settings.training,
        len(training_cells),
        settings.network.decoder,
        conditions=settings.schema.n_conditions > 0,
        many_betas=isinstance(settings.beta, tuple),
    )
    settings = replace(settings, training=replace(settings.training, **recipe._asdict()))
    network = make_model(
        settings.schema, settings.likelihood, n_latent, settings.network, settings.seed, beta_range(settings.beta)
    ).to(device)
    network.likelihood.start_from(summarize(cells, training_cells))
    progress, ended = train_network(network, cells, settings, checkpoint=checkpoint, verbose=verbose)
    return fitted_model(network, cells, settings, progress, ended), ended


def train_network(
    network: VAE,
    cells: Cells,
    settings: Settings,
    *,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
    start: str | None = None,
    only: Mapping[str, Bool[Tensor, "..."]] | None = None,
) -> tuple[Progress, Ending]:
    """Trains a network from the weights it has, or some entries of them alone.

    A checkpoint is of this training alone: `start` tells weights to start from that do not follow from the seed.
    """
    identity = {
        "likelihood": settings.likelihood,
        "n_latent": network.n_latent,
        "beta": list(settings.beta) if isinstance(settings.beta, tuple) else settings.beta,  # as JSON gives it back
        "seed": settings.seed,
        "network": to_json(settings.network),
        "training": to_json(settings.training),
        "data": _content(settings.schema, cells) if checkpoint is not None or ranks().world > 1 else None,
    }
    if start is not None:
        identity["start"] = start
    ranks().agree({name: json.dumps(value) for name, value in identity.items()})
    progress, ended = train(
        network,
        cells,
        beta=_final_beta(settings),
        config=settings.training,
        seed=settings.seed,
        device=next(network.parameters()).device,
        checkpoint=checkpoint,
        identity=identity,
        verbose=verbose,
        only=only,
    )
    if ended == "interrupted" and ranks().is_first:
        warn(f"training was interrupted after {progress.epoch} epochs; the best model so far is kept")
    return progress, ended


def fitted_model(network: VAE, cells: Cells, settings: Settings, progress: Progress, ended: Ending) -> FittedModel:
    """The record of a training."""
    return FittedModel(
        network=network,
        schema=settings.schema,
        likelihood=settings.likelihood,
        n_latent=network.n_latent,
        beta=settings.beta,
        network_config=settings.network,
        training_config=settings.training,
        outcome=_outcome(network, cells, settings, progress, ended),
        history=pd.DataFrame(progress.history),
        seed=settings.seed,
        versions=_versions(),
        trained_on=cells.fingerprint(),
        libraries=_libraries(cells, settings.schema),
    )


def _libraries(cells: Cells, schema: Schema) -> LibrarySizes | None:
    n_batches = len(schema.batch.categories) if schema.batch else 1
    return None if schema.kind == "real" else LibrarySizes.of(cells.library, cells.group, n_batches)


def settings_of(model: FittedModel) -> Settings:
    """What a model was fitted with."""
    return Settings(
        schema=model.schema,
        likelihood=model.likelihood,
        beta=model.beta,
        seed=model.seed,
        network=model.network_config,
        training=model.training_config,
    )


def _final_beta(settings: Settings) -> float:
    """The β of the model, or that which stands for the many it has."""
    return settings.beta if not isinstance(settings.beta, tuple) else BetaRange(*settings.beta).default


def split_of(cells: Cells, settings: Settings) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """The cells to train on and those held out: the same at every training from this seed."""
    return split(len(cells), settings.training.validation_fraction, settings.seed)


def _outcome(network: VAE, cells: Cells, settings: Settings, progress: Progress, ended: Ending) -> Outcome:
    result = _evaluate(network, cells, settings, beta=_final_beta(settings))
    converged, reason = verdict(
        progress, ended, n_real=len(settings.schema.genes) if settings.schema.kind == "real" else 0
    )
    return Outcome(
        converged=converged,
        reason=reason,
        beta_attained=progress.history["beta"][-1] if progress.epoch else 0.0,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        seconds=progress.seconds,
        skipped_steps=progress.skipped_steps,
        kl_per_dimension=tuple(result.kl_per_dimension.tolist()),
        held_out_elbo=result.log_likelihood - result.kl if len(split_of(cells, settings)[1]) else float("nan"),
    )


def _evaluate(network: VAE, cells: Cells, settings: Settings, *, beta: float) -> Evaluation:
    """Means over the cells held out, or over the training cells if there are none."""
    train_cells, held_out = split_of(cells, settings)
    judged = held_out if len(held_out) else train_cells
    device = next(network.parameters()).device
    log_beta = None if network.betas is None else torch.full((len(judged),), math.log(beta))
    feed = single_pass(cells, device)
    return evaluate(network, feed, judged, log_beta, seed=settings.seed, device=device, together=ranks())


def _content(schema: Schema, cells: Cells) -> str:
    """A digest of every value a model is trained on, so that a checkpoint is not resumed with other data."""
    digest = hashlib.blake2b(json.dumps(schema.to_json()).encode(), digest_size=16)
    for array in (cells.library, cells.codes, cells.numeric, np.array(cells.names.astype(str), dtype=str)):
        digest.update(np.ascontiguousarray(array).tobytes())
    for part in _looked_at(cells):
        x = cells.rows.take(part)
        for tensor in (x.indptr, x.indices, x.values) if isinstance(x, CSR) else (x,):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _looked_at(cells: Cells) -> list[Int[np.ndarray, " cells"]]:
    """All cells in pieces; of cells on disk, whose sums are known, only some: to read all takes as long as an epoch."""
    if not isinstance(cells.rows, StoredRows):
        return chunks(len(cells), EVALUATION_CHUNK)
    return [np.unique(np.linspace(0, len(cells) - 1, EVALUATION_CHUNK).astype(np.int64))]


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "anndata", "numpy", "scipy", "numba")}
    return {"scvae": __version__, "python": platform.python_version(), **libraries}
