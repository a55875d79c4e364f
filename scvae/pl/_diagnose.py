"""`diagnose`: the findings of `scvae.tl.diagnose` on one page."""

from __future__ import annotations

import math
import os
import textwrap
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.keys import Keys
from ._contrast import visible
from ._dimensions import ACTIVE_ABOVE, draw_kl
from ._figure import COLOURS, GREY, INK, MARKED, MARKERS, font_scale, hand_over, stored, title
from ._layout import keep_apart, lay_out, legend_inside
from ._posterior_predictive import draw_ranks, draw_variances

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

WIDTH, HEIGHT, LINE = 11.0, 6.6, 0.19  # inches at 10 pt: page, its six panels, a line of text
CHARACTERS, BOLD = 140, 80  # per line of text, and of the verdict
FLAT_BELOW = math.expm1(2.0 * ACTIVE_ABOVE)  # eigenvalue e of a direction with 1/2 log(1 + e) = 0.05 nats
SMALLEST = 1e-6  # eigenvalue drawn
GAPS = {"amortization_gap": "amortization", "variational_gap": "variational", "generalization_gap": "train − held out"}


def diagnose(
    adata: AnnData,
    *,
    key_added: str = "scvae",
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, ...] | None:
    """Draws a diagnosis on one page: six panels, and below them the findings with causes and remedies.

    The panels show the KL of each dimension (unused ones in grey); the parts of the rate, E[KL] = I_q(x; z) +
    KL(q(z) || p(z)) (Hoffman & Johnson 2016), with the cap set by the number of cells; the gaps; the eigenvalues of
    JᵀJ, where directions below the dotted line are ignored by the decoder; and the variances of genes and ranks of
    values as in `scvae.pl.posterior_predictive`.

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["diagnosis"]``, as written by `scvae.tl.diagnose`.
    key_added
        The `key_added` passed to `scvae.tl.diagnose`.
    show
        Whether to show the figure; None shows it if `save` is not given and scanpy's setting ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        The axes of the six panels, row by row; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If there is no diagnosis.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> diagnosis = scvae.tl.diagnose(adata, model)
    >>> len(scvae.pl.diagnose(adata, show=False))
    6
    """
    from matplotlib import pyplot as plt
    from matplotlib import rcParams

    keys = Keys(key_added)
    found = stored(adata, keys, keys.diagnosis, "scvae.tl.diagnose(adata, model)")
    verdict, *lines = _words(found)
    below = LINE * (len(lines) + 2)
    size = (WIDTH * font_scale(), (HEIGHT + below) * font_scale())
    figure = plt.figure(figsize=size, layout="constrained")
    page, words = figure.subfigures(2, 1, squeeze=False, height_ratios=[HEIGHT, below]).ravel()
    axes = page.subplots(2, 3)
    page.get_layout_engine().set(h_pad=0.1, w_pad=0.1)
    draw_kl(axes[0, 0], np.asarray(found["kl_per_dimension"], np.float64))
    _draw_rate(axes[0, 1], found)
    _draw_gaps(axes[0, 2], found)
    _draw_spectrum(axes[1, 0], found)
    names = draw_variances(axes[1, 1], found)
    draw_ranks(axes[1, 2], found)
    colour = visible(INK if found["healthy"] else MARKED, figure)
    page.suptitle(textwrap.fill(verdict, BOLD), x=0.01, ha="left", fontweight="bold", color=colour)
    words.text(
        0.01, 0.98, "\n".join(lines), ha="left", va="top", fontsize=0.9 * rcParams["font.size"], linespacing=1.35
    )
    lay_out(axes.ravel(), partial(_explain, axes[0, 1], axes[1, 0]))
    keep_apart(axes[1, 1], names)
    return hand_over(tuple(axes.ravel()), axes[0, 0], drawn_into=None, show=show, save=save)


def _words(found: Mapping[str, Any]) -> list[str]:
    """The verdict, how the training ended, and the findings."""
    lines = [f"scvae diagnosis: {found['verdict']}"]
    lines += _wrapped(
        f"{found['likelihood']}, β = {found['beta']:g}, {found['n_cells']:,} cells. Training: {found['training']}."
    )
    if "batch_accuracy" in found:
        told, chance = found["batch_accuracy"], found["batch_chance"]
        lines.append(f"Batch predicted from z: {told:.0%} correct, {chance:.0%} by chance.")
    if "groups" in found:
        use = found["groups"]
        counts, many = np.asarray(use["n_cells"]), {"code": "codes", "category": "categories"}[use["kind"]]
        lines.append(
            f"{(counts > 0).sum()} of {len(counts)} {many} in use, perplexity {use['perplexity']:.1f}; they tell "
            f"{use['information']:.2f} of at most {math.log(len(counts)):.2f} nats."
        )
    fields = (np.atleast_1d(found["findings"][name]) for name in ("name", "severity", "sentence", "cause", "remedy"))
    for name, severity, sentence, cause, remedy in zip(*fields, strict=True):
        lines += _wrapped(f"{severity}: {name}. {sentence}. Cause: {cause}. Remedy: {remedy}.")
    return lines


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text.replace("$", r"\$"), CHARACTERS, subsequent_indent="    ")


