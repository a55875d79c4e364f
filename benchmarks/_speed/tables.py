"""Turns the JSON files of the parts into sections of Markdown. Every figure comes from the files."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from statistics import median

from .batches import EPOCHS
from .quality_time import SAMPLES, SHORTER
from .runner import Row

TITLES = {
    "training": "Training speed in the steady state",
    "quality_time": "Time to quality",
    "fit": "Seconds of the default fit",
    "memory": "Peak memory",
    "embed": "Embedding speed",
    "mapped": "Embedding of mapped cells",
    "growth": "Growth with the number of cells",
    "recipe": "The batch size of the default recipe",
    "busy": "The default fit on a busy machine",
    "quota": "The default fit on one core",
    "batches": "The default fit with batches",
}
METHODS = {
    "training": (
        "The cells are simulated. Both packages use one hidden layer of 128 units, 10 latent dimensions, the same "
        "genes, batch size and threads, and no validation cells. The time of one epoch is subtracted from that of "
        "many epochs, which removes the start-up. The shares compare a training step of scvae with the decoder's "
        "three matrix products alone, computed by `torch.mm` on the same shapes: once with torch's default "
        "settings, and once in its fastest mode (oneDNN's code for the bf16 hint on a CPU, TF32 on CUDA). *Error "
        "of these* is the largest error of the fastest mode, relative to the largest logit: about 1e-6 or below is "
        "float32 precision."
    ),
    "quality_time": (
        "Both packages train on the same cells and hold out the same ones: the tenth that scvae's default fit "
        f"holds out. The log-likelihood is importance-weighted with {SAMPLES:,} samples, in nats per held-out cell. "
        "*Along the default fit*: seconds from the start of training to the first epoch whose held-out ELBO (at β "
        "= 1) is at least SCVI's final one. SCVI's validation time is not counted; scvae's is. *Shortest fit*: "
        "seconds of the whole call, including reading, checks and embedding. The fits have "
        f"{', '.join(map(str, SHORTER))} epochs or the default number, and the shortest whose log-likelihood "
        "reaches SCVI's is given. Ratios are relative to SCVI's default fit without any validation. scvae keeps "
        "the weights of the epoch that was best on the held-out cells, as SCVI does with early stopping."
    ),
    "fit": (
        "Seconds of the whole call with the defaults, without imports. For SCVI this is registration, construction "
        "and training, with its defaults and with early stopping. For scvae it is reading, checks, training and "
        "embedding."
    ),
    "memory": (
        "Peak resident memory of a fit of one epoch, including its counts. Memory that the process holds after a "
        "small fit (imports, compiled kernels) is subtracted. Counts are stored as CSR with float32 values and "
        "int32 indices. The aim is 1.2 × counts + 6 × parameters + 150 MB."
    ),
    "embed": (
        "`scvae.tl.embed` against `SCVI.get_latent_representation` on the same simulated cells. The time includes "
        "reading the counts."
    ),
    "mapped": (
        "scvae alone, on simulated cells of two batches, one of which is mapped onto a fit of the other. Seconds of "
        "`scvae.tl.map_query`, and of `scvae.tl.embed` with the mapped model for as many cells of either batch."
    ),
    "growth": (
        "scvae alone, on simulated cells. The slope is that of log seconds against log cells, by least squares; a "
        "slope of 1 is linear growth. The default fit runs fewer epochs on larger data sets, and has a minimum "
        "number of steps."
    ),
    "recipe": (
        "The default fit with other batch sizes. The learning rate follows the batch size, and small data sets get "
        "more epochs, so that the number of steps does not fall below the minimum. The ELBO is that of the "
        "held-out tenth at β = 1, in nats per cell, averaged over seeds. Seconds are those of the whole call."
    ),
    "busy": (
        "Seconds of the whole call with the defaults, alone and while one Python process per core computes without "
        "pause. No variable names a number of threads. In some processes another package is imported before scvae, "
        "which brings threads of its own."
    ),
    "quota": (
        "Seconds of the whole call with the defaults, in a process that may use one core: with one thread "
        "(`OMP_NUM_THREADS=1`), and with what a user gets or asks for. Of the threads asked for, torch takes at most "
        "as many as the machine has cores. `MKL_DYNAMIC=FALSE` makes it take all, as on a machine of as many cores."
    ),
    "batches": (
        "Seconds of the whole call with the defaults and a batch of each cell, without imports, on up to 2,000 highly "
        "variable genes. SCVI's are projected: its seconds up to the end of the first epoch, and for each other epoch "
        f"of its default fit the seconds of an epoch, measured over {EPOCHS} epochs."
    ),
}


def sections(records: Mapping[str, Row]) -> str:
    """One section for each part, in a fixed order: all CPU sections, then all GPU sections."""
    names = [f"{part}{suffix}" for suffix in ("", "_cuda") for part in TITLES]
    return "\n\n".join(section(records[name], records.get(f"{name}_avx2")) for name in names if name in records)


def section(record: Row, avx2: Row | None = None) -> str:
    """Title, command, method, table and machine of one part; then the table of its run without AVX-512, if any."""
    part, settings = record["part"], record["settings"]
    title = TITLES[part] + (", GPU" if settings["device"] == "cuda" else "")
    title += trial(record)
    body = TABLES[part](record["rows"])
    text = f"### {title}\n\n    {command(record)}\n\n{wrapped(METHODS[part])}\n\n{body}\n\n{wrapped(machine(record))}"
    if avx2 is None:
        return text
    body = TABLES[part](avx2["rows"])
    return f"{text}\n\nWithout AVX-512 (`--avx2`){trial(avx2)}:\n\n{body}\n\n{wrapped(machine(avx2))}"


def trial(record: Row) -> str:
    return " (a trial with --quick: ignore the figures)" if record["settings"]["quick"] else ""


def command(record: Row) -> str:
    """The command line, with a placeholder for the peer's interpreter and without the folders of the data."""
    settings = record["settings"]
    words = ["python benchmarks/speed.py --only", record["part"]]
    if settings["repeats"]:
        words += ["--repeats", str(settings["repeats"])]
    if settings["device"] != "cpu":
        words += ["--device", settings["device"]]
    if settings["quick"]:
        words.append("--quick")
    if record["part"] == "batches" and settings["data_folder"]:
        words += ["--data-folder", "DATA_FOLDER"]
    elif settings["data"] and record["part"] in ("quality_time", "fit", "recipe", "batches"):
        words += ["--data", *settings["data"]]
    return " ".join([*words, "--peer-python PYTHON_WITH_SCVI"])


