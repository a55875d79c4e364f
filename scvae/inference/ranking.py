"""Genes in the order of how sure it is that they differ between two groups, from estimates and their errors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.special import log_ndtr

from .contrast import Contrast
from .differential import tested
from .donor_contrasts import DonorContrast
from .donors import weighted_fdr
from .shrinkage import Posterior, bayesian_fdr, shrink

LOG_2 = float(np.log(2.0))
HELD = {
    "method": "scvae",
    "corr_method": "Bayesian FDR",
    "pvals_hold": "posterior error probability: that the gene does not change in the direction of its score (by more "
    "than lfc_threshold); not a p-value",
    "pvals_adj_hold": "Bayesian FDR: mean of these probabilities over all genes at least as certain",
    "scores_hold": "signed root of the likelihood ratio against no change",
    "logfoldchanges_hold": "posterior mean, base 2, relative to centre",
}
HELD_OF_DONORS = HELD | {
    "corr_method": "benjamini-hochberg",
    "pvals_hold": "p-value with donors as the sample: that the gene does not change (by more than lfc_threshold)",
    "pvals_adj_hold": "Benjamini-Hochberg",
    "scores_hold": "normal score of the p-value, with the sign of the change",
    "lfsr_hold": "posterior probability that the gene does not change in the direction of its score",
    "donor_sd_hold": "standard deviation of donors in log mean, base 2",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranking:
    """Columns of one group, best score first, and values that apply to the whole group."""

    columns: dict[str, np.ndarray]
    detected: np.ndarray
    detected_reference: np.ndarray
    n_cells: int
    n_cells_reference: int
    centre: float
    unchanged: float
    donors: DonorContrast | None


def ranked(
    found: Contrast | DonorContrast,
    genes: np.ndarray,
    measured: Int[np.ndarray, " measured"],
    n_stored: int,
    threshold: float,
    least: float,
) -> Ranking:
    """Shrinks the estimates of genes with enough counts; other measured genes rank as unchanged."""
    donors = found if isinstance(found, DonorContrast) else None
    contrast = found.contrast if isinstance(found, DonorContrast) else found
    judged = tested(contrast, max(least, 1.0) if donors else least) & np.isin(np.arange(len(genes)), measured)
    values = {name: np.zeros(len(genes)) for name in ("scores", "logfoldchanges", "logfoldchanges_sd")}
    values |= {name: np.ones(len(genes)) for name in ("pvals", "pvals_adj", *(("lfsr",) if donors else ()))}
    centre, unchanged = 0.0, 1.0
    if judged.any():
        estimate, error = contrast.estimate[judged], contrast.error[judged]
        posterior = shrink(estimate, error, threshold=threshold)
        centre, unchanged = posterior.centre / LOG_2, posterior.unchanged
        scored = error if donors is None else donors.tail_error[judged]
        values["scores"][judged] = (estimate - posterior.centre) / scored
        values["logfoldchanges"][judged] = posterior.mean / LOG_2
        values["logfoldchanges_sd"][judged] = posterior.sd / LOG_2
        certainty = (
            _certainty(posterior) if donors is None else _p_values(estimate, scored, threshold, posterior.centre)
        )
        for name, column in certainty.items():
            values[name][judged] = column
    order = measured[np.argsort(-values["scores"][measured], kind="stable")][:n_stored]
    columns = {"names": genes} | values | {"means": contrast.group.mean, "means_reference": contrast.reference.mean}
    if donors is not None:
        columns["donor_sd"] = donors.donor_sd / LOG_2
    return Ranking(
        columns={name: column[order] for name, column in columns.items()},
        detected=contrast.group.detected[measured],
        detected_reference=contrast.reference.detected[measured],
        n_cells=contrast.group.n_cells,
        n_cells_reference=contrast.reference.n_cells,
        centre=centre,
        unchanged=unchanged,
        donors=donors,
    )


def _certainty(posterior: Posterior) -> dict[str, np.ndarray]:
    return {"pvals": posterior.error_probability, "pvals_adj": bayesian_fdr(posterior.error_probability)}


def _p_values(
    estimate: Float[np.ndarray, " judged"], error: Float[np.ndarray, " judged"], threshold: float, centre: float
) -> dict[str, np.ndarray]:
    """p-values of changes beyond the threshold (McCarthy & Smyth 2009), adjusted for the number of genes.

    The shrinkage alone would lose genes if donors are few: it takes the heavy tails of their scores for small changes.
    """
    change = np.abs(estimate - centre)
    log_p = np.logaddexp(log_ndtr((threshold - change) / error), log_ndtr((-threshold - change) / error))
    return {
        "pvals": np.exp(np.minimum(log_p, 0.0)),
        "pvals_adj": weighted_fdr(log_p, np.ones_like(log_p)),
        "lfsr": shrink(estimate, error, threshold=threshold).error_probability,
    }
