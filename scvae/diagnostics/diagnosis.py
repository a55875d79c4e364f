"""The result of a diagnosis, and its report in words."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ..common.html import items, named_values, page
from .examination import Examination
from .findings.finding import Finding
from .findings.latent import MANY
from .gaps import Gap
from .heads import HeadFit
from .view_shares import ViewShare

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
        for view, fits in by_view(self.heads).items():
            of_view = "" if view is None else f" of {view!r}"
            rows[f"heads{of_view}, held out"] = "; ".join(_head(fit) for fit in fits)
        return rows


def by_view(heads: Iterable[HeadFit]) -> dict[str | None, list[HeadFit]]:
    """The heads of each measurement, in their order."""
    found: dict[str | None, list[HeadFit]] = {}
    for fit in heads:
        found.setdefault(fit.view, []).append(fit)
    return found


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
