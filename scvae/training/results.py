"""What a fit writes to an AnnData: the embedding, and a record of settings, history and outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..common.distributed import ranks
from ..common.keys import Keys
from ..common.slots import write_made
from ..config import to_json
from ..data.cells import Cells
from ..data.schema import Schema
from ..inference.fitted import FittedModel
from ..inference.groups import group_columns, group_matrices
from ..inference.posterior import posterior_moments
from ..inference.trained import identity_of
from ..inference.trained_prior import component_shares, prior_in_record

if TYPE_CHECKING:
    from anndata import AnnData


def record_of(model: FittedModel) -> dict[str, Any]:
    """The record in uns: only types that h5ad and zarr files can store, so None becomes "none" and tuples arrays."""
    schema, outcome = model.schema, model.outcome
    covariates = [c.key for c in schema.categorical] + [c.key for c in schema.numeric]
    params: dict[str, Any] = {
        "likelihood": model.likelihood,
        "n_latent": model.n_latent,
        "beta": np.array(model.beta) if isinstance(model.beta, tuple) else model.beta,
        "metric": model.metric_name,
        "layer": schema.layer,
        "batch_key": schema.batch.key if schema.batch else None,
        "covariate_keys": np.array(covariates, dtype=str),
        "size_factor_key": schema.size_factor_key,
        "n_genes": len(schema.genes),
        "network": to_json(model.network_config),
        "training": to_json(model.training_config),
        **_views(schema),
    }
    return {
        "params": _storable(params),
        "history": {name: column.to_numpy(copy=True) for name, column in model.history.items()},
        "beta_attained": outcome.beta_attained,
        "converged": outcome.converged,
        "reason": outcome.reason,
        "best_epoch": outcome.best_epoch,
        "held_out_elbo": outcome.held_out_elbo,
        "kl_per_dimension": np.array(outcome.kl_per_dimension),
        "active_dimensions": outcome.active_dimensions,
        **prior_in_record(model),
        "pruned_from": outcome.pruned_from or "none",
        "skipped_steps": outcome.skipped_steps,
        "seed": model.seed,
        "seconds": outcome.seconds,
        "versions": dict(model.versions),
        "threads": model.threads or "none",
    }


def _views(schema: Schema) -> dict[str, Any]:
    """The name of the first measurement, and the likelihood of each further one; empty for a model of one."""
    if not schema.views:
        return {}
    return {"first_view": schema.name, "views": {view.name: view.likelihood for view in schema.views}}


def _storable(values: dict[str, Any]) -> dict[str, Any]:
    plain = {name: _storable(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: "none" if value is None else value for name, value in plain.items()}


def write_results(
    adata: AnnData,
    model: FittedModel,
    cells: Cells,
    keys: Keys,
    *,
    beta: float | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Writes the embedding of the cells at `beta`, as `write_embedding`, with `more` in the record."""
    moments = posterior_moments(model, cells, beta=beta, together=ranks())
    write_embedding(adata, model, moments, keys, beta=beta, more=more)


def write_embedding(
    adata: AnnData,
    model: FittedModel,
    moments: tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, "cells latent"]],
    keys: Keys,
    *,
    beta: float | None = None,
    refine: int = 0,
    more: Mapping[str, Any] | None = None,
    obs: Mapping[str, Any] | None = None,
    obsm: Mapping[str, Any] | None = None,
    **slots: Any,
) -> None:
    """Writes an embedding: means, variances, loadings, codes, categories or components, and the record with `more`.

    `moments` are those of the network, after `refine` steps, and are written in the coordinates of the model's metric.
    `obs`, `obsm` and the other slots, as in `write_made`, are written with them. What another model left under the key
    goes.
    """
    mean, variance = moments
    matrices = {**group_matrices(model, moments, keys), keys.components: component_shares(model, mean, variance)}
    variance = variance if model.metric is None else model.metric.variances(variance)
    write_made(
        adata,
        keys,
        identity_of(model, beta, refine),
        obs=group_columns(model, moments, keys) | dict(obs or {}),
        obsm={keys.mean: model.written(mean), keys.variance: variance, **matrices} | dict(obsm or {}),
        varm={keys.loadings: _loadings(model, adata)},
        record=record_of(model) | {"refine": refine} | dict(more or {}),
        **slots,
    )


def _loadings(model: FittedModel, adata: AnnData) -> Float[np.ndarray, "genes latent"] | None:
    """Loadings of all genes of `adata`, 0 for genes not modelled; None if the decoder has no loadings."""
    loadings = model.network.loadings()
    if loadings is None:
        return None
    values = loadings.detach().cpu().numpy()
    if model.metric is not None:
        values = (values @ model.metric.inverse.T).astype(np.float32)
    rows = model.genes.get_indexer(adata.var_names.astype(str))
    return np.where((rows >= 0)[:, None], values[rows], np.float32(0.0))
