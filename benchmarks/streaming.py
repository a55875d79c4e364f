"""Compares training from disk with training in memory, and with scvi-tools on the same file, in one run.

Usage: python benchmarks/streaming.py [--cells N] [--memory GB] [--folder FOLDER] [--peer-python PYTHON]
    [--only PART ...] [--files KIND ...] [--epochs N] [--peer-batches N] [--threads N] [--out FILE]

Writes N cells of 20,000 genes to FOLDER as a gzip h5ad, a plain h5ad and a sharded zarr. The cells are simulated from
the gene means of the cell types of the bundled set and sorted by type. The files are kept, so that a part can be rerun.
Each measurement runs in its own process; FILE is rewritten after each one.

Parts: all_genes (cells per second by wall-clock and by processor time, and peak memory), chosen_genes (the 2,000 genes
with the most counts, read from disk although they would fit into memory), peer (scvi-tools on the backed h5ad, all
genes), held_out (held-out ELBO of default fits of 2,000 genes: in memory, and from the file sorted by type).

--memory is TrainingConfig.memory of the fits from disk. Lower it for fewer cells, which would otherwise fit into
memory: the default of 1 suits 200,000 cells, of which a window then holds about a tenth.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from _streaming.data import FILES, N_GENES, make

HERE = Path(__file__).parent
CHOSEN = 2_000
SHARE_OF_CHOSEN = 0.4  # of `memory`, so that a window holds about as many cells: these genes have half of the values
PARTS = ("all_genes", "chosen_genes", "peer", "held_out")


def main() -> None:
    arguments = parse()
    make(arguments.folder, arguments.cells)
    record: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": platform.machine(), "cpus": os.cpu_count(), "threads": arguments.threads},
        "cells": arguments.cells,
        "genes": N_GENES,
        "memory": arguments.memory,
        "bytes": {kind: size(arguments.folder / name) for kind, name in FILES.items()},
        "rows": [],
    }
    if arguments.out.exists():
        earlier = json.loads(arguments.out.read_text(encoding="utf-8"))
        if all(earlier[key] == record[key] for key in ("cells", "memory")):
            record["rows"] = [row for row in earlier["rows"] if row["part"] not in arguments.only]
    for part in arguments.only:
        for row in measured(part, arguments):
            record["rows"].append({"part": part} | row)
            print(json.dumps(record["rows"][-1]), flush=True)
            arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measured(part: str, given: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The rows of one part."""
    gzip = str(given.folder / FILES["h5ad gzip"])
    if part == "peer":
        settings = {"path": gzip, "n_genes": None, "n_batches": given.peer_batches, "batch_size": 256}
        yield {"source": "scvi-tools, h5ad gzip backed"} | run("peer", settings, given)
        return
    memory = given.memory * (1 if part == "all_genes" else SHARE_OF_CHOSEN)
    settings = {"n_genes": None if part == "all_genes" else CHOSEN, "epochs": given.epochs, "seed": 0}
    kinds = given.files if part != "held_out" else ["h5ad gzip"]
    if part == "held_out":
        settings["epochs"] = None
    yield {"source": "memory"} | run("ours", settings | {"path": gzip, "memory": None}, given)
    for kind in kinds:
        path = str(given.folder / FILES[kind])
        yield {"source": kind} | run("ours", settings | {"path": path, "memory": memory}, given)


def run(side: str, settings: dict[str, Any], given: argparse.Namespace) -> dict[str, Any]:
    """The result of a measurement in its own process."""
    python = given.peer_python if side == "peer" else sys.executable
    path = [HERE] if side == "peer" else [HERE, HERE.parent]
    threads = {f"{name}_NUM_THREADS": str(given.threads) for name in ("OMP", "MKL", "NUMBA")}
    environment = os.environ | threads | {"PYTHONPATH": os.pathsep.join(map(str, path))}
    command = [python, "-m", f"_streaming.{side}", json.dumps(settings)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{side} failed with {settings}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def size(path: Path) -> int:
    """Bytes of a file, or of the files of a folder."""
    return path.stat().st_size if path.is_file() else sum(p.stat().st_size for p in path.rglob("*") if p.is_file())


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--memory", type=float, default=1.0)
    parser.add_argument("--folder", type=Path, default=Path("streaming_data"))
    parser.add_argument("--peer-python", default=sys.executable)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--files", nargs="+", choices=list(FILES), default=list(FILES), metavar="KIND")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-batches", type=int, default=40)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "streaming.json")
    return parser.parse_args()


if __name__ == "__main__":
    main()
