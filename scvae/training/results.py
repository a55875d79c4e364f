"""What an AnnData keeps of a fitted model: settings, course and outcome."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..config import to_json
from ..inference.fitted import FittedModel


def record_of(model: FittedModel) -> dict[str, Any]:
    """uns[key]: only types that h5ad and zarr files can hold, so None becomes "none" and tuples arrays."""
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
