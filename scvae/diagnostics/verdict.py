"""The diagnosis: turns measurements into sentences on what is wrong with a model, why, and what to do."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..inference.fitted import FittedModel
from ..inference.outcome import ACTIVE_ABOVE
from ..training.recipe import FEWEST_STEPS
from ..training.run import OVERFIT_FALL
from .examination import Examination

Severity = Literal["disease", "remark"]

ENCODER_AT_FAULT = 1.0  # nats per cell gained by optimising its posterior; no gain if the decoder ignores z
HARDLY_TOLD = 0.25  # times the KL of the optimised posteriors
OUT_OF_PROPORTION = 3.0  # times that KL: damaged encoders lost 8 to 18 times it, undertrained ones up to 2
AMORTIZATION_SHARE = 1.0  # of the KL; default fits of nine real data sets gave 0.05 to 0.22
LITTLE_INFORMATION = 1.0  # nats: too little to distinguish three cell types
CLEAR = 3.0  # standard errors
OVERFIT_GAP = 0.2  # of the training ELBO: default fits of 300 cells reach 0.13, overtrained ones 0.21 to 0.9
OVERFIT_GAP_PER_VALUE = 0.2  # nats; for real values, whose ELBO has no natural zero
SHORT_TRAINING = 0.25  # of the fewest steps that the default recipe makes
SCALE_RUN_AWAY = 0.1  # standard deviations of the gene: no measurement of cells is explained to 99 %
SCALE_AT_FLOOR = 1.1  # times the floor
GENES_RUN_AWAY = 0.1  # fraction of the genes
LEAK_EXCESS = 0.5  # halfway from chance to perfect prediction
MISCALIBRATED = 0.1  # deviation from the 90 % that an interval should cover
MOST = 2 / 3  # of the latent dimensions unused: fewer are spare
KEPT = 0.5  # of the differences between conditions: crossed fits kept 0.5 to 1.1, planted over-correction 0 to 0.2
SIZEABLE = 0.1  # nats, root mean square over genes
BEYOND_BATCHES = 3.0  # times the squares of batches within a condition: in 5 % of halves of the batches of real sets
TOLD_APART = 1.1  # groups: 0.1 nats, what a type of 2 % of the cells would tell
CELLS_FOR_EACH = 5  # with fewer, groups are empty by chance
MANY = {"code": "codes", "category": "categories"}
PAST_Z = "the decoder sees the input past z"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding of `scvae.tl.diagnose`, with its cause and remedy.

    Parameters
    ----------
    name
        Its name, such as "total collapse".
    severity
        ``"disease"``: results suffer; ``"remark"``: good to know.
    sentence
        What was found, with the numbers.
    cause
        The likely cause.
    remedy
        What to do.
    """

    name: str
    severity: Severity
    sentence: str
    cause: str
    remedy: str


def judge(model: FittedModel, seen: Examination) -> tuple[Finding, ...]:
    """All findings, diseases first; a healthy model has only remarks, or none."""
    checks: tuple[Callable[[FittedModel, Examination], Finding | None], ...] = (
        _total_collapse,
        _groups_collapsed,
        _encoder_ignores_its_input,
        _beta_too_large,
        _warm_up_missing,
        _scale_run_away,
        _batch_leak,
        _over_correction,
        _made_by_correction,
        _over_fitting,
        _not_converged,
        _beta_not_attained,
        _encoder_falls_short,
        _partial_collapse,
        _empty_groups,
        _calibration,
        _sees_the_input,
        _nothing_held_out,
    )
    found = [finding for check in checks if (finding := check(model, seen)) is not None]
    return tuple(sorted(found, key=lambda finding: finding.severity != "disease"))


def _has_codes(seen: Examination) -> bool:
    return seen.groups is not None and seen.groups.kind == "code"


def _is_deaf(seen: Examination) -> bool:
    """Whether q(z | x) is the same for every cell: no dimension above 0.05 nats, or no posterior mean that varies."""
    return seen.usage.active == 0 or seen.usage.varying == 0


def _encoder_is_at_fault(seen: Examination) -> bool:
    """Whether q carries little information about a cell although the decoder could use more."""
    gap, offered = seen.gaps.amortization, seen.gaps.optimized_kl
    if offered < ACTIVE_ABOVE or gap.value < max(ENCODER_AT_FAULT, CLEAR * gap.error):
        return False
    says_little = seen.information.mutual_information < HARDLY_TOLD * min(offered, seen.information.cap)
    return _is_deaf(seen) or (says_little and gap.value > OUT_OF_PROPORTION * offered)


def _is_collapsed(model: FittedModel, seen: Examination) -> bool:
    decoder_ignores_z = seen.spectrum.flat == model.n_latent
    return decoder_ignores_z or (_is_deaf(seen) and not _encoder_is_at_fault(seen))