def machine(record: Row) -> str:
    """Date, machine and versions, in one line."""
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
    """The text wrapped to the line length of the README."""
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def short(value: float | None) -> str:
    """The value with three significant digits, or with all digits before the point; None becomes "not reached"."""
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
        "SCVI reaches its final ELBO after, s",
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
        "cold_seconds": "first fit of one step, kernels compiled first, s",
        "warm_seconds": "the same, kernels cached, s",
    }
    starts = [[short(row["median"][name]) for name in names] for row in rows if row["what"] == "start"]
    return f"{text}\n\nStart-up time, with 128 cells and one epoch:\n\n{table(list(names.values()), starts)}"


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


def _mapped(rows: list[Row]) -> str:
    header = ["genes", "cells", "map_query, s", "embed, cells of the fit, s", "embed, mapped cells, s", "ratio"]
    lines = []
    for row in rows:
        *seconds, ratio = row["median"].values()
        lines.append([f"{row['genes']:,}", f"{row['cells']:,}", *map(short, seconds), times(ratio)])
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


def _busy(rows: list[Row]) -> str:
    header = ["imported before scvae", "threads", "other processes", "idle, s", "busy, s", "ratio"]
    lines = []
    for row in rows:
        threads = ", ".join(str(n) for n in sorted({run["threads"] for run in row["runs"]["idle"]}))
        seconds = [short(row["median"][name]) for name in ("idle", "busy")]
        lines.append([row["first"] or "nothing", threads, str(row["others"]), *seconds, times(row["busy/idle"])])
    return table(header, lines)


def _quota(rows: list[Row]) -> str:
    header = ["asked for", "threads", "s", "one thread, s", "ratio"]
    lines = []
    for row in rows:
        threads = ", ".join(str(n) for n in sorted({run["threads"] for run in row["runs"]["asked"]}))
        seconds = [short(row["median"][name]) for name in ("asked", "one")]
        lines.append([row["asked"], threads, *seconds, times(row["asked/one"])])
    return table(header, lines)


def _batches(rows: list[Row]) -> str:
    header = ["data", "cells", "genes", "batches", "scvae, s", "SCVI, s (projected)", "SCVI's epochs", "ratio"]
    lines = []
    for row in rows:
        sizes = [f"{row[name]:,}" for name in ("cells", "genes", "batches")]
        seconds = [short(row["median"][side]) for side in ("scvae", "scvi")]
        epochs = f"{row['runs']['scvi'][0]['default_epochs']:,}"
        lines.append([row["data"], *sizes, *seconds, epochs, times(row["scvi/scvae"])])
    return table(header, [*lines, ["median", *[""] * 6, times(_median(row["scvi/scvae"] for row in rows))]])


def _median(values: Iterable[float | None]) -> float | None:
    """Median of the values that are not None; None if there are none."""
    found = [value for value in values if value is not None]
    return median(found) if found else None


TABLES: dict[str, Callable[[list[Row]], str]] = {
    "training": _training,
    "quality_time": _quality_time,
    "fit": _fit,
    "memory": _memory,
    "embed": _embed,
    "mapped": _mapped,
    "growth": _growth,
    "recipe": _recipe,
    "busy": _busy,
    "quota": _quota,
    "batches": _batches,
}
