"""What is wrong with z: a collapse of all, of groups or of some dimensions, and an encoder that falls short."""

from __future__ import annotations

from ...inference.fitted import FittedModel
from ...inference.outcome import ACTIVE_ABOVE
from ..examination import Examination
from .finding import CLEAR, PAST_Z, Finding
from .training import not_converged

ENCODER_AT_FAULT = 1.0  # nats per cell gained by optimising its posterior; no gain if the decoder ignores z
HARDLY_TOLD = 0.25  # times the KL of the optimised posteriors
OUT_OF_PROPORTION = 3.0  # times that KL: damaged encoders lost 8 to 18 times it, undertrained ones up to 2
AMORTIZATION_SHARE = 1.0  # of the KL; default fits of nine real data sets gave 0.05 to 0.22
LITTLE_INFORMATION = 1.0  # nats: too little to distinguish three cell types
MOST = 2 / 3  # of the latent dimensions unused: fewer are spare
TOLD_APART = 1.1  # groups: 0.1 nats, what a type of 2 % of the cells would tell
CELLS_FOR_EACH = 5  # with fewer, groups are empty by chance
MANY = {"code": "codes", "category": "categories"}


def total_collapse(model: FittedModel, seen: Examination) -> Finding | None:
    """A latent space that says nothing of a cell."""
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


def groups_collapsed(model: FittedModel, seen: Examination) -> Finding | None:
    """Categories or codes that say nothing of a cell."""
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


def encoder_ignores_its_input(model: FittedModel, seen: Examination) -> Finding | None:
    """A posterior that says little although the decoder could use more."""
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


def beta_too_large(model: FittedModel, seen: Examination) -> Finding | None:
    """A weight of the KL at which hardly any dimension pays."""
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


def warm_up_missing(model: FittedModel, seen: Examination) -> Finding | None:
    """The full weight of the KL from the first step on, and little in z."""
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


def encoder_falls_short(model: FittedModel, seen: Examination) -> Finding | None:
    """A posterior that is much worse than the best one of each cell."""
    gap = seen.gaps.amortization
    share = gap.value / max(seen.gaps.optimized_kl, seen.information.kl, 1.0)
    explained = _is_collapsed(model, seen) or _encoder_is_at_fault(seen) or not_converged(model, seen)
    if explained or share < AMORTIZATION_SHARE or gap.value < CLEAR * gap.error:
        return None
    return Finding(
        name="encoder falls short",
        severity="disease",
        sentence=f"optimising each cell's posterior separately gains {_nats(seen)}, {share:.0%} of the KL",
        cause="the encoder is too small, was trained too briefly, or these cells differ from those of the fit",
        remedy="use a larger NetworkConfig.width or more epochs; for new cells, check layer, genes and normalisation",
    )


def partial_collapse(model: FittedModel, seen: Examination) -> Finding | None:
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


def empty_groups(model: FittedModel, seen: Examination) -> Finding | None:
    """Categories or codes without cells."""
    use = seen.groups
    if use is None or use.empty == 0 or _is_collapsed(model, seen) or groups_collapsed(model, seen):
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


def _nats(seen: Examination) -> str:
    gap = seen.gaps.amortization
    return f"{gap.value:.2f} ± {gap.error:.2f} nats"
