"""From a network and checked cells to a FittedModel: the first training, and training again with fewer dimensions."""

from __future__ import annotations

import copy
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
from jaxtyping import Bool, Float, Int
from torch import Tensor

from .._version import __version__
from ..common.checks import warn
from ..common.distributed import ranks
from ..common.rng import numpy_generator
from ..config import NetworkConfig, TrainingConfig, to_json
from ..data.batches import chunks, split
from ..data.beta_range import BetaRange
from ..data.feeds import single_pass
from ..data.intake import Cells
from ..data.libraries import LibrarySizes
from ..data.schema import Schema
from ..data.stored_rows import StoredRows
from ..data.summary import summarize
from ..inference.fitted import ACTIVE_ABOVE, FittedModel, Outcome, beta_range, in_use
from ..inference.posterior import posterior_moments
from ..kernels.csr import CSR
from ..likelihoods import LikelihoodName
from ..model.vae import VAE, make_model
from .checkpoint import Progress
from .recipe import make_recipe
from .train import EVALUATION_CHUNK, SPLIT, Ending, Evaluation, evaluate, train, verdict

# fine-tuning after a cut, as shares of the fit's peak learning rate and epochs
FINE_RATE, FINE_EPOCHS = 0.3, 0.25


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


def prune_cells(model: FittedModel, cells: Cells, *, epochs: int | None, verbose: bool) -> tuple[FittedModel, Ending]:
    """A new model without the latent dimensions that `model` does not use, fine-tuned on the cells it was trained on.

    The weights of the others are kept. What an unused dimension adds on average to the layer it enters goes into that
    layer's bias. Where all are unused, the one with the largest KL stays. Also says why the fine-tuning ended.
    """
    kl = usage(model, cells)
    kept = in_use(kl)
    if kept.all():
        warn(
            f"all {len(kl)} latent dimensions are in use (mean KL above {ACTIVE_ABOVE} nats), so none was dropped; "
            "whether the data have more to say, a fit with a larger n_latent will tell"
        )
        return replace(model, network=copy.deepcopy(model.network)), "finished"
    if not kept.any():
        kept[kl.argmax()] = True
        warn(
            "no latent dimension is in use: the posterior has collapsed. The one with the largest KL was kept; fit "
            "again with a lower beta, a longer TrainingConfig.warmup or some TrainingConfig.free_bits"
        )
    network = copy.deepcopy(model.network)
    mean, _ = posterior_moments(model, cells)
    network.drop_dimensions(torch.from_numpy(~kept), torch.from_numpy(mean.mean(0)))
    fitted = settings_of(model)
    fine = replace(fitted, training=fine_tuning(model.training_config, epochs))
    progress, ended = train_network(network, cells, fine, checkpoint=None, verbose=verbose)
    again = fitted_model(network, cells, fitted, _joined(model, progress), ended)
    outcome = replace(again.outcome, pruned_from=model.outcome.pruned_from or model.n_latent)
    return replace(again, outcome=outcome), ended


def usage(model: FittedModel, cells: Cells) -> Float[np.ndarray, " latent"]:
    """Mean KL of each latent dimension in nats; of a model of many β at the smallest, where most are in use."""
    if not isinstance(model.beta, tuple):
        return np.array(model.outcome.kl_per_dimension)
    return _evaluate(model.network, cells, settings_of(model), beta=model.beta[0]).kl_per_dimension.double().numpy()


def fit_next(model: FittedModel, cells: Cells, *, beta: float, epochs: int, verbose: bool) -> FittedModel:
    """A new model for another β, trained from the weights of `model` on the cells of its fit, without a warm-up."""
    training = replace(model.training_config, epochs=epochs, warmup=0.0, warmup_cycles=1)
    network, settings = copy.deepcopy(model.network), replace(settings_of(model), beta=beta, training=training)
    progress, ended = train_network(network, cells, settings, checkpoint=None, verbose=verbose)
    return fitted_model(network, cells, settings, progress, ended)


def fine_tuning(training: TrainingConfig, epochs: int | None) -> TrainingConfig:
    """How a model that was trained by `training` is trained a little more: at the final β, at a lower learning rate."""
    assert training.learning_rate is not None
    assert training.epochs is not None
    return replace(
        training,
        epochs=epochs or max(1, round(FINE_EPOCHS * training.epochs)),
        learning_rate=FINE_RATE * training.learning_rate,
        warmup=0.0,
        warmup_cycles=1,
        patience=None,
    )


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


def _joined(model: FittedModel, progress: Progress) -> Progress:
    """The progress of a fit and of its fine-tuning as those of one run."""
    earlier = model.outcome
    offset = {"epoch": earlier.epochs, "seconds": earlier.seconds}
    history = {
        str(name): [*column, *(value + offset.get(str(name), 0) for value in progress.history.get(str(name), []))]
        for name, column in model.history.items()
    }
    return Progress(
        epoch=earlier.epochs + progress.epoch,
        history=history,
        best_objective=progress.best_objective,
        best_epoch=earlier.epochs + progress.best_epoch if progress.best_epoch else earlier.best_epoch,
        skipped_steps=earlier.skipped_steps + progress.skipped_steps,
        seconds=earlier.seconds + progress.seconds,
    )


def _final_beta(settings: Settings) -> float:
    """The β of the model, or that which stands for the many it has."""
    return settings.beta if not isinstance(settings.beta, tuple) else BetaRange(*settings.beta).default


def split_of(cells: Cells, settings: Settings) -> tuple[Int[np.ndarray, " train"], Int[np.ndarray, " validation"]]:
    """The cells to train on and those held out: the same at every training from this seed."""
    return split(len(cells), settings.training.validation_fraction, numpy_generator(settings.seed, SPLIT))


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
