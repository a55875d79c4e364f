"""What a fit writes to an AnnData: the embedding, and a record of settings, history and outcome."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from ..common.distributed import ranks
from ..common.keys import Keys
from ..common.slots import write
from ..config import to_json
from ..data.intake import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import posterior_moments

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
        "layer": schema.layer,
        "batch_key": schema.batch.key if schema.batch else None,
        "covariate_keys": np.array(covariates, dtype=str),
        "size_factor_key": schema.size_factor_key,
        "n_genes": len(schema.genes),
        "network": to_json(model.network_config),
        "training": to_json(model.training_config),
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
        "pruned_from": outcome.pruned_from or "none",
        "skipped_steps": outcome.skipped_steps,
        "seed": model.seed,
        "seconds": outcome.seconds,
        "versions": dict(model.versions),
    }


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
    """Writes the embedding of the cells at `beta`, the loadings if there are any, and the record with `more` added."""
    mean, variance = posterior_moments(model, cells, beta=beta, together=ranks())
    obsm = {keys.mean: mean, keys.variance: variance}
    uns = {keys.uns: record_of(model) | dict(more or {})}
    write(adata, obsm=obsm, varm={keys.loadings: _loadings(model, adata)}, uns=uns)


def _loadings(model: FittedModel, adata: AnnData) -> Float[np.ndarray, "genes latent"] | None:
    """Loadings of all genes of `adata`, 0 for genes not modelled; None if the decoder has no loadings."""
    loadings = model.network.loadings()
    if loadings is None:
        return None
    rows = model.genes.get_indexer(adata.var_names.astype(str))
    return np.where((rows >= 0)[:, None], loadings.detach().cpu().numpy()[rows], np.float32(0.0))