def _holds_little(model: FittedModel, seen: Examination) -> bool:
    """Whether z is empty or nearly empty and the encoder is not the cause."""
    few = seen.usage.active <= model.n_latent / 2 and seen.information.upper_bound < LITTLE_INFORMATION
    return _is_collapsed(model, seen) or (few and not _encoder_is_at_fault(seen))


def _total_collapse(model: FittedModel, seen: Examination) -> Finding | None:
    if not _is_collapsed(model, seen):
        return None
    skip = model.network_config.skip
    if skip != "none":
        cause = f"{PAST_Z} (NetworkConfig.skip={skip!r}), and z costs KL"
        remedy = "leave NetworkConfig.skip at 'none'" + (", or set 'gated'" if skip == "plain" else "")
    elif _has_codes(seen):
        cause = "the data have no structure beyond depth and batch, or training failed before the codes differed"
        remedy = "look at a PCA of the data first; then try more epochs, or NetworkConfig.latent='normal'"
    elif seen.beta > 1:
        cause = f"at β = {seen.beta:g}, each nat of KL must improve the fit by more than {seen.beta:g} nats"
        remedy = "fit again with β = 1, or fit a range with scvae.fit(adata, beta=(0.1, 10)) and choose β afterwards"
    elif model.training_config.warmup == 0:
        cause = "the KL term had its full weight from the first step, before the decoder had learnt to use z"
        remedy = "set TrainingConfig(warmup=0.3) or TrainingConfig(free_bits=0.1)"
    else:
        cause = "the data have no structure beyond depth and batch, or training failed before z was used"
        remedy = "look at a PCA of the data first; then try TrainingConfig(warmup=0.5, free_bits=0.1) or a smaller β"
    what = "the posterior hardly differs between cells" if _is_deaf(seen) else "the decoder hardly depends on z"
    return Finding(
        name="total collapse",
        severity="disease",
        sentence=(
            f"the latent space is empty: {what} (KL {seen.information.kl:.2f} nats); optimising each cell's posterior "
            f"separately gains {_nats(seen)}"
        ),
        cause=cause,
        remedy=remedy,
    )


def _groups_collapsed(model: FittedModel, seen: Examination) -> Finding | None:
    use = seen.groups
    if use is None or use.told_apart >= TOLD_APART or _is_collapsed(model, seen):
        return None
    n, one = len(use.n_cells), use.kind
    many = MANY[one]
    return Finding(
        name=f"{many} collapsed",
        severity="disease",
        sentence=(
            f"the {n} {many} tell {use.information:.2f} nats about a cell, no more than {use.told_apart:.1f} of equal "
            f"size would; z holds {seen.information.kl:.1f}"
        ),
        cause=f"nearly all cells are in one {one}"
        if use.perplexity < 2
        else f"the {many} lie on each other, so that a cell is in all of them",
        remedy="let the fit run to its end, with a smaller β or TrainingConfig(free_bits=0.1); if the data have no "
        "types, set NetworkConfig.latent to 'normal'",
    )


def _encoder_ignores_its_input(model: FittedModel, seen: Examination) -> Finding | None:
    if not _encoder_is_at_fault(seen) or _is_collapsed(model, seen):
        return None
    return Finding(
        name="encoder ignores its input",
        severity="disease",
        sentence=(
            f"z holds {seen.information.mutual_information:.2f} nats about a cell, but optimising each cell's posterior"
            f" separately gains {_nats(seen)} at a KL of {seen.gaps.optimized_kl:.1f}: the decoder can use z"
        ),
        cause="the encoder's weights are damaged (learning rate too high), or these cells differ from those of the fit",
        remedy="check layer, genes and normalisation of the data; fit again with a lower TrainingConfig.learning_rate",
    )


def _beta_too_large(model: FittedModel, seen: Examination) -> Finding | None:
    if not (seen.beta > 1 and _holds_little(model, seen)):
        return None
    return Finding(
        name="β too large",
        severity="disease",
        sentence=(
            f"at β = {seen.beta:g}, {seen.usage.active} of {model.n_latent} dimensions are active and z holds at most "
            f"{seen.information.upper_bound:.1f} nats about a cell"
        ),
        cause="a dimension is used only if it improves the fit by more than β times its KL",
        remedy="use a smaller β; scvae.tune_beta(adata) shows what each β keeps",
    )


