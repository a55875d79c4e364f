"""What is wrong with the labels that a fit listened to."""

from __future__ import annotations

from ...inference.fitted import FittedModel
from ..examination import Examination
from .finding import Finding

WRONG = 0.08  # share of labels; measured: "Labels" in benchmarks/README.md


def wrong_labels(model: FittedModel, _seen: Examination) -> Finding | None:
    """Held-out labels that look random."""
    known = model.labels
    if known is None or known.uniform < WRONG:
        return None
    return Finding(
        name="wrong labels",
        severity="disease",
        sentence=f"of the {len(known.truth):,} labels held out of the training, {known.uniform:.0%} look random",
        cause="some labels are wrong, and a fit that listens to labels listens to wrong ones, too",
        remedy=(
            "mend the labels, fit with label_weight=1, or fit without labels_key and name cells with "
            "scvae.tl.transfer_labels, which wrong labels hurt less"
        ),
    )
