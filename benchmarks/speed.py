"""The speed benchmark: scvae against scvi-tools' SCVI (nb) on this machine, in one run.

Usage: python benchmarks/speed.py [--peer-python PYTHON] [--only PART ...] [--repeats N] [--device cpu|cuda]
    [--data FILE.h5ad ...] [--data-folder FOLDER] [--threads N] [--avx2] [--out FOLDER] [--quick]

Each measurement runs in its own process, and the two packages take turns. Medians are reported and every raw value is
kept. Each part writes FOLDER/PART.json after every row (PART_cuda.json for a GPU, PART_avx2.json with --avx2), so that
it can be rerun alone.
`python benchmarks/report.py` turns these files into the tables of README.md and into speed.png. The machine should be
otherwise idle.

Parts: training (cells per second in the steady state, and the share of the bare decoder products), quality_time
(seconds to SCVI's final held-out quality), fit (the whole default fit, and start-up), memory, embed, mapped (seconds of
map_query, and of embedding mapped cells against known ones), growth, recipe (held-out ELBO and seconds by batch size),
busy (the default fit while other processes use every core), quota (the
default fit on one core, with as many threads as a user gets or asks for), batches (the default fit with a batch of each
cell). With --device cuda only training runs unless others are named.

--data names files with raw counts in X, restricted to the genes to model (at most 20,000 cells, so that SCVI's KL
weight reaches 1). Without it, the bundled set with 2,000 highly variable genes is used, which needs scikit-misc.
--data-folder names the folder of the four sets of the part "batches". Without it, those of --data that have a column
"batch" are used; without these, the part is skipped.
--avx2 lets every process do without AVX-512, as on most machines of users.
--peer-python names an interpreter with scvi-tools, if this one lacks it.
--quick reduces everything to a trial of a few minutes; ignore its figures.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from _speed import batches, busy, embed, growth, mapped, memory, quality_time, quota, recipe, training, whole_fit
from _speed.runner import Bench, Row

PARTS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "training": training.measure,
    "quality_time": quality_time.measure,
    "fit": whole_fit.measure,
    "memory": memory.measure,
    "embed": embed.measure,
    "mapped": mapped.measure,
    "growth": growth.measure,
    "recipe": recipe.measure,
    "busy": busy.measure,
    "quota": quota.measure,
    "batches": batches.measure,
}


def main() -> None:
    arguments = parse()
    arguments.out.mkdir(parents=True, exist_ok=True)
    only = arguments.only or (["training"] if arguments.device == "cuda" else list(PARTS))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(
            peer_python=arguments.peer_python,
            device=arguments.device,
            threads=arguments.threads,
            repeats=arguments.repeats,
            quick=arguments.quick,
            data=tuple(arguments.data),
            folder=Path(folder),
            data_folder=arguments.data_folder,
            avx2=arguments.avx2,
        )
        machine = bench.machine()
        for name in only:
            measure(bench, name, machine, arguments.out)


def measure(bench: Bench, name: str, machine: Row, out: Path) -> None:
    """Runs one part and writes its file after every row."""
    record: Row = {
        "part": name,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "settings": {
            "device": bench.device,
            "repeats": bench.repeats,
            "quick": bench.quick,
            "data_folder": bench.data_folder is not None,
            "avx2": bench.avx2,
            "data": [path.name for path in bench.data],
        },
    }
    started = time.perf_counter()
    rows: list[Row] = []
    for row in PARTS[name](bench):
        rows.append(row)
        shown = {key: value for key, value in row.items() if key != "runs"}
        print(f"{name}: {json.dumps(shown)}", flush=True)
        record |= {"seconds": time.perf_counter() - started, "rows": rows}
        suffix = ("_cuda" if bench.device == "cuda" else "") + ("_avx2" if bench.avx2 else "")
        path = out / f"{name}{suffix}.json"
        path.write_text(to_text(record), encoding="utf-8")


def to_text(record: Row) -> str:
    """JSON with an entry a line, but lists of numbers (curves) in one."""
    text = json.dumps(record, indent=1) + "\n"
    return re.sub(r"\[[-+.\deE,\s]+\]", lambda found: " ".join(found[0].split()), text)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", nargs="+", choices=list(PARTS), metavar="PART")
    parser.add_argument("--repeats", type=int, help="times each measurement is made; by default each part knows")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--data-folder", type=Path)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "speed")
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    for path in arguments.data:
        if not path.is_file():
            parser.error(f"there is no file {path}")
    if arguments.repeats is not None and arguments.repeats < 1:
        parser.error(f"--repeats must be at least 1; found {arguments.repeats}")
    return arguments


if __name__ == "__main__":
    main()
