"""What is wrong with the correction for batches: too little, too much, or differences that it made."""

from __future__ import annotations

from ...inference.fitted import FittedModel
from ..examination import Examination
from .finding import Finding

LEAK_EXCESS = 0.5  # halfway from chance to perfect prediction
KEPT = 0.5  # of the differences between conditions: crossed fits kept 0.5 to 1.1, planted over-correction 0 to 0.2
SIZEABLE = 0.1  # nats, root mean square over genes
BEYOND_BATCHES = 3.0  # times the squares of batches within a condition: in 5 % of halves of the batches of real sets


def batch_leak(_model: FittedModel, seen: Examination) -> Finding | None:
    """Neighbours in z that predict the batch."""
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


def over_correction(_model: FittedModel, seen: Examination) -> Finding | None:
    """Differences between conditions that the correction removed."""
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


def made_by_correction(_model: FittedModel, seen: Examination) -> Finding | None:
    """Differences between conditions that the counts do not show."""
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
