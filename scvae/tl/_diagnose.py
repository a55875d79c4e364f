"""`diagnose`: measures how well a fitted model describes cells, and reports its problems in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Int

from ..common.checks import check_positive_int
from ..common.html import items, named_values, page
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import write_made
from ..diagnostics.examination import Examination, examine
from ..diagnostics.findings.finding import Finding
from ..diagnostics.findings.latent import MANY
from ..diagnostics.gaps import Gap
from ..diagnostics.heads import HeadFit
from ..diagnostics.heads import compare_heads as compare
from ..diagnostics.over_correction import OverCorrection
from ..diagnostics.predictive import Predictive
from ..diagnostics.verdict import judge
from ..diagnostics.view_shares import ViewShare, view_shares
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.obs_columns import groups_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

WIDTH = 110  # characters per line of the report
DIMENSIONS_SHOWN = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Diagnosis:
    """Result of `scvae.tl.diagnose`; prints as a short report.

    Parameters
    ----------
    findings
        What was found, a `Finding` each: diseases first, then remarks.
    measured
        All measurements.
    heads
        How well each head fits, best first, measurement by measurement; empty unless `compare_heads` was set.
    n_cells
        Number of cells passed.
    training
        How training ended, in one sentence.
    views
        For a model of several measurements, what each says of the cells that have all (see Notes of
        `scvae.tl.diagnose`); else empty.
    """

    findings: tuple[Finding, ...]
    measured: Examination
    heads: tuple[HeadFit, ...]
    n_cells: int
    training: str
    views: tuple[ViewShare, ...] = ()

    @property
    def healthy(self) -> bool:
        """True if no disease was found; remarks do not count."""
        return not any(finding.severity == "disease" for finding in self.findings)

    @property
    def verdict(self) -> str:
        """The names of the diseases, or "healthy"."""
        return ", ".join(f.name for f in self.findings if f.severity == "disease") or "healthy"

    def __repr__(self) -> str:
        rows = self._rows()
        width = max(map(len, rows))
        lines = [f"scvae diagnosis: {self.verdict}", *(f"  {name:<{width}}  {value}" for name, value in rows.items())]
        for finding in self.findings:
            lines += [f"{finding.severity}: {finding.name}", *_paragraph(f"{finding.sentence}.")]
            lines += [*_paragraph(f"Cause: {finding.cause}."), *_paragraph(f"Remedy: {finding.remedy}.")]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        findings = (
            (f"{f.severity}: {f.name}", [f"{f.sentence}.", f"Cause: {f.cause}.", f"Remedy: {f.remedy}."])
            for f in self.findings
        )
        return page(f"scvae diagnosis: {self.verdict}", named_values(self._rows()), items(findings))

    def _rows(self) -> dict[str, str]:
        """Rows of the report, without the findings."""
        seen = self.measured
        usage, told, decoder, draws = seen.usage, seen.information, seen.spectrum, seen.predictive
        n = len(usage.kl)
        capped = f", saturated (cap {told.cap:.1f})" if told.saturated else f" (cap {told.cap:.1f})"
        shown = " ".join(f"{kl:.2f}" for kl in np.sort(usage.kl)[::-1][:DIMENSIONS_SHOWN])
        codes = seen.groups is not None and seen.groups.kind == "code"
        bound = ", an upper bound" if told.saturated else ""
        library = f", {draws.library_coverage:.0%} of the totals per cell" if np.ptp(draws.mean) else ""
        rows = {
            "cells": f"{seen.n_cells:,} of {self.n_cells:,}, at β = {seen.beta:g}; units are nats per cell",
            "dimensions": f"{usage.active} of {n} active, {usage.varying} varying, {usage.effective:.1f} effective",
            "KL by dimension": f"{shown}{' …' if n > DIMENSIONS_SHOWN else ''}; total {told.kl:.2f}",
            "mutual information": f"{_plus_minus(told.mutual_information, told.mutual_information_error)}{capped}, "
            f"at most {told.upper_bound:.2f}",
            "KL(q(z) || p(z))": f"{_plus_minus(told.marginal_kl, told.marginal_kl_error)}{bound}",
            "KL(q(z) || density)": "none: a code has a probability, and no density"
            if codes
            else "the model has no density at this β"
            if math.isnan(told.density_kl)
            else f"{_plus_minus(told.density_kl, told.density_kl_error)}{bound}",
            "amortization gap": _gap(seen.gaps.amortization),
            "variational gap": _gap(seen.gaps.variational),
            "decoder": f"{decoder.flat} of {n} directions flat; eigenvalues of JᵀJ {decoder.local[0]:.3g} to "
            f"{decoder.local[-1]:.2g}",
            "draws": f"90 % intervals cover {draws.coverage:.0%} of the values{library}",
            "draws, per gene": f"variance observed / drawn {draws.variance_ratio:.2f}, error of zero fractions "
            f"{draws.zero_error:.3f}",
            "training": self.training,
            "train - held out": _generalization(seen),
        }
        if seen.groups is not None:
            use, total = seen.groups, len(seen.groups.n_cells)
            rows[MANY[use.kind]] = (
                f"{total - use.empty} of {total} in use, perplexity {use.perplexity:.1f}; they tell "
                f"{use.information:.2f} of at most {math.log(total):.2f} nats"
            )
        for share in self.views:
            rows[f"view {share.name!r}"] = (
                f"log-likelihood {share.log_likelihood:.1f}; alone tells {share.rate.sum():.2f} of z"
                f"{'' if codes else f', adds {share.added:.2f} to the others'}; alone {share.distance:.0%} of the "
                f"spread away; 90 % intervals cover {share.predictive.coverage:.0%} of the values"
            )
        if seen.leak is not None:
            rows["batch predicted from z"] = f"{seen.leak.accuracy:.0%} correct, {seen.leak.chance:.0%} by chance"
        if seen.correction is not None:
            audit = seen.correction
            kept = f"{audit.kept:.0%} of" if audit.conditions_differ else "no clear"
            rows["correction"] = f"{kept} differences by {audit.condition_key}" + " kept" * audit.conditions_differ
            if np.isfinite(audit.removed).any():
                rows["correction"] += f", {np.nanmedian(audit.removed):.0%} of those between batches removed"
        for view, fits in _by_view(self.heads).items():
            of_view = "" if view is None else f" of {view!r}"
            rows[f"heads{of_view}, held out"] = "; ".join(_head(fit) for fit in fits)
        return rows


@computing()
@taking_mudata
def diagnose(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    beta: float | None = None,
    n_cells: int = 2_000,
    compare_heads: bool = False,
    condition_key: str | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
    verbose: bool = True,
) -> Diagnosis:
    """Examines a fitted model on cells and reports in words what is wrong with it, why, and what to do.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. For the cells of the fit, in the same order, the
        gap between training and held-out cells is measured; for other cells it is taken from the history of the fit.
    model
        A fitted model.
    beta
        For a model with a range of β, the β to examine; None as in `scvae.tl.embed`.
    n_cells
        Largest number of cells to examine, drawn at random (fewer in the expensive parts). Their number also caps the
        estimate of the mutual information at log n.
    compare_heads
        Whether to fit other heads with the model's settings and compare the log-likelihoods of held-out cells: for
        counts nb, zinb and poisson, which takes three fits; for 0/1 data bernoulli and poisson. With several
        measurements, that of each in turn: for further counts nb, nb_mixture, poisson and, with up to 1,000 features,
        gaussian. See Notes.
    condition_key
        Column of `adata.obs` with a condition, for a model of counts with batches: audits how much of what differs
        between batches the correction removes, and whether that is what differs between conditions. Take it if
        conditions and batches go together; a column that has nothing to do with batches needs no audit. (Five tumours,
        each with and without a drug: 68 and 81 % of what the drug changes are kept with the patients as batches (two
        seeds), 15 % with the ten samples as batches, each of which has one condition; see benchmarks/README.md.)
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slot written.
    rng
        Seed or numpy Generator.
    verbose
        Whether to show progress bars for the fits of `compare_heads`. Nothing else is printed; print the result.

    Returns
    -------
    Diagnosis
        ``verdict``, ``healthy``, ``findings`` (name, severity, sentence, cause, remedy), ``measured`` and ``heads``.
        It prints as a short report. Slot written to `adata`:

        ``uns["<key_added>"]["diagnosis"]``
            The same as strings, numbers and arrays: ``verdict``; ``findings``, one array per field; ``likelihood``;
            ``training`` (how it ended);
            ``kl_per_dimension``, ``mean_variance_per_dimension``, ``information_per_dimension`` (latent; of the
            dimensions of the network, in which q has no correlations); ``rate``, the mean KL from the prior, which is
            the sum of those of the dimensions for N(0, I) only;
            ``mutual_information``, ``marginal_kl``, ``density_kl`` (as ``marginal_kl``, from the density of the cells
            of the fit), ``amortization_gap``, ``variational_gap``, ``generalization_gap``, each with ``_error``;
            ``information_bound``, ``information_cap``; ``spectrum_local``, ``spectrum_shared`` (latent); from the
            posterior-predictive draws ``genes`` (their names), ``gene_mean``, ``gene_variance``,
            ``gene_zero_fraction``, each with ``_drawn`` (genes), ``ranks`` (20), ``coverage``, ``library_coverage``;
            ``heads``, for each name ``log_likelihood``, ``difference`` and ``error``, with several measurements within
            their names; for codes or categories ``groups``: ``kind``, ``n_cells`` (groups), ``perplexity``,
            ``information``; with several measurements ``views``, for each ``log_likelihood``, ``rate_per_dimension``,
            ``added``, ``distance``, ``n_cells`` and what is said above of draws; with `condition_key` ``correction``:
            ``condition_key``, ``removed`` (batches x groups of similar cells: share of the squared differences between
            batches that was removed), ``condition_size`` and ``corrected_size`` (differences between conditions in
            counts and in corrected expression, in nats), ``chance`` (the largest difference in counts between shuffled
            conditions), ``kept``, ``backed``, ``tracked``, ``confounded`` and ``excess``. Other entries of
            ``uns["<key_added>"]`` are kept.

    Raises
    ------
    ValueError
        As for `embed`; if fewer than 2 cells have a count, or `compare_heads` is set and nothing is counts or 0/1; if
        `condition_key` is set and the model is not of counts or has no batches, or the column is the batch itself or
        has a single value (MissingKeyError if there is none).
        `adata` is then unchanged.

    Notes
    -----
    Active dimensions: mean KL above 0.05 nats, or a variance of the posterior mean above 0.01 (Burda et al. 2016).
    Effective dimension: exp of the entropy of the shares of the KL (Roy & Vetterli 2007). Mutual information:
    E[KL] = I_q(x; z) + KL(q(z) || p(z)) (Hoffman & Johnson 2016); the density of the cells of the fit (see
    `scvae.tl.fit_density`) takes the place of p(z) in ``density_kl``. Amortization gap: Cremer et al. 2018. Variational
    gap: importance-weighted bound (Burda et al. 2016) minus ELBO. Codes are finitely many, so all of this is exact for
    them: the information is the entropy of the codes in these cells, the amortization gap is what the best code of
    each cell gains, and the variational gap is log p(x) minus ELBO. What a dimension tells is its share of the variance
    between codes, and codes have no density. For categories, ``groups`` has I_q(x; y), and the nats of y are shared out
    in ``kl_per_dimension``. JᵀJ: derivative of each gene's mean along z, in units
    of its standard deviation. Several measurements: nats that the posterior by one alone is from the prior; that the
    posterior by all is from that without it (what it adds); and the root mean square distance of the means by one alone
    from those by all, relative to their spread over cells. All else is of the first measurement, but the
    draws of each, over the cells that have all. Calibration:
    randomised ranks among draws (Czado et al. 2009).

    Heads of several measurements: log-likelihoods are those of all measurements of a cell together, of which one has
    another head, over the held-out cells that have it. The gaussian head of counts is fitted to their CLR values,
    log(1 + x) minus its mean over the features of the cell, and judged by the probability of the interval of CLR values
    that rounds to each count. These probabilities of all counts add up to 1, so they compare with those of nb; as those
    are given the library size, these are given the mean of log(1 + x). Real values can have a gaussian head only, and
    their density compares with nothing: fit the counts from which they were made.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.diagnose(adata, model).healthy
    True
    """
    check_model(model)
    keys = Keys(key_added)
    n_cells = check_positive_int(n_cells, "n_cells")
    seed = seed_of(rng)
    check_replaceable(adata.uns, keys)
    condition = None if condition_key is None else _condition(adata, model, condition_key)
    cells = read_cells(adata, model, layer)
    measured = examine(model, cells, n_cells=n_cells, beta=beta, seed=seed, condition=condition)
    heads = compare(model, cells, beta=beta, seed=seed, verbose=verbose) if compare_heads else ()
    shares = view_shares(model, cells, beta=beta, seed=seed)
    diagnosis = Diagnosis(
        findings=judge(model, measured),
        measured=measured,
        heads=heads,
        n_cells=len(cells),
        training=f"{model.outcome.epochs} epochs, best {model.outcome.best_epoch}; "
        f"β {model.outcome.beta_attained:g} attained; {model.outcome.reason}",
        views=shares,
    )
    write_made(adata, keys, model.digest, record={keys.diagnosis: _storable(diagnosis, model)})
    return diagnosis


def _condition(adata: AnnData, model: FittedModel, condition_key: str) -> tuple[str, Int[np.ndarray, " cells"]]:
    """Name of the column and code of each cell."""
    if model.schema.kind != "counts" or model.schema.batch is None:
        raise ValueError(
            f"condition_key is {condition_key!r}, but the audit is of models of counts with batch_key; leave it out"
        )
    codes, names = groups_of(adata, condition_key)
    if condition_key == model.schema.batch.key or len(names) < 2:
        raise ValueError(
            f"condition_key is {condition_key!r}, which is the batch or has a single value; pass a column of conditions"
        )
    return condition_key, codes


def _storable(diagnosis: Diagnosis, model: FittedModel) -> dict[str, Any]:
    """The diagnosis in types that h5ad files can store."""
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


def _by_view(heads: Iterable[HeadFit]) -> dict[str | None, list[HeadFit]]:
    found: dict[str | None, list[HeadFit]] = {}
    for fit in heads:
        found.setdefault(fit.view, []).append(fit)
    return found


def _of_heads(heads: Iterable[HeadFit]) -> dict[str, Any]:
    names = ("log_likelihood", "difference", "error")
    stored: dict[str, Any] = {}
    for view, fits in _by_view(heads).items():
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


def _paragraph(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="    ")


def _plus_minus(value: float, error: float) -> str:
    return f"{value:.2f} ± {error:.2f}"


def _gap(gap: Gap) -> str:
    return f"{_plus_minus(gap.value, gap.error)} ({gap.n_cells} cells)"


def _generalization(seen: Examination) -> str:
    gap = seen.generalization
    if gap.source == "none":
        return "no cells were held out"
    return _plus_minus(gap.gap, gap.error) if gap.source == "cells" else f"{gap.gap:.2f} (history of the fit)"


def _head(fit: HeadFit) -> str:
    lacks = f" ({_plus_minus(fit.difference, fit.error)} lower)" if fit.difference else " (best)"
    return f"{fit.likelihood} {fit.log_likelihood:.1f}{lacks}"