def _explain(rate: Axes, spectrum: Axes, scale: float) -> None:
    legend_inside(rate, scale, loc="upper left", frameon=False)
    legend_inside(spectrum, scale, loc="lower left", frameon=False)


def _draw_rate(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draws the rate as the sum of mutual information and marginal KL."""
    told, apart = float(found["mutual_information"]), float(found["marginal_kl"])
    parts = ((told, "mutual_information_error", COLOURS[0]), (apart, "marginal_kl_error", GREY))
    ink = visible(INK, axes)
    for place, (value, error, colour) in enumerate(parts):
        spread = float(found[error])
        axes.bar(place, value, yerr=spread, color=visible(colour, axes), ecolor=ink, width=0.6, capsize=3)
    kl = float(found["rate"]) if "rate" in found else float(np.sum(found["kl_per_dimension"]))  # of earlier versions
    axes.bar(2, kl, color=ink, width=0.6)
    axes.set_xticks(range(3), ["I(x; z)", "KL(q(z) ‖ p(z))", "rate"], fontsize="small")
    cap, bound = float(found["information_cap"]), float(found["information_bound"])
    label = f"cap of I, log(number of cells): {cap:.1f}"
    axes.axhline(cap, color=ink, linewidth=1.0, linestyle=":", label=label)
    label = f"upper bound of I: {bound:.1f}"
    axes.hlines(bound, -0.4, 0.4, color=visible(MARKED, axes), linewidth=1.5, linestyle="--", label=label)
    axes.set_ylim(min(0.0, told, apart), 1.45 * max(kl, cap, bound))
    axes.set_ylabel("nats per cell")
    title(axes, "information" + (" (saturated)" if found["saturated"] else ""))


def _draw_gaps(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draws the losses due to amortization, to a normal posterior, and from training to held-out cells."""
    places = np.arange(len(GAPS))
    values = np.array([float(found[name]) for name in GAPS])
    errors = np.array([float(found[f"{name}_error"]) for name in GAPS])
    axes.errorbar(
        values,
        places,
        xerr=np.nan_to_num(errors),
        fmt="o",
        color=visible(COLOURS[0], axes),
        capsize=4,
        markersize=6,
        elinewidth=1.5,
    )
    for place, value in zip(places, values, strict=True):
        axes.annotate(
            f"{value:.2f}" if np.isfinite(value) else "not known",
            (value if np.isfinite(value) else 0.0, place),
            xytext=(6, 6),
            textcoords="offset points",
            color=visible(INK, axes),
        )
    axes.axvline(0.0, color=visible(INK, axes), linewidth=0.8)
    axes.set_yticks(places, list(GAPS.values()), fontsize="small")
    axes.set_ylim(len(GAPS) - 0.5, -0.6)
    low, high = axes.get_xlim()
    axes.set_xlim(low, high + 0.3 * (high - low))  # for the last number
    axes.set_xlabel("nats per cell, ± standard error")
    title(axes, "gaps")


def _draw_spectrum(axes: Axes, found: Mapping[str, Any]) -> None:
    """Draws the eigenvalues of JᵀJ at single cells, and of its mean over cells."""
    from matplotlib.ticker import MaxNLocator

    for i, (name, label) in enumerate((("spectrum_local", "at a cell"), ("spectrum_shared", "of the mean over cells"))):
        values = np.asarray(found[name], np.float64)
        axes.plot(
            np.arange(1, len(values) + 1),
            np.maximum(values, SMALLEST),
            color=visible(COLOURS[i], axes),
            marker=MARKERS[i],
            markersize=5,
            linewidth=1.2,
            label=label,
        )
    axes.axhline(FLAT_BELOW, color=visible(INK, axes), linewidth=1.0, linestyle=":", label="flat below")
    axes.set_yscale("log")
    axes.set_xlabel("direction")
    axes.set_ylabel("eigenvalue of JᵀJ")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    flat = int((np.asarray(found["spectrum_shared"]) < FLAT_BELOW).sum())
    title(axes, f"decoder: {flat} of {len(found['spectrum_shared'])} directions flat")
