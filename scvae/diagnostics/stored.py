"""A diagnosis in types that h5ad files can store."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np

from ..inference.fitted import FittedModel
from .diagnosis import Diagnosis, by_view
from .heads import HeadFit
from .over_correction import OverCorrection
from .predictive import Predictive
from .view_shares import ViewShare


def storable(diagnosis: Diagnosis, model: FittedModel) -> dict[str, Any]:
    """The entry of the record in `uns`."""
    seen, findings = diagnosis.measured, diagnosis.findings
    told, draws, gap = seen.information, seen.predictive, seen.generalization
    fields = ("name", "severity", "sentence", "cause", "remedy")
    return {
        "verdict": diagnosis.verdict,
        "healthy": diagnosis.healthy,
        "findings": {field: np.array([getattr(f, field) for f in findings], dtype=str) for field in fields},
        "likelihood": model.likelihood,
        "training": diagnosis.training,
        "beta": seen.beta,
        "n_cells": seen.n_cells,
        "kl_per_dimension": seen.usage.kl,
        "mean_variance_per_dimension": seen.usage.mean_variance,
        "active_dimensions": seen.usage.active,
        "varying_dimensions": seen.usage.varying,
        "effective_dimension": seen.usage.effective,
        "information_per_dimension": told.per_dimension,
        "rate": told.kl,
        "mutual_information": told.mutual_information,
        "mutual_information_error": told.mutual_information_error,
        "information_bound": told.upper_bound,
        "information_cap": told.cap,
        "saturated": told.saturated,
        "marginal_kl": told.marginal_kl,
        "marginal_kl_error": told.marginal_kl_error,
        "density_kl": told.density_kl,
        "density_kl_error": told.density_kl_error,
        "amortization_gap": seen.gaps.amortization.value,
        "amortization_gap_error": seen.gaps.amortization.error,
        "variational_gap": seen.gaps.variational.value,
        "variational_gap_error": seen.gaps.variational.error,
        "generalization_gap": gap.gap,
        "generalization_gap_error": gap.error,
        "spectrum_local": seen.spectrum.local,
        "spectrum_shared": seen.spectrum.shared,
        **_of_draws(model.schema.genes, draws),
        **({} if seen.groups is None else {"groups": asdict(seen.groups)}),
        **({"views": {share.name: _share(share) for share in diagnosis.views}} if diagnosis.views else {}),
        **({} if seen.correction is None else {"correction": _of_correction(seen.correction)}),
        **({} if seen.leak is None else {"batch_accuracy": seen.leak.accuracy, "batch_chance": seen.leak.chance}),
        "heads": _of_heads(diagnosis.heads),
    }


def _of_heads(heads: Iterable[HeadFit]) -> dict[str, Any]:
    names = ("log_likelihood", "difference", "error")
    stored: dict[str, Any] = {}
    for view, fits in by_view(heads).items():
        of_view: dict[str, Any] = {fit.likelihood: {name: getattr(fit, name) for name in names} for fit in fits}
        stored |= of_view if view is None else {view: of_view}
    return stored


def _share(share: ViewShare) -> dict[str, Any]:
    return {
        "likelihood": share.likelihood,
        "log_likelihood": share.log_likelihood,
        "rate_per_dimension": share.rate,
        "added": share.added,
        "distance": share.distance,
        "n_cells": share.n_cells,
        **_of_draws(share.features, share.predictive),
    }


def _of_draws(names: tuple[str, ...], draws: Predictive) -> dict[str, Any]:
    return {
        "genes": np.array(names, dtype=str),
        "gene_mean": draws.mean,
        "gene_mean_drawn": draws.drawn_mean,
        "gene_variance": draws.variance,
        "gene_variance_drawn": draws.drawn_variance,
        "gene_zero_fraction": draws.zero_fraction,
        "gene_zero_fraction_drawn": draws.drawn_zero_fraction,
        "ranks": draws.ranks,
        "coverage": draws.coverage,
        "library_coverage": draws.library_coverage,
    }


def _of_correction(found: OverCorrection) -> dict[str, Any]:
    names = ("condition_key", "removed", "condition_size", "corrected_size", "chance", "kept", "backed", "tracked")
    return {name: getattr(found, name) for name in (*names, "confounded", "excess")}
