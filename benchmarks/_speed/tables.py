"""The parts' JSON files as sections of Markdown: every figure comes from the files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from statistics import median

from .quality_time import SAMPLES, SHORTER
from .runner import Row

TITLES = {
    "training": "Training speed in the steady state",
    "quality_time": "Time to quality",
    "fit": "Seconds of the default fit",
    "memory": "Peak memory",
    "embed": "Embedding speed",
    "growth": "Growth with the number of cells",
    "recipe": "The batch size of the default recipe",
}
METHODS = {
    "training": (
        "Simulated cells; one hidden layer of 128 units, 10 latent dimensions, the same genes, batch size and threads, "
        "no validation cells. Seconds of many epochs less those of one, so that start-up drops out. The shares compare "
        "a step of scvae with the decoder's three matrix products alone, by `torch.mm` on the same shapes: with the "
        "default settings of torch, and in the fastest way it can be told to multiply (on a CPU oneDNN's code for the "
        "bf16 hint, on CUDA TF32), for which the largest error relative to the largest logit is given: about 1e-6 or "
        "below is float32."
    ),
    "quality_time": (
        "Both sides train on the same cells and hold out the same ones: the tenth that scvae's default fit sets aside. "
        f"Log-likelihood: importance-weighted, {SAMPLES:,} samples, nats per held-out cell. *Along the default fit*: "
        "seconds from the start of training to the first epoch whose held-out ELBO (at β = 1) is at least SCVI's last "
        "one; SCVI's clock stands still while it validates, scvae's runs on. *Shortest fit*: the whole call, reading, "
        f"checks and embedding included, of the shortest of fits of {', '.join(map(str, SHORTER))} epochs and the "
        "default one whose log-likelihood reaches SCVI's. Ratios are to SCVI's default fit without any validation. As "
        "SCVI does with early stopping, scvae keeps the weights of the epoch that was best on the held-out cells."
    ),
    "fit": (
        "The whole call with the defaults, imports aside: for SCVI registration, construction and training, as it "
        "comes and with early stopping; for scvae reading, checks, training and embedding."
    ),
    "memory": (
        "Peak resident memory of a fit of one epoch, its counts included, over what the process holds after a small "
        "fit (imports, compiled kernels). Counts are CSR, float32 values and int32 indices. Aim: 1.2 × counts + 6 × "
        "parameters + 150 MB."
    ),
    "embed": "`scvae.tl.embed` against `SCVI.get_latent_representation`, the same simulated cells; reading included.",
    "growth": (
        "scvae alone, simulated cells. The slope is that of log seconds on log cells, by least squares: 1 is linear. "
        "The default fit makes fewer passes over more cells, and has a least number of steps."
    ),
    "recipe": (
        "The default fit with other batch sizes; the learning rate follows the batch size, and small sets get more "
        "epochs, so that the number of steps does not fall below its least. ELBO of the held-out tenth at β = 1, nats "
        "per cell, mean over seeds; seconds of the whole call."
    ),
}


def sections(records: Mapping[str, Row]) -> str:
    """One section a file, in a fixed order, the GPU's after all of the CPU's."""
    names = [f"{part}{suffix}" for suffix in ("", "_cuda") for part in TITLES]
    return "\n\n".join(section(records[name]) for name in names if name in records)


def section(record: Row) -> str:
    """Title, command, method, table and machine of one part."""
    part, settings = record["part"], record["settings"]
    title = TITLES[part] + (", GPU" if settings["device"] == "cuda" else "")
    if settings["quick"]:
        title += " (a trial with --quick: the figures mean nothing)"
    body = TABLES[part](record["rows"])
    return f"### {title}\n\n    {command(record)}\n\n{wrapped(METHODS[part])}\n\n{body}\n\n{wrapped(machine(record))}"


def command(record: Row) -> str:
    """What was typed, with a placeholder for the peer's interpreter and without the folders of the data."""
    settings = record["settings"]
    words = ["python benchmarks/speed.py --only", record["part"]]
    if settings["repeats"]:
        words += ["--repeats", str(settings["repeats"])]
    if settings["device"] != "cpu":
        words += ["--device", settings["device"]]
    if settings["quick"]:
        words.append("--quick")
    if settings["data"] and record["part"] in ("quality_time", "fit", "recipe"):
        words += ["--data", *settings["data"]]
    return " ".join([*words, "--peer-python PYTHON_WITH_SCVI"])


