"""Pages of the site name what exists, and all of it, and their code runs; `make docs` shows that the site builds."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
from pathlib import Path

import pytest

import scvae

ROOT = Path(__file__).parents[1]
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
SPACES = ("scvae", "scvae.datasets", "scvae.pl", "scvae.tl")
SUBMODULES = {"datasets", "pl", "tl"}
QUESTIONS = [
    (title, code)
    for title, answer in re.findall(r"^### (.+?)$(.*?)(?=^##|\Z)", PAGES["faq.md"], re.MULTILINE | re.DOTALL)
    for code in re.findall(r"^```python\n(.*?)^```", answer, re.MULTILINE | re.DOTALL)
]


def listed():
    """What the page on the API lists, without the leading "scvae."."""
    return set(re.findall(r"^   ([\w.]+)$", PAGES["api.md"], re.MULTILINE))


@pytest.mark.parametrize("space", SPACES)
def test_the_api_page_lists_every_public_name(space):
    prefix = space.removeprefix("scvae").removeprefix(".")
    names = {f"{prefix}.{name}".strip(".") for name in importlib.import_module(space).__all__}
    assert names - SUBMODULES - {"__version__"} <= listed()


def test_the_api_page_lists_nothing_else():
    for name in listed():
        assert functools.reduce(getattr, name.split("."), scvae)


@pytest.mark.parametrize("page", PAGES)
def test_names_in_a_page_exist(page):
    names = set(re.findall(r"\bscvae\.((?:tl|pl|datasets)\.\w+|[a-zA-Z]\w+)(?=[`(])", PAGES[page]))
    for name in names - SUBMODULES:
        assert functools.reduce(getattr, name.split("."), scvae), name


@pytest.mark.parametrize("page", PAGES)
def test_scripts_that_a_page_names_exist(page):
    for path in re.findall(r"`((?:benchmarks|tests|scvae|data)/[\w/]+\.\w+)", PAGES[page]):
        assert (ROOT / path).exists(), path


@pytest.fixture(scope="module")
def fitted():
    adata = scvae.datasets.simulate(n_cells=150, n_genes=60, n_types=3, truth=False, rng=0)
    short = scvae.TrainingConfig(epochs=15)
    return adata, scvae.fit(adata, n_latent=4, training=short, rng=0, verbose=False), short


@pytest.mark.parametrize(("title", "code"), QUESTIONS, ids=[title for title, _ in QUESTIONS])
def test_the_answer_to_a_question_runs_and_does_something(title, code, fitted, tmp_path, monkeypatch, digest):
    adata, model, short = fitted
    monkeypatch.chdir(tmp_path)
    for name in ("fit", "tune_beta"):  # in a short training, and without bars
        call = functools.partial(getattr(scvae, name), n_latent=4, training=short, rng=0)
        monkeypatch.setattr(scvae, name, lambda *args, call=call, **given: call(*args, **given | {"verbose": False}))
    names = {"scvae": scvae, "adata": adata.copy(), "model": model}
    *statements, last = ast.parse(code).body
    exec(compile(ast.Module(statements, []), title, "exec"), names)
    if isinstance(last, ast.Expr):  # what a notebook would show
        shown = eval(compile(ast.Expression(last.value), title, "eval"), names)
    else:
        shown = exec(compile(ast.Module([last], []), title, "exec"), names)
    assert shown is not None or digest(names["adata"]) != digest(adata)


def test_tutorials_are_notebooks_with_outputs_and_a_title():
    for path in (ROOT / "tutorials").glob("[0-9]*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        assert "".join(cells[0]["source"]).startswith("# "), path.name
        assert any(cell["cell_type"] == "code" and cell["outputs"] for cell in cells), path.name
