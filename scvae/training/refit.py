"""Training that goes on from a fitted model: which arguments agree with it, and how the cells are read for it."""

from __future__ import annotations

import copy
import hashlib
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ..common.checks import warn
from ..config import DEFAULT_N_LATENT, TrainingConfig
from ..data.batches import split
from ..data.covariates import covariate_names, widened
from ..data.intake import Cells, read_query
from ..data.libraries import LibrarySizes
from ..data.on_disk import Joined
from ..data.schema import Schema
from ..inference.fitted import ACTIVE_ABOVE, FittedModel, in_use
from ..inference.posterior import posterior_moments, whole_libraries
from ..model.vae import VAE
from .checkpoint import Progress
from .recipe import make_recipe
from .run import _evaluate, fitted_model, settings_of, split_of, train_network
from .surgery import grown
from .train import Ending

if TYPE_CHECKING:
    from anndata import AnnData

# fine-tuning after a cut, as shares of the fit's peak learning rate and epochs
FINE_RATE, FINE_EPOCHS = 0.3, 0.25


MAPPING_STEPS, MAPPING_RATE = 400, 2e-2
# of `scvae.fit`: left so, they are the model's
DEFAULTS = {"likelihood": "nb", "n_latent": DEFAULT_N_LATENT, "beta": 1.0}


def check_agreement(
    model: FittedModel,
    *,
    mask_var: object,
    batch_key: str | None,
    covariate_keys: str | Sequence[str],
    size_factor_key: str | None,
    **settings: object,
) -> None:
    """Refuses arguments of a fit that contradict the model it starts from.

    Raises
    ------
    ValueError
        Naming all that do, with what the model has.
    """
    schema = model.schema
    keys = [column.key for column in schema.categorical] + [column.key for column in schema.numeric]
    given = set(covariate_names(batch_key, covariate_keys))
    wrong = []
    if mask_var is not None:
        wrong.append(f"mask_var (the model has its {len(schema.genes):,} genes)")
    if batch_key not in {None, schema.batch.key if schema.batch else None}:
        wrong.append(f"batch_key={batch_key!r} (the model has {schema.batch.key if schema.batch else None!r})")
    if given and given != set(keys):
        wrong.append(f"covariate_keys={sorted(given)} (the model has {sorted(keys)})")
    if size_factor_key not in {None, schema.size_factor_key}:
        wrong.append(f"size_factor_key={size_factor_key!r} (the model has {schema.size_factor_key!r})")
    for name, value in settings.items():
        has = model.network_config if name == "network" else getattr(model, name)
        plain = tuple(value) if isinstance(value, list | np.ndarray) else value
        if plain not in (DEFAULTS.get(name), has):
            wrong.append(f"{name}={plain!r} (the model has {has!r})")
    if wrong:
        raise ValueError(
            f"init is a model that does not fit {'; '.join(wrong)}; leave these arguments out to go on with the model, "
            "or leave init out to start anew"
        )


def continue_fit(
    adata: AnnData,
    model: FittedModel,
    *,
    layer: str | None,
    seed: int,
    device: torch.device,
    training: TrainingConfig | None,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
    matrix: Joined | None = None,
) -> tuple[FittedModel, Cells]:
    """Trains a model on `adata` from the weights of `model`: the new model, and the cells as it read them."""
    schema = widened(adata, model.schema, mapped=False)
    memory = 1e9 * (training or model.training_config).memory
    schema = replace(schema, layer=schema.layer_of(layer))
    cells = read_query(adata, schema, matrix=matrix, memory=memory)
    fitted = fit_more(model, cells, schema, training, seed=seed, device=device, checkpoint=checkpoint, verbose=verbose)
    return fitted, cells


def map_cells(
    model: FittedModel, cells: Cells, schema: Schema, *, epochs: int | None, verbose: bool
) -> tuple[FittedModel, FittedModel]:
    """A model that knows the categories of `schema`; only the parameters of new ones were trained, on their cells.

    Parameters
    ----------
    model
        The reference. Its network, record, history and library sizes stay, but for what the new categories add.
    cells
        Read by the wider `schema`.
    schema
        That of `model` with more categories.
    epochs
        Passes over the cells of new categories; None for `MAPPING_STEPS` steps, two passes at least.

    Returns
    -------
    tuple
        The model, and the record of the training that made it, as if that were a fit of its own.
    """
    sizes = np.array([len(column.categories) for column in model.schema.categoricals])
    is_new = (cells.codes >= sizes).any(1)
    chosen = cells if is_new.all() else cells.taken(np.flatnonzero(is_new))
    wider = grown(model, schema)
    settings = replace(settings_of(model), schema=schema)
    training, _ = split_of(chosen, settings)
    batch_size = make_recipe(TrainingConfig(), len(training), settings.network.decoder).batch_size
    epochs = epochs or max(2, math.ceil(MAPPING_STEPS / max(1, round(len(training) / batch_size))))
    mapping = replace(
        fine_tuning(model.training_config, epochs),
        batch_size=batch_size,
        learning_rate=MAPPING_RATE,
        free_bits=0.0,
        capacity=None,
        consistency=0.0,  # towards the reference's conditions: accuracy fell from 0.88 to 0.78 on Muraro's cells
    )
    settings = replace(settings, training=mapping)
    for name, parameter in wider.network.named_parameters():
        parameter.requires_grad_(name in wider.new)
    progress, ended = train_network(wider.network, chosen, settings, checkpoint=None, verbose=verbose, only=wider.new)
    record = fitted_model(wider.network, chosen, settings, progress, ended)
    wider.network.requires_grad_(True)
    mapped = replace(model, network=wider.network, schema=schema)
    if schema.kind != "real" and schema.batch is not None and model.libraries is not None:
        of_query = LibrarySizes.of(whole_libraries(mapped, chosen), chosen.group, len(schema.batch.categories))
        mapped = replace(mapped, libraries=model.libraries.followed_by(of_query))
    return mapped, record


def fit_more(
    model: FittedModel,
    cells: Cells,
    schema: Schema,
    training: TrainingConfig | None,
    *,
    seed: int,
    device: torch.device,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
) -> FittedModel:
    """A new model trained from the weights of `model` on other cells, or more, without a warm-up.

    Parameters
    ----------
    model
        Where to start from; it stays as it is.
    cells
        Read by `schema`.
    schema
        That of `model`, or with more categories.
    training
        Settings; None for those of `model`. Where they leave it open, the number of cells decides as at a fit, but with
        a share of the epochs and of the learning rate.
    """
    config = training or replace(model.training_config, epochs=None, batch_size=None, learning_rate=None)
    settings = replace(settings_of(model), schema=schema, seed=seed)
    n_training = len(split(len(cells), config.validation_fraction, seed)[0])
    recipe = make_recipe(
        config,
        n_training,
        settings.network.decoder,
        conditions=schema.n_conditions > 0,
        many_betas=isinstance(model.beta, tuple),
    )
    fine = fine_tuning(replace(config, **recipe._asdict()), config.epochs)
    fine = replace(fine, learning_rate=config.learning_rate or fine.learning_rate)
    settings = replace(settings, training=fine)
    network = grown(model, schema).network.to(device)
    start = _digest_of(network) if checkpoint is not None else None
    progress, ended = train_network(network, cells, settings, checkpoint=checkpoint, verbose=verbose, start=start)
    return fitted_model(network, cells, settings, progress, ended)


def _digest_of(network: VAE) -> str:
    """Of all weights: tells where a training started."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in network.state_dict().values():
        digest.update(tensor.detach().cpu().numpy().tobytes())
    return digest.hexdigest()


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
