"""The command line of benchmarks in parts, each of which writes rows into one JSON file and prints its own table."""

from __future__ import annotations

import argparse
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Part = tuple[Callable[[argparse.Namespace], Iterator[Row]], Callable[[list[Row]], None]]


def arguments_of(description: str | None, names: Sequence[str], **more: dict[str, Any]) -> argparse.Namespace:
    """Which parts, the folder of the data, whether to print only, and more options: keywords of `add_argument`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(names), default=list(names))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    for name, options in more.items():
        parser.add_argument(f"--{name.replace('_', '-')}", **options)
    parser.add_argument("--table", action="store_true")
    return parser.parse_args()


def run(arguments: argparse.Namespace, parts: Mapping[str, Part], folder: Path, prefix: str = "") -> None:
    """Computes the rows of each part, unless they are only to be printed, and prints its table."""
    warnings.filterwarnings("ignore")
    folder.mkdir(parents=True, exist_ok=True)
    for name in arguments.only:
        compute, show = parts[name]
        target = folder / f"{prefix}{name}.json"
        if not arguments.table:
            record = {"machine": f"{os.cpu_count()} cores, {platform.machine()}", "rows": list(compute(arguments))}
            target.write_text(json.dumps(record) + "\n", encoding="utf-8")
        if target.exists():
            show(json.loads(target.read_text(encoding="utf-8"))["rows"])