def _warm_up_missing(model: FittedModel, seen: Examination) -> Finding | None:
    if model.training_config.warmup != 0 or seen.beta == 0 or _has_codes(seen) or not _holds_little(model, seen):
        return None
    return Finding(
        name="warm-up missing",
        severity="disease",
        sentence=(
            f"{seen.usage.active} of {model.n_latent} dimensions are active, and β was {seen.beta:g} from the first "
            "step on"
        ),
        cause="dimensions that the decoder does not use yet are pushed to the prior and stay there",
        remedy="leave TrainingConfig.warmup at its default; warmup=0.5 or free_bits=0.1 helps further",
    )


def _scale_run_away(model: FittedModel, seen: Examination) -> Finding | None:
    relative, floor = seen.relative_scale, model.network_config.minimum_scale
    if len(relative) == 0:
        return None
    low = max(SCALE_RUN_AWAY, SCALE_AT_FLOOR * floor)
    share = float((relative < low).mean())
    if share < GENES_RUN_AWAY:
        return None
    return Finding(
        name="Gaussian scale run away",
        severity="disease",
        sentence=(
            f"{share:.0%} of the genes have a learnt scale below {low:.2g} standard deviations "
            f"(smallest {float(relative.min()):.2g}, lower bound {floor:g})"
        ),
        cause="the likelihood of a perfectly fitted gene is unbounded: the model degenerates into a plain autoencoder",
        remedy=(
            f"set NetworkConfig(minimum_scale={max(0.1, 2 * floor):g}) or more; use fewer latent dimensions than genes"
        ),
    )


def _batch_leak(_model: FittedModel, seen: Examination) -> Finding | None:
    leak = seen.leak
    if leak is None or leak.excess < LEAK_EXCESS:
        return None
    return Finding(
        name="batch leaks into z",
        severity="disease",
        sentence=(
            f"a cell's neighbours in z predict its batch with {leak.accuracy:.0%} accuracy, where chance is "
            f"{leak.chance:.0%}"
        ),
        cause="batches differ by more than the decoder's offsets can absorb, or contain different cell types",
        remedy=(
            "try NetworkConfig(encode_conditions=True, dispersion='gene-batch') or a larger β; no fix is needed if the "
            "batches contain different cell types"
        ),
    )


def _over_correction(_model: FittedModel, seen: Examination) -> Finding | None:
    found = seen.correction
    if found is None or not found.conditions_differ or found.condition_size < SIZEABLE or not found.kept < KEPT:
        return None
    name = repr(found.condition_key)
    kept = f"corrected expression keeps {max(found.kept, 0.0):.0%} of the differences between values of {name}"
    absorbed = f"each batch has one value of {name}, so that the decoder's offsets of batches absorb what it does"
    apart = (
        f"fit without batch_key, or with one whose batches have several values of {name}; compare conditions with "
        "scvae.tl.rank_genes(sample_key=), which does not use corrected expression"
    )
    if found.confounded and not found.excess > BEYOND_BATCHES:
        return Finding(
            name="condition goes with batches",
            severity="remark",
            sentence=f"{kept}; batches of one value differ as much, so its effect cannot be told from theirs",
            cause=absorbed,
            remedy=apart,
        )
    return Finding(
        name="over-correction",
        severity="disease",
        sentence=(
            f"{kept}, which are {found.condition_size:.2f} nats in the counts; what was removed has a correlation of "
            f"{found.tracked:.2f} with them"
        ),
        cause=absorbed if found.confounded else f"the latent space holds little of what {name} does",
        remedy=apart if found.confounded else "use a smaller β or TrainingConfig(consistency=0.3)",
    )


def _made_by_correction(_model: FittedModel, seen: Examination) -> Finding | None:
    found = seen.correction
    if found is None or found.corrected_size < SIZEABLE or not found.backed < KEPT:
        return None
    return Finding(
        name="differences made by correction",
        severity="disease",
        sentence=(
            f"corrected expression differs between values of {found.condition_key!r} by {found.corrected_size:.2f} "
            f"nats, and the counts show {max(found.backed, 0.0):.0%} of that"
        ),
        cause="cells of one condition were moved towards other kinds of cells",
        remedy="do not interpret corrected expression between conditions; fit without batch_key",
    )


def _over_fitting(model: FittedModel, seen: Examination) -> Finding | None:
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


def _not_converged(model: FittedModel, seen: Examination) -> Finding | None:
    outcome, few = model.outcome, SHORT_TRAINING * FEWEST_STEPS
    explained = _fall(model) > 0 or _scale_run_away(model, seen) is not None
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


def _beta_not_attained(model: FittedModel, _seen: Examination) -> Finding | None:
    if isinstance(model.beta, tuple) or math.isclose(model.outcome.beta_attained, model.beta, rel_tol=1e-6):
        return None
    return Finding(
        name="β not attained",
        severity="disease",
        sentence=f"β reached {model.outcome.beta_attained:g} instead of {model.beta:g}",
        cause="training ended during the warm-up",
        remedy="let the fit run to its end; with a checkpoint it continues from where it stopped",
    )


