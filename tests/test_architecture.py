"""Every module sits on one floor and imports only from lower floors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "scvae"
FLOORS = [  # bottom to top; top-level names inside the package, "" is the root __init__
    {
        "_checks",
        "_devices",
        "_files",
        "_html",
        "_interrupt",
        "_keys",
        "_log",
        "_progress",
        "_rng",
        "_slots",
        "_version",
        "beta_range",
        "config",
        "contrast",
        "distributed",
        "optimizer",
        "schedules",
        "sharing",
        "shrinkage",
    },
    {"_in_place", "kernels", "recipe"},
    {"data", "latent"},
    {"expression", "likelihoods"},
    {"nn"},
    {"model"},
    {"checkpoint", "consistency", "fitted", "objective", "refinement"},
    {"inference", "label_transfer", "step", "surgery"},
    {"decoding", "parallel"},
    {"captured"},
    {"train"},
    {"_run", "diagnostics", "differential"},
    {"_continue", "_record", "layouts"},
    {"_fit"},
    {"_cli_arguments", "_cli_files", "_demo", "datasets", "pl", "tl"},
    {"_cli_parser", "_tune"},
    {"cli"},
    {"__main__", ""},
]
RANK = {name: floor for floor, names in enumerate(FLOORS) for name in names}
PLOTS_MAY_READ = {"_checks", "_files", "_keys"}  # _files writes a page whole or not at all
FILES = sorted(PACKAGE.rglob("*.py"))


def head(path: Path) -> str:
    """The top-level name inside the package that a file belongs to."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return "" if parts == ("__init__",) else parts[0]


def imported_heads(path: Path) -> Iterator[str]:
    """The top-level names inside the package that a file imports, anywhere in it."""
    package = ["scvae", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            stem = package[: len(package) - node.level + 1] if node.level else []
            stem = stem + (node.module.split(".") if node.module else [])
            names = [stem] if len(stem) > 1 else [[*stem, alias.name] for alias in node.names]
        else:
            continue
        yield from (name[1] if len(name) > 1 else "the package root" for name in names if name[0] == "scvae")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    here = head(path)
    assert here in RANK, f"{here} has no floor; give it one in FLOORS"
    for target in set(imported_heads(path)) - {here}:
        assert RANK.get(target, len(FLOORS)) < RANK[here], f"{here} must not import {target}"
        assert here != "pl" or target in PLOTS_MAY_READ, f"plots read AnnData only; {path} must not import {target}"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("import scvae", {"the package root"}),
        ("from scvae import tl", {"tl"}),
        ("from scvae.data.rows import Rows", {"data"}),
        ("from ..model import VAE", {"model"}),
        ("from .. import _keys, train", {"_keys", "train"}),
        ("from .other import name", {"tl"}),
        ("def f():\n    from ..pl import history", {"pl"}),
        ("import scvae_other, numpy", set()),
    ],
)
def test_every_form_of_import_is_seen(line, expected, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "PACKAGE", tmp_path)
    (tmp_path / "tl").mkdir()
    path = tmp_path / "tl" / "module.py"
    path.write_text(line)
    assert set(imported_heads(path)) == expected
