"""The diagnosis: turns measurements into sentences on what is wrong with a model, why, and what to do."""

from __future__ import annotations

from collections.abc import Callable

from ..inference.fitted import FittedModel
from .examination import Examination
from .findings import correction, head, labels, latent, training
from .findings.finding import Finding


def judge(model: FittedModel, seen: Examination) -> tuple[Finding, ...]:
    """All findings, diseases first; a healthy model has only remarks, or none."""
    checks: tuple[Callable[[FittedModel, Examination], Finding | None], ...] = (
        latent.total_collapse,
        latent.groups_collapsed,
        latent.encoder_ignores_its_input,
        latent.beta_too_large,
        latent.warm_up_missing,
        head.scale_run_away,
        correction.batch_leak,
        correction.over_correction,
        correction.made_by_correction,
        labels.wrong_labels,
        training.over_fitting,
        training.not_converged,
        training.beta_not_attained,
        latent.encoder_falls_short,
        latent.partial_collapse,
        latent.empty_groups,
        head.calibration,
        head.sees_the_input,
        training.nothing_held_out,
    )
    found = [finding for check in checks if (finding := check(model, seen)) is not None]
    return tuple(sorted(found, key=lambda finding: finding.severity != "disease"))
