"""Turns the files of benchmarks/speed.py into the tables of README.md and into one picture.

Usage: python benchmarks/report.py [--results benchmarks/results/speed] [--readme benchmarks/README.md]
    [--png benchmarks/results/speed.png]

Only the text between the two marker comments of the README is replaced.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from _speed.figure import draw
from _speed.tables import sections

HERE = Path(__file__).parent
BEGIN, END = "<!-- speed: begin, written by benchmarks/report.py -->", "<!-- speed: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results" / "speed")
    parser.add_argument("--readme", type=Path, default=HERE / "README.md")
    parser.add_argument("--png", type=Path, default=HERE / "results" / "speed.png")
    arguments = parser.parse_args()
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in arguments.results.glob("*.json")}
    if not records:
        parser.error(f"there is no result in {arguments.results}; run benchmarks/speed.py first")
    readme = arguments.readme.read_text(encoding="utf-8")
    picture = Path(os.path.relpath(arguments.png, arguments.readme.parent)).as_posix()
    block = f"![Speed of scvae and SCVI]({picture})\n\n{sections(records)}"
    arguments.readme.write_text(with_block(readme, block), encoding="utf-8")
    draw(records, arguments.png)


def with_block(readme: str, block: str) -> str:
    """The text with everything between the markers replaced."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1 or readme.index(BEGIN) > readme.index(END):
        raise ValueError(f"the README must hold {BEGIN!r} and then {END!r}, once each")
    before, after = readme[: readme.index(BEGIN)], readme[readme.index(END) + len(END) :]
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


if __name__ == "__main__":
    main()
