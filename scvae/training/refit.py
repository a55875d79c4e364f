"""Training that starts from a fitted model: more cells, new batches, fewer dimensions, another β."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float

from ..common.checks import plain, warn
from ..config import TrainingConfig
from ..data.batches import split
from ..data.cells import Cells
from ..data.covariates import covariate_names, widened
from ..data.intake import DataKeys, learned_labels, read_query, with_labels
from ..data.joint import with_views
from ..data.libraries import LibrarySizes
from ..data.on_disk import Joined
from ..data.rows import SparseRows
from ..data.schema import Schema
from ..inference.cloud import with_mapped_batches
from ..inference.expression_metric import with_metric
from ..inference.fitted import FittedModel
from ..inference.needs import check_amortized
from ..inference.outcome import ACTIVE_ABOVE, in_use
from ..inference.posterior import posterior_moments, whole_libraries
from ..inference.trained import digest_of
from ..kernels.context import working_on
from ..kernels.csr import CSR
from ..model.vae import VAE
from .checkpoint import Ending, Progress
from .priors import check_droppable
from .recipe import Recipe, make_recipe
from .refusals import check_together
from .run import completed, evaluate_held_out, fitted_model
from .settings import Request, settings_of
from .surgery import grown
from .train import train

if TYPE_CHECKING:
    from anndata import AnnData

# fine-tuning: fractions of the peak learning rate and of the epochs of the fit
FINE_RATE, FINE_EPOCHS = 0.3, 0.25

MAPPING_STEPS, MAPPING_RATE = 200, 4e-2
MUCH_DEEPER, FEW = 3.0, 200  # a query with fewer cells, this many times as deep as the limit, is warned about
UNASKED = Request()  # arguments with these values are taken from the model


def check_agreement(model: FittedModel, data: DataKeys, request: Request) -> None:
    """Checks that the arguments of a fit agree with the model it starts from.

    Raises
    ------
    ValueError
        If some do not; the message lists them with the values of the model.
    """
    schema = model.schema
    keys = [column.key for column in schema.categorical] + [column.key for column in schema.numeric]
    given = set(covariate_names(data.batch_key, data.covariate_keys))
    batch_key = schema.batch.key if schema.batch else None
    wrong = []
    views = {view.name: (view.obsm, view.likelihood, view.weight) for view in schema.views}
    asked = {name: (view.obsm or name, view.likelihood, view.weight) for name, view in data.views.items()}
    if asked and asked != views:
        wrong.append(f"also={sorted(asked)} (the model has {sorted(views)}, with their slots, likelihoods and weights)")
    if data.mask_var is not None:
        wrong.append(f"mask_var (the model has its {len(schema.genes):,} genes)")
    if data.batch_key not in {None, batch_key}:
        wrong.append(f"batch_key={data.batch_key!r} (the model has {batch_key!r})")
    if given and given != set(keys):
        wrong.append(f"covariate_keys={sorted(given)} (the model has {sorted(keys)})")
    if schema.labels is not None and data.labels_key not in {None, schema.labels.key}:
        wrong.append(f"labels_key={data.labels_key!r} (the model has {schema.labels.key!r})")
    if data.size_factor_key not in {None, schema.size_factor_key}:
        wrong.append(f"size_factor_key={data.size_factor_key!r} (the model has {schema.size_factor_key!r})")
    has = {
        "likelihood": model.likelihood,
        "n_latent": model.n_latent,
        "beta": model.beta,
        "metric": model.metric_name,
        "network": model.network_config,
    }
    if request.network is not None and request.network.prior == model.network_config.prior:
        components = request.network.prior_components or model.network_config.prior_components
        request = replace(request, network=replace(request.network, prior_components=components))
    for name, of_model in has.items():
        value = plain(getattr(request, name))
        value = tuple(value) if isinstance(value, list | np.ndarray) else value
        if value not in (getattr(UNASKED, name), of_model):
            wrong.append(f"{name}={value!r} (the model has {of_model!r})")
    if wrong:
        raise ValueError(
            f"the model in init contradicts {'; '.join(wrong)}; leave these arguments out to continue with the model, "
            "or leave init out to train a new one"
        )


def continue_fit(
    adata: AnnData, data: DataKeys, request: Request, *, seed: int, device: torch.device, matrix: Joined | None
) -> tuple[FittedModel, Cells]:
    """Trains a model on `adata` from the weights of `request.init`, without a warm-up; also returns the cells.

    Unset settings follow from the number of cells, as in a fit, with a fraction of its epochs and learning rate.
    """
    model = request.init
    assert model is not None
    check_amortized(model, "a fit from the model in init")
    config = request.training or replace(model.training_config, epochs=None, batch_size=None, learning_rate=None)
    conditions = model.schema.n_conditions > 0
    check_together(
        model.network_config,
        config,
        n_latent=model.n_latent,
        beta=model.beta,
        conditions=conditions,
        labels=model.schema.labels is not None,
    )
    if config.inference == "per_cell":
        raise ValueError("the model in init has an encoder, but training has inference='per_cell'; leave that out")
    schema = widened(adata, model.schema, mapped=False)
    schema = replace(schema, layer=schema.layer_of(data.layer), labels=learned_labels(adata, data, schema.labels))
    cells = read_query(adata, schema, matrix=matrix, memory=1e9 * config.memory)
    cells = with_views(cells, adata, schema, {name: view.mod for name, view in data.views.items() if view.mod})
    cells = with_labels(cells, adata, schema)
    settings = replace(settings_of(model), schema=schema, seed=seed, training_config=config)
    trained_on, _ = split(len(cells), config.validation_fraction, seed)
    settings = settings.following(settings.recipe(len(trained_on)))
    fine = fine_tuning(settings.training_config, config.epochs)
    fine = replace(fine, learning_rate=config.learning_rate or fine.learning_rate)
    settings = replace(settings, training_config=fine)
    network = grown(model, schema).network.to(device)
    start = None if request.checkpoint is None else digest_of(network)
    recipe, checkpoint = Recipe.of(fine), request.checkpoint
    progress = train(network, cells, settings, recipe, checkpoint=checkpoint, start=start, verbose=request.verbose)
    fitted = completed(fitted_model(network, cells, settings, progress), cells)
    return _as_before(model, fitted, cells), cells


def map_cells(
    model: FittedModel, cells: Cells, schema: Schema, *, epochs: int | None, verbose: bool
) -> tuple[FittedModel, FittedModel]:
    """A model with the categories of `schema`; only the parameters of new categories are trained, on their cells.

    Parameters
    ----------
    model
        The reference. Its network, record, history, library sizes and density are kept; the new categories are added
        to them.
    cells
        Read with the wider `schema`.
    schema
        The schema of `model` with more categories.
    epochs
        Passes over the cells of new categories; None for `MAPPING_STEPS` steps, but at least two passes.

    Returns
    -------
    tuple
        The model, and the same model with the record of this training only.
    """
    sizes = np.array([len(column.categories) for column in model.schema.categoricals])
    is_new = (cells.codes >= sizes).any(1)
    chosen = cells if is_new.all() else cells.taken(np.flatnonzero(is_new))
    wider = grown(model, schema)
    settings = replace(settings_of(model), schema=schema)
    trained_on, _ = split(len(chosen), model.training_config.validation_fraction, model.seed)
    batch_size = make_recipe(TrainingConfig(), len(trained_on)).batch_size
    epochs = epochs or max(2, math.ceil(MAPPING_STEPS / max(1, round(len(trained_on) / batch_size))))
    mapping = replace(
        fine_tuning(model.training_config, epochs),
        batch_size=batch_size,
        learning_rate=MAPPING_RATE,
        free_bits=0.0,
        capacity=None,
        consistency=0.0,  # towards the reference's conditions, it lowered accuracy from 0.88 to 0.78 on Muraro's cells
    )
    settings = replace(settings, training_config=mapping)
    for name, parameter in wider.network.named_parameters():
        parameter.requires_grad_(name in wider.new)
    comparable = _shallow(wider.network, chosen)
    progress = train(wider.network, comparable, settings, Recipe.of(mapping), only=wider.new, verbose=verbose)
    record = fitted_model(wider.network, comparable, settings, progress)
    wider.network.requires_grad_(True)
    mapped = replace(model, network=wider.network, schema=schema)
    if schema.kind != "real" and schema.batch is not None and model.libraries is not None:
        of_query = LibrarySizes.of(whole_libraries(mapped, chosen), chosen.group, len(schema.batch.categories))
        mapped = replace(mapped, libraries=model.libraries.followed_by(of_query))
    mapped = replace(mapped, view_libraries=_further_libraries(mapped, chosen))
    if schema.batch is not None and model.density is not None:
        mapped = replace(mapped, density=with_mapped_batches(model.density, mapped, chosen))
    return mapped, record


def _further_libraries(mapped: FittedModel, query: Cells) -> tuple[LibrarySizes, ...]:
    """The library sizes of each further measurement, with those of new batches."""
    if mapped.schema.batch is None:
        return mapped.view_libraries
    n_batches = len(mapped.schema.batch.categories)
    of_query = [
        LibrarySizes.of(view.library[view.present], query.group[view.present], n_batches) for view in query.views
    ]
    return tuple(known.followed_by(new) for known, new in zip(mapped.view_libraries, of_query, strict=True))


def _shallow(network: VAE, cells: Cells) -> Cells:
    """Cells of mapped categories as `VAE.shallow` has them; a copy in memory if these are counts."""
    batch, every = cells.batch(np.arange(len(cells))), torch.ones(len(cells), dtype=torch.bool)
    views = []
    for view, (layers, of_view) in zip(cells.views, network.with_layers(batch), strict=True):
        if layers.head.kind == "counts":
            of_view = layers.head.shallow(of_view, every)  # noqa: PLW2901
            assert isinstance(of_view.x, CSR)
            view = replace(view, rows=SparseRows.of(of_view.x), library=of_view.library.numpy())  # noqa: PLW2901
        views.append(view)
    cells = replace(cells, views=tuple(views))
    if network.likelihood.kind != "counts":
        return cells
    batch = network.likelihood.shallow(batch, every)
    assert isinstance(batch.x, CSR)
    shallow = replace(cells, rows=SparseRows.of(batch.x), library=batch.library.numpy())
    deeper = float(np.median(cells.library / shallow.library))
    if deeper > MUCH_DEEPER and len(cells) < FEW:
        warn(
            f"the {len(cells):,} new cells have counts of another order than those of the fit ({deeper:.0f} times the "
            "depth to which they are scaled; read counts?), and are few; their place is less certain than that of more "
            "cells: map them together with others of this technology, or compare with scanpy.tl.ingest"
        )
    return shallow


def prune_cells(model: FittedModel, cells: Cells, *, epochs: int | None, verbose: bool) -> tuple[FittedModel, Ending]:
    """A new model without the unused latent dimensions of `model`, fine-tuned on the cells of its fit.

    The weights of the other dimensions are kept. The average input from an unused dimension is added to the bias of
    the layer it enters. If all are unused, the one with the largest KL stays. Also returns why the fine-tuning ended.
    """
    check_droppable(model.network_config)
    kl = usage(model, cells)
    kept = in_use(kl)
    if kept.all():
        warn(
            f"all {len(kl)} latent dimensions are in use (mean KL above {ACTIVE_ABOVE} nats), so none was removed; "
            "a fit with a larger n_latent shows whether the data support more"
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
    with working_on(network.device):
        network.drop_dimensions(torch.from_numpy(~kept), torch.from_numpy(mean.mean(0)))
    settings, fine = settings_of(model), fine_tuning(model.training_config, epochs)
    progress = train(network, cells, replace(settings, training_config=fine), Recipe.of(fine), verbose=verbose)
    again = completed(fitted_model(network, cells, settings, _as_one_run(model, progress)), cells)
    outcome = replace(again.outcome, pruned_from=model.outcome.pruned_from or model.n_latent)
    return _as_before(model, replace(again, outcome=outcome), cells), progress.ended


def usage(model: FittedModel, cells: Cells) -> Float[np.ndarray, " latent"]:
    """Mean KL of each latent dimension in nats; with a range of β, at the smallest, where most are in use."""
    if not isinstance(model.beta, tuple):
        return np.array(model.outcome.kl_per_dimension)
    at_smallest = evaluate_held_out(model.network, cells, settings_of(model), beta=model.beta[0])
    return at_smallest.kl_per_dimension.double().numpy()


def fit_next(model: FittedModel, cells: Cells, *, beta: float, epochs: int, verbose: bool) -> FittedModel:
    """A new model at another β, trained from the weights of `model` on the cells of its fit, without a warm-up."""
    check_amortized(model, "a fit at the next β")
    config = replace(model.training_config, epochs=epochs, warmup=0.0, warmup_cycles=1)
    network, settings = copy.deepcopy(model.network), replace(settings_of(model), beta=beta, training_config=config)
    progress = train(network, cells, settings, Recipe.of(config), verbose=verbose)
    fitted = completed(fitted_model(network, cells, settings, progress), cells)
    return _as_before(model, fitted, cells)


def _as_before(earlier: FittedModel, model: FittedModel, cells: Cells) -> FittedModel:
    """The model with a metric of its own if the earlier one has a metric."""
    return model if earlier.metric is None else with_metric(model, cells)


def fine_tuning(config: TrainingConfig, epochs: int | None) -> TrainingConfig:
    """Settings for fine-tuning a model trained with `config`: at the final β, with a lower learning rate."""
    recipe = Recipe.of(config)
    return replace(
        config,
        epochs=epochs or max(1, round(FINE_EPOCHS * recipe.epochs)),
        learning_rate=FINE_RATE * recipe.learning_rate,
        warmup=0.0,
        warmup_cycles=1,
        patience=None,
    )


def _as_one_run(model: FittedModel, progress: Progress) -> Progress:
    """The progress of a fit and its fine-tuning, merged as if they were one run."""
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
        ended=progress.ended,
    )
