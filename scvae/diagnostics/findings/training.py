"""What is wrong with the training: too long, too short, ended in the warm-up, or without held-out cells."""

from __future__ import annotations

import math

import numpy as np

from ...inference.fitted import FittedModel
from ...training.recipe import FEWEST_STEPS
from ...training.run import OVERFIT_FALL
from ..examination import Examination
from .finding import CLEAR, Finding
from .head import scale_run_away

OVERFIT_GAP = 0.2  # of the training ELBO: default fits of 300 cells reach 0.13, overtrained ones 0.21 to 0.9
OVERFIT_GAP_PER_VALUE = 0.2  # nats; for real values, whose ELBO has no natural zero
SHORT_TRAINING = 0.25  # of the fewest steps that the default recipe makes


def over_fitting(model: FittedModel, seen: Examination) -> Finding | None:
    """Held-out cells that are described worse than those of the training, or worse and worse."""
    gap, fall = seen.generalization, _fall(model)
    kept = model.history[model.history["epoch"] == model.outcome.best_epoch]
    if len(kept) == 0:
        return None
    real = model.schema.kind == "real"
    limit = OVERFIT_GAP_PER_VALUE * len(model.genes) if real else OVERFIT_GAP * abs(float(kept["train_elbo"].iloc[0]))
    error = 0.0 if math.isnan(gap.error) else gap.error
    by_gap, by_fall = gap.gap - CLEAR * error > limit, fall > 0
    if not (by_gap or by_fall):
        return None
    lost = f"; the held-out objective has fallen by {fall:.1f} nats since its best epoch" if by_fall else ""
    return Finding(
        name="over-fitting",
        severity="disease",
        sentence=f"the ELBO of training cells is {gap.gap:.1f} nats better than that of held-out cells{lost}",
        cause="the decoder has learnt the noise of the cells: too many epochs or weights for this number of cells",
        remedy="use fewer epochs, a shorter warmup (only epochs after it are kept) or a smaller NetworkConfig.width",
    )


def _fall(model: FittedModel) -> float:
    """Fall of the held-out objective, at the final β, from its best epoch to the one kept, in nats; 0 if it is small.

    A fall counts only if the objective of the training cells still improves.
    """
    history = model.history
    if isinstance(model.beta, tuple) or history["validation_elbo"].isna().all() or not model.outcome.best_epoch:
        return 0.0
    train, held_out = (
        (history[f"{kind}_log_likelihood"] - model.beta * history[f"{kind}_kl"]).to_numpy()
        for kind in ("train", "validation")
    )
    kept, best = model.outcome.best_epoch - 1, int(np.nanargmax(held_out))
    fall = float(held_out[best] - held_out[kept])
    large = OVERFIT_FALL * abs(float(held_out[best]))
    if model.schema.kind == "real":
        large = OVERFIT_FALL * len(model.genes)
    return fall if best < kept and train[kept] > train[best] and fall > large else 0.0


def not_converged(model: FittedModel, seen: Examination) -> Finding | None:
    """A training of few steps, or whose objective still moved."""
    outcome, few = model.outcome, SHORT_TRAINING * FEWEST_STEPS
    explained = _fall(model) > 0 or scale_run_away(model, seen) is not None
    short, moving = seen.steps < few, not (outcome.converged or explained)
    if not (short or moving):
        return None
    steps = "" if math.isnan(seen.steps) else f", {seen.steps:,.0f} steps"
    if model.training_config.epochs is None:
        remedy = f"set TrainingConfig.epochs above {outcome.epochs}, and compare model.outcome.held_out_elbo"
    else:
        remedy = "leave TrainingConfig.epochs at its default, which depends on the number of cells, or set it higher"
    return Finding(
        name="not converged",
        severity="disease",
        sentence=f"training ended after {outcome.epochs} epochs{steps}{f'; {outcome.reason}' if moving else ''}",
        cause=f"fewer than {few:.0f} steps are too few for data of any size"
        if short
        else "the run was too short or was stopped",
        remedy=remedy,
    )


def beta_not_attained(model: FittedModel, _seen: Examination) -> Finding | None:
    """A warm-up that did not end."""
    if isinstance(model.beta, tuple) or math.isclose(model.outcome.beta_attained, model.beta, rel_tol=1e-6):
        return None
    return Finding(
        name="β not attained",
        severity="disease",
        sentence=f"β reached {model.outcome.beta_attained:g} instead of {model.beta:g}",
        cause="training ended during the warm-up",
        remedy="let the fit run to its end; with a checkpoint it continues from where it stopped",
    )


def nothing_held_out(model: FittedModel, seen: Examination) -> Finding | None:
    """No cells to judge over-fitting on."""
    if seen.generalization.source != "none":
        return None
    return Finding(
        name="nothing held out",
        severity="remark",
        sentence="over-fitting cannot be judged: the fit held out no cells",
        cause=f"TrainingConfig.validation_fraction is {model.training_config.validation_fraction:g}, or cells are few",
        remedy="fit with validation_fraction=0.1, the default",
    )