def _encoder_falls_short(model: FittedModel, seen: Examination) -> Finding | None:
    gap = seen.gaps.amortization
    share = gap.value / max(seen.gaps.optimized_kl, seen.information.kl, 1.0)
    explained = _is_collapsed(model, seen) or _encoder_is_at_fault(seen) or _not_converged(model, seen)
    if explained or share < AMORTIZATION_SHARE or gap.value < CLEAR * gap.error:
        return None
    return Finding(
        name="encoder falls short",
        severity="disease",
        sentence=f"optimising each cell's posterior separately gains {_nats(seen)}, {share:.0%} of the KL",
        cause="the encoder is too small, was trained too briefly, or these cells differ from those of the fit",
        remedy="use a larger NetworkConfig.width or more epochs; for new cells, check layer, genes and normalisation",
    )


def _partial_collapse(model: FittedModel, seen: Examination) -> Finding | None:
    """Unused dimensions are no fault if others are in use; nor are many at a large β, which is meant to empty them."""
    unused = model.n_latent - seen.usage.active
    if unused == 0 or _has_codes(seen) or _is_collapsed(model, seen) or _encoder_is_at_fault(seen):
        return None
    is_wide = unused > MOST * model.n_latent and seen.beta <= 1 and not _holds_little(model, seen)
    return Finding(
        name="partial collapse" if is_wide else "unused dimensions",
        severity="disease" if is_wide else "remark",
        sentence=(
            f"{unused} of {model.n_latent} dimensions are unused (KL below 0.05 nats); the others hold "
            f"{seen.information.kl:.1f} nats"
        ),
        cause="at this β, the KL of more dimensions would outweigh their gain in fit"
        if model.network_config.skip == "none"
        else PAST_Z,
        remedy="scvae.tl.prune(adata, model) removes them; n_latent='auto' finds the number; a smaller β or free_bits "
        "fills them"
        if model.network_config.skip == "none"
        else "leave NetworkConfig.skip at 'none', or use a smaller β",
    )


def _empty_groups(model: FittedModel, seen: Examination) -> Finding | None:
    use = seen.groups
    if use is None or use.empty == 0 or _is_collapsed(model, seen) or _groups_collapsed(model, seen):
        return None
    n, many = len(use.n_cells), MANY[use.kind]
    if seen.n_cells < CELLS_FOR_EACH * n:
        return None
    setting = {"code": "n_codes", "category": "n_categories"}[use.kind]
    return Finding(
        name=f"empty {many}",
        severity="disease" if use.empty > MOST * n else "remark",
        sentence=f"{use.empty} of {n} {many} have none of the {seen.n_cells:,} cells; perplexity {use.perplexity:.1f}",
        cause=f"these cells have fewer states than there are {many}",
        remedy=f"fit with NetworkConfig.{setting}={max(2, n - use.empty)}; no fix is needed if these are some cells of "
        "the fit only",
    )


def _calibration(model: FittedModel, seen: Examination) -> Finding | None:
    coverage = seen.predictive.coverage
    if not abs(coverage - 0.9) > MISCALIBRATED:  # nor if it is not a number
        return None
    narrow = coverage < 0.9
    return Finding(
        name="miscalibrated head",
        severity="remark",
        sentence=f"the model's 90 % predictive intervals cover {coverage:.0%} of the values",
        cause=f"the {model.likelihood} head predicts too {'little' if narrow else 'much'} spread",
        remedy="compare heads with scvae.tl.diagnose(adata, model, compare_heads=True)",
    )


def _sees_the_input(model: FittedModel, _seen: Examination) -> Finding | None:
    if model.network_config.skip == "none":
        return None
    return Finding(
        name="likelihood of seen data",
        severity="remark",
        sentence=f"{PAST_Z}, so log p(x | z), the ELBO and all bounds here are no densities of x",
        cause=f"NetworkConfig.skip={model.network_config.skip!r}: the decoder predicts counts that it has read",
        remedy="do not compare its likelihoods with those of other models; fit with skip='none' for that",
    )


def _nothing_held_out(model: FittedModel, seen: Examination) -> Finding | None:
    if seen.generalization.source != "none":
        return None
    return Finding(
        name="nothing held out",
        severity="remark",
        sentence="over-fitting cannot be judged: the fit held out no cells",
        cause=f"TrainingConfig.validation_fraction is {model.training_config.validation_fraction:g}, or cells are few",
        remedy="fit with validation_fraction=0.1, the default",
    )


def _nats(seen: Examination) -> str:
    gap = seen.gaps.amortization
    return f"{gap.value:.2f} ± {gap.error:.2f} nats"
