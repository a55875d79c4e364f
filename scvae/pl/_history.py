"""`history`: the course of a training over epochs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.keys import Keys
from ._contrast import visible
from ._figure import COLOURS, INK, MARKED, given_axes, hand_over, new_axes, stored, title
from ._layout import keep_apart, lay_out, legend_inside

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

TRAINING, HELD_OUT = COLOURS[0], COLOURS[5]
BAND = 0.4  # opacity of the range of β
SETTLED = 0.1  # share of the epochs ignored when setting axis limits: the first few would flatten all others


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Run:
    """All epochs on one axis.

    Parameters
    ----------
    table
        One row per epoch, numbered from 1.
    starts
        Last epoch before each further training, and the name of that training.
    kept
        Epoch whose weights were kept; None if not recorded.
    betas
        Smallest and largest β of a model with a range of β, divided by its default; None for a single β.
    """

    table: pd.DataFrame
    starts: dict[float, str]
    kept: float | None
    betas: tuple[float, float] | None


def history(
    adata: AnnData,
    *,
    key_added: str = "scvae",
    ax: Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, Axes, Axes, Axes] | None:
    """Draws the training history: ELBO, β, distortion and rate at each epoch, for training and held-out cells.

    ELBO = -(distortion + rate), with distortion D = -E_q[log p(x | z)] and rate R = KL(q(z | x) || p(z)) (Alemi et al.
    2018), all in nats per cell, at β = 1 whatever the β of the training. For a model with a range of β they are
    averages over the range. The first tenth of the epochs may be cut off, so that later changes are visible.

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["history"]``, as written by `scvae.fit`. Fine-tuning (`scvae.tl.prune`,
        ``n_latent="auto"``) is drawn after the fit, and the training of `scvae.tl.map_query` on the query after the
        history of the reference; a dotted line separates them.
    key_added
        The `key_added` passed to `scvae.fit`.
    ax
        Four axes to draw into: ELBO, β, distortion, rate. If labels have too little room there, the figure
        gets a tight layout and their letters become smaller. None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        The four axes; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If there is no history.
    ValueError
        If the history has no epoch, or `ax` does not have four axes.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> elbo, beta, distortion, rate = scvae.pl.history(adata, show=False)
    >>> elbo.figure is rate.figure
    True
    """
    keys = Keys(key_added)
    run = _read(stored(adata, keys, "history", "scvae.fit(adata)"), adata.uns[keys.uns], keys)
    axes = new_axes(4, 2, width=9.5, height=3.0) if ax is None else given_axes(ax, 4)
    for_elbo, for_beta, for_distortion, for_rate = axes
    _draw_both(for_elbo, run, {side: run.table[f"{side}_elbo"] for side in ("train", "validation")})
    _draw_both(for_distortion, run, {side: -run.table[f"{side}_log_likelihood"] for side in ("train", "validation")})
    _draw_both(for_rate, run, {side: run.table[f"{side}_kl"] for side in ("train", "validation")})
    _draw_beta(for_beta, run)
    of = ", mean over β" if run.betas else ""
    title(for_elbo, f"ELBO (nats per cell{of})")
    title(for_distortion, f"distortion D (nats per cell{of})")
    title(for_rate, f"rate R (nats per cell{of})")
    for panel in axes:
        _mark(panel, run)
        panel.set_xlabel("epoch")
    lay_out(axes, partial(legend_inside, for_elbo, loc="lower right", framealpha=0.9))
    _name_starts(for_beta, run)
    return hand_over((for_elbo, for_beta, for_distortion, for_rate), for_elbo, drawn_into=ax, show=show, save=save)


def _read(found: Any, record: Any, keys: Keys) -> _Run:
    table = pd.DataFrame({name: np.asarray(column, dtype=np.float64) for name, column in found.items()})
    if len(table) == 0:
        raise ValueError(f"adata.uns[{keys.uns!r}]['history'] has no epoch: training ended during the first; fit again")
    starts = {float(table["epoch"].iloc[i - 1]): "fine-tuning" for i in _restarts(table["learning_rate"].to_numpy())}
    mapping = record.get("mapping", {})
    if len(mapping.get("history", {}).get("epoch", ())):
        query = pd.DataFrame({name: np.asarray(column, np.float64) for name, column in mapping["history"].items()})
        last = float(table["epoch"].iloc[-1])
        table = pd.concat([table, query.assign(epoch=query["epoch"] + last)], ignore_index=True)
        starts[last] = "mapping"
    beta = np.atleast_1d(record.get("params", {}).get("beta", np.nan))
    attained = float(record.get("beta_attained", np.nan))
    return _Run(
        table=table,
        starts=starts,
        kept=float(record["best_epoch"]) if record.get("best_epoch") else None,
        betas=(float(beta[0]) / attained, float(beta[1]) / attained) if len(beta) == 2 else None,
    )


def _restarts(rate: Float[np.ndarray, " epochs"]) -> list[int]:
    """Rows at which another training begins: the learning rate falls to the end of each training, then rises."""
    rises = np.diff(rate) > 0
    return [i + 1 for i in range(1, len(rises)) if rises[i] and not rises[i - 1]]


def _draw_both(axes: Axes, run: _Run, sides: dict[str, pd.Series]) -> None:
    """Draws training and, if any, held-out cells; lines are interrupted where another training begins."""
    settled = run.table["epoch"] > SETTLED * run.table["epoch"].iloc[-1]
    seen = []
    for values, colour, label, style in (
        (sides["train"], TRAINING, "training cells", "-"),
        (sides["validation"], HELD_OUT, "held-out cells", "--"),
    ):
        if values.isna().all():
            continue
        _broken(axes, run, values, color=visible(colour, axes), label=label, linestyle=style, linewidth=1.5)
        seen.append(values[settled].dropna())
    values = pd.concat(seen)
    values = values[np.isfinite(values)]
    if len(values) > 2:
        margin = 0.08 * max(values.max() - values.min(), 1e-3 * abs(values.max()))
        axes.set_ylim(values.min() - margin, values.max() + margin)


def _broken(axes: Axes, run: _Run, values: pd.Series, **look: Any) -> None:
    epoch = run.table["epoch"].to_numpy()
    breaks = [int(np.searchsorted(epoch, last, side="right")) for last in run.starts]
    x, y = np.insert(epoch, breaks, np.nan), np.insert(values.to_numpy(), breaks, np.nan)
    axes.plot(x, y, marker="o" if len(epoch) <= 10 else None, markersize=4, **look)


def _draw_beta(axes: Axes, run: _Run) -> None:
    """Draws β at the end of each epoch; for a model with a range of β, the whole range."""
    epoch, beta = run.table["epoch"], run.table["beta"]
    if run.betas is None:
        _broken(axes, run, beta, color=visible(INK, axes), linewidth=1.5)
        axes.set_ylim(0.0, 1.1 * max(float(beta.max()), 1e-3))
        title(axes, "β (weight of the rate)")
        return
    low, high = run.betas
    axes.fill_between(epoch, beta * low, beta * high, color=visible(COLOURS[3], axes, BAND), alpha=BAND, linewidth=0)
    _broken(axes, run, beta, color=visible(INK, axes), linewidth=1.5)
    axes.set_yscale("log")
    title(axes, f"β: one per cell, {low * beta.iloc[-1]:g} to {high * beta.iloc[-1]:g}")


def _mark(axes: Axes, run: _Run) -> None:
    """Marks the epoch kept, and where another training begins."""
    if run.kept is not None:
        label = f"epoch kept: {run.kept:.0f}"
        axes.axvline(run.kept, color=visible(MARKED, axes), linewidth=1.0, linestyle="-.", label=label)
    for last in run.starts:
        axes.axvline(last + 0.5, color=visible(INK, axes), linewidth=0.8, linestyle=":")


def _name_starts(axes: Axes, run: _Run) -> None:
    """Writes the name of each further training at the bottom of the β panel, below the curve."""
    names = [
        axes.annotate(
            name,
            (last + 0.5, 0.0),
            xycoords=("data", "axes fraction"),
            xytext=(-2, 4),
            textcoords="offset points",
            ha="right",
            va="bottom",
            rotation=90,
            fontsize="small",
            color=visible(INK, axes),
        )
        for last, name in run.starts.items()
    ]
    keep_apart(axes, names)
