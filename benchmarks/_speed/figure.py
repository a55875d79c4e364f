"""Draws the JSON files of the parts as one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .runner import Row
from .tables import slope

# Okabe & Ito's colours, distinguishable with any colour vision; line styles and hatching also distinguish them
OURS, PEER, THIRD, FOURTH, FAINT = "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#999999"
CURVES = 3  # data sets to draw
STYLE: dict[Any, Any] = {"font.size": 9, "axes.titlesize": 10, "axes.spines.top": False, "axes.spines.right": False}


def draw(records: Mapping[str, Row], path: Path) -> None:
    """Writes the picture: held-out ELBO against seconds for three data sets, cells per second, shares, growth."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 7.2), layout="constrained")
        axes = figure.subplots(2, 3)
        curves = records["quality_time"]["rows"][:CURVES] if "quality_time" in records else []
        for ax, row in zip(axes[0], curves, strict=False):
            draw_curves(ax, row)
        training = records["training"]["rows"] if "training" in records else []
        growth = records["growth"]["rows"] if "growth" in records else []
        if curves:
            axes[0, 0].set_ylabel("held-out ELBO, nats per cell")
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
        if training:
            draw_rates(axes[1, 0], training)
            draw_shares(axes[1, 1], training)
        if growth:
            draw_growth(axes[1, 2], growth)
        for ax in axes.flat:
            ax.set_visible(ax.has_data())
        figure.savefig(path, dpi=130)


def draw_curves(ax: Axes, row: Row) -> None:
    """Held-out ELBO at the end of each epoch, one line for each seed, and SCVI's final value."""
    ends, tops = [], []
    for run in row["runs"]:
        first = run is row["runs"][0]
        for side, colour, style in (("scvae", OURS, "-"), ("scvi", PEER, "--")):
            curve = run[side]["curve"]
            label = {"scvae": "scvae", "scvi": "SCVI"}[side] if first else None
            ax.plot(curve["seconds"], curve["elbo"], style, color=colour, linewidth=1.8, label=label)
            tops.append(max(curve["elbo"]))
        ends.append(run["scvi"]["curve"]["elbo"][-1])
    final, best = ends[0], max(tops)
    ax.axhline(final, color=FAINT, linewidth=1, linestyle=":", label="where SCVI ends")
    # the first epochs are far below; show the part near the top
    span = max(abs(best - final), 0.01 * abs(best))
    ax.set(xscale="log", xlabel="seconds of training", title=f"{row['data']}, {row['cells']:,} cells")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_ylim(min(final, best) - 3 * span, best + 0.4 * span)


def draw_rates(ax: Axes, rows: list[Row]) -> None:
    """Training cells per second of both packages, with the ratio above."""
    width = 0.38
    for side, colour, shift, label, hatch in (
        ("scvae", OURS, -width / 2, "scvae", ""),
        ("scvi", PEER, width / 2, "SCVI", "///"),
    ):
        heights = [row["median"][side] for row in rows]
        places = [i + shift for i in range(len(rows))]
        ax.bar(places, heights, width, color=colour, label=label, hatch=hatch, edgecolor="white")
    top = max(row["median"][side] for row in rows for side in ("scvae", "scvi"))
    for i, row in enumerate(rows):
        height = max(row["median"]["scvae"], row["median"]["scvi"])
        ax.text(i, height + 0.015 * top, f"{row['scvae/scvi']:.1f} ×", ha="center", va="bottom")
    _shapes(ax, rows)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set(ylabel="training cells per second", title="Training, steady state", ylim=(0, 1.12 * top))
    ax.legend(frameon=False)


def draw_shares(ax: Axes, rows: list[Row]) -> None:
    """Share of the bare decoder products, in per cent."""
    rows = [row for row in rows if "share_of_products" in row]
    width = 0.38
    for name, colour, shift, label, hatch in (
        ("share_of_products", THIRD, -width / 2, "torch.mm, default settings", ""),
        ("share_of_fastest_products", FAINT, width / 2, "torch.mm, fastest setting", "///"),
    ):
        places, heights = [i + shift for i in range(len(rows))], [100 * row[name] for row in rows]
        ax.bar(places, heights, width, color=colour, label=label, hatch=hatch, edgecolor="white")
        for place, height in zip(places, heights, strict=True):
            ax.text(place, height + 0.8, f"{height:.0f}", ha="center", va="bottom")
    _shapes(ax, rows)
    top = max(100 * row["share_of_products"] for row in rows)
    ax.set(ylabel="%", title="A step's share of its bare decoder products", ylim=(0, 1.35 * top))
    ax.legend(frameon=False, loc="upper right")


def draw_growth(ax: Axes, rows: list[Row]) -> None:
    """Seconds against cells on logarithmic axes, with the slope of each line."""
    cells = [row["cells"] for row in rows]
    for name, label, colour, marker, style in (
        ("fit", "default fit", FOURTH, "s", "--"),
        ("epoch", "one training epoch", OURS, "o", "-"),
        ("embed", "embedding", THIRD, "^", ":"),
    ):
        seconds = [row["median"][name] for row in rows]
        told = f"{label}, slope {slope(cells, seconds):.2f}" if len(rows) > 1 else label
        ax.plot(cells, seconds, style, marker=marker, color=colour, label=told)
    ax.set(
        xscale="log", yscale="log", xlabel="cells", ylabel="seconds", title="scvae's growth with the number of cells"
    )
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.set_xticks(cells, [f"{n:,}" for n in cells])
    ax.minorticks_off()
    low, high = ax.get_ylim()
    ax.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend above the lines
    ax.legend(frameon=False, loc="upper left")


def _shapes(ax: Axes, rows: list[Row]) -> None:
    sizes = [f"{row['batch_size']:,}" if row["batch_size"] else "default" for row in rows]
    ax.set_xticks(range(len(rows)), [f"{row['genes']:,}\n{size}" for row, size in zip(rows, sizes, strict=True)])
    ax.set_xlabel("genes, and cells of a batch")