def machine(record: Row) -> str:
    """Where and when, in one line."""
    of = record["machine"]
    device = "" if of["scvae"]["device"] == "cpu" else f"{of['scvae']['device']}; "
    versions = f"scvae {of['scvae']['scvae']} on torch {of['scvae']['torch']}"
    peer = f"scvi-tools {of['scvi']['scvi-tools']} on torch {of['scvi']['torch']}"
    threads = f"{of['threads']} thread{'s' if of['threads'] != 1 else ''} on {of['cores']} cores ({of['processor']})"
    repeats = record["settings"]["repeats"]
    medians = f"; medians of {repeats} runs" if repeats and repeats > 1 else ""
    return f"{record['date']}; {device}{threads}; {versions}, {peer}{medians}."


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(cells)} |" for cells in [header, *rows]]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def wrapped(text: str) -> str:
    """Lines of the length that the README's other lines have."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def short(value: float | None) -> str:
    """Three digits or all that stand before the point; None is "not reached"."""
    if value is None:
        return "not reached"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.{1 if abs(value) >= 10 else 2}f}"


def times(value: float | None) -> str:
    return short(value) + (" ×" if value is not None else "")


def slope(cells: list[int], seconds: list[float]) -> float:
    """Slope of log seconds on log cells, by least squares."""
    x, y = [math.log(n) for n in cells], [math.log(s) for s in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)


def _training(rows: list[Row]) -> str:
    header = ["genes", "batch size", "non-zeros", "scvae, cells/s", "SCVI, cells/s", "ratio", "share of the products"]
    header += ["share of the fastest products", "error of these"]
    roofline = any("share_of_roofline" in row for row in rows)
    lines = []
    for row in rows:
        of = row["median"]
        cells = [f"{row['genes']:,}", f"{row['batch_size']:,}" if row["batch_size"] else "each one's default"]
        cells += [f"{row['non_zeros']:.0%}", short(of["scvae"]), short(of["scvi"]), times(row["scvae/scvi"])]
        cells += [
            f"{row[name]:.0%}" if name in row else "" for name in ("share_of_products", "share_of_fastest_products")
        ]
        error = row["runs"].get("fastest_products")
        cells.append(f"{error[0]['relative_error']:.0e}" if error else "")
        if roofline:
            cells.append(f"{row['share_of_roofline']:.0%}" if "share_of_roofline" in row else "")
        lines.append(cells)
    return table(header + ["share of the roofline"] * roofline, lines)


def _quality_time(rows: list[Row]) -> str:
    header = [
        "data",
        "cells",
        "log-likelihood, scvae",
        "SCVI",
        "SCVI's default fit, s",
        "SCVI itself is there after, s",
    ]
    header += ["along the default fit, s", "ratio", "shortest fit, s", "epochs", "ratio"]
    lines = []
    for row in rows:
        of = row["median"]
        cells = [row["data"], f"{row['cells']:,}", *(f"{of[side]['log_likelihood']:.1f}" for side in ("scvae", "scvi"))]
        cells += [short(of["scvi"]["seconds"]), short(of["scvi_along_default"]), short(of["scvae_along_default"])]
        cells += [times(of["scvi/scvae_along_default"]), short(of["scvae_shortest"])]
        epochs = of["scvae_shortest_epochs"]
        cells += ["" if epochs is None else f"{epochs:g}", times(of["scvi/scvae_shortest"])]
        lines.append(cells)
    along = _median(row["median"]["scvi/scvae_along_default"] for row in rows)
    shortest = _median(row["median"]["scvi/scvae_shortest"] for row in rows)
    return table(header, [*lines, ["median", *[""] * 6, times(along), "", "", times(shortest)]])


def _fit(rows: list[Row]) -> str:
    header = ["data", "cells", "genes", "scvae, s", "SCVI, s", "SCVI, early stopping, s", "ratio", "early stopping"]
    fits = [row for row in rows if row["what"] == "fit"]
    lines = [
        [
            row["data"],
            f"{row['cells']:,}",
            f"{row['genes']:,}",
            *(short(row["median"][name]) for name in ("scvae", "scvi", "scvi_es")),
            *(times(row[name]) for name in ("scvi/scvae", "scvi_es/scvae")),
        ]
        for row in fits
    ]
    medians = [times(_median(row[name] for row in fits)) for name in ("scvi/scvae", "scvi_es/scvae")]
    text = table(header, [*lines, ["median", *[""] * 5, *medians]]) if fits else ""
    names = {
        "import_seconds": "`import scvae`, s",
        "cold_seconds": "first fit of one step, kernels to compile, s",
        "warm_seconds": "the same, kernels cached, s",
    }
    starts = [[short(row["median"][name]) for name in names] for row in rows if row["what"] == "start"]
    return f"{text}\n\nStart-up, with 128 cells and one epoch:\n\n{table(list(names.values()), starts)}"


def _memory(rows: list[Row]) -> str:
    header = ["cells × genes", "batch size", "counts, MB", "parameters, MB", "scvae, MB", "SCVI, MB", "aim, MB"]
    lines = []
    for row in rows:
        cells = [f"{row['cells']:,} × {row['genes']:,}", f"{row['batch_size']:,}" if "batch_size" in row else "default"]
        cells += [short(row["counts"]), short(row["parameters"]), short(row["median"]["scvae"])]
        lines.append([*cells, short(row["median"]["scvi"]) if "scvi" in row["median"] else "", short(row["aim"])])
    return table(header, lines)


def _embed(rows: list[Row]) -> str:
    header = ["genes", "cells", "scvae, cells/s", "SCVI, cells/s", "ratio"]
    lines = []
    for row in rows:
        rates = [short(row["median"][side]) for side in ("scvae", "scvi")]
        lines.append([f"{row['genes']:,}", f"{row['cells']:,}", *rates, times(row["scvae/scvi"])])
    return table(header, lines)


def _growth(rows: list[Row]) -> str:
    names = {"epoch": "epoch of training, s", "embed": "embedding, s", "fit": "default fit, s"}
    lines = [[f"{row['cells']:,}", *(short(row["median"][name]) for name in names)] for row in rows]
    if len(rows) > 1:
        cells = [row["cells"] for row in rows]
        slopes = [slope(cells, [row["median"][name] for row in rows]) for name in names]
        lines.append(["slope", *(f"{value:.2f}" for value in slopes)])
    return table(["cells", *names.values()], lines)


def _recipe(rows: list[Row]) -> str:
    sizes = list(rows[0]["median"])
    header = ["data", "cells", *(f"ELBO, {size}" for size in sizes), *(f"seconds, {size}" for size in sizes)]
    lines = []
    for row in rows:
        of = row["median"]
        elbos = [f"{of[size]['elbo']:.2f}" for size in sizes]
        lines.append([row["data"], f"{row['cells']:,}", *elbos, *(short(of[size]["seconds"]) for size in sizes)])
    return table(header, lines)


def _median(values: Iterable[float | None]) -> float | None:
    """Median over the sets that got there; None if none did."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "training": _training,
    "quality_time": _quality_time,
    "fit": _fit,
    "memory": _memory,
    "embed": _embed,
    "growth": _growth,
    "recipe": _recipe,
}
