"""What is wrong with the head: scales that run away, intervals that do not hold, a likelihood of seen data."""

from __future__ import annotations

from ...inference.fitted import FittedModel
from ..examination import Examination
from .finding import PAST_Z, Finding

SCALE_RUN_AWAY = 0.1  # standard deviations of the gene: no measurement of cells is explained to 99 %
SCALE_AT_FLOOR = 1.1  # times the floor
GENES_RUN_AWAY = 0.1  # fraction of the genes
MISCALIBRATED = 0.1  # deviation from the 90 % that an interval should cover


def scale_run_away(model: FittedModel, seen: Examination) -> Finding | None:
    """Genes of a Gaussian head whose learnt scale is next to nothing."""
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


def calibration(model: FittedModel, seen: Examination) -> Finding | None:
    """Predictive intervals that cover more or fewer values than they say."""
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


def sees_the_input(model: FittedModel, _seen: Examination) -> Finding | None:
    """A decoder with a skip from the input."""
    if model.network_config.skip == "none":
        return None
    return Finding(
        name="likelihood of seen data",
        severity="remark",
        sentence=f"{PAST_Z}, so log p(x | z), the ELBO and all bounds here are no densities of x",
        cause=f"NetworkConfig.skip={model.network_config.skip!r}: the decoder predicts counts that it has read",
        remedy="do not compare its likelihoods with those of other models; fit with skip='none' for that",
    )
