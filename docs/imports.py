"""Draws the number of imports between the rooms (folders) of the package: `python docs/imports.py [OUT.svg]`.

Rooms are on the diagonal in the order of the contract in pyproject.toml, the lowest at the top left. A number counts
the imports of modules from the room of its row to the room of its column. An import that points up would be above the
diagonal; `make lint` rejects it.
"""

from __future__ import annotations

import sys
import tomllib
from collections import Counter
from pathlib import Path

import grimp
import matplotlib as mpl
from matplotlib import pyplot as plt

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "docs" / "_static" / "imports.svg"


def rooms() -> list[str]:
    """Names of the rooms, from the lowest to the highest, as in the contract."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = settings["tool"]["importlinter"]["contracts"][0]["layers"]
    return [room.strip() for layer in reversed(layers) for room in reversed(layer.split("|"))]


def imports() -> Counter[tuple[str, str]]:
    """Number of imports from one room to another."""
    graph = grimp.build_graph("scvae")
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = tuple(name.split(".")[1] if "." in name else "scvae" for name in (module, imported))
            if ends[0] != ends[1]:
                found[ends] += 1
    return found


def main(target: Path) -> None:
    """Draws the figure and saves it."""
    mpl.rcParams |= {"svg.hashsalt": "imports", "svg.fonttype": "none"}  # the same imports give the same file
    names, counts = [name for name in rooms() if name != "__main__"], imports()
    figure, axes = plt.subplots(figsize=(9.5, 6.2), layout="constrained")
    most = max(counts.values())
    for row, importer in enumerate(names):
        axes.add_patch(plt.Rectangle((row - 0.5, row - 0.5), 1, 1, facecolor="#2f5d8a"))
        axes.text(row, row, importer, ha="center", va="center", color="white", fontsize=7.5)
        for column, imported in enumerate(names):
            n = counts[importer, imported]
            if n:
                axes.add_patch(
                    plt.Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="#f2a541", alpha=0.15 + 0.7 * n / most)
                )
                axes.text(column, row, str(n), ha="center", va="center", fontsize=9)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("is imported")
    axes.set_ylabel("imports")
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_visible(False)
    figure.savefig(target, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
