"""Tutorials run from clean, and what is committed is what such a run shows."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbformat reads tutorials; install the extra 'test'")
pytest.importorskip("nbclient", reason="nbclient executes tutorials; install the extra 'test'")

FOLDER = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
pytestmark = pytest.mark.xdist_group("kernels")  # of two that start at once, one may take the other's port


def _load_runner():
    spec = importlib.util.spec_from_file_location("tutorials_execute", FOLDER / "execute.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


runner = _load_runner()


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def notebook_of(*sources):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


def test_the_tutorials_are_numbered_from_one_without_a_gap():
    assert [int(path.name.partition("_")[0]) for path in NOTEBOOKS] == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.slow
@each
def test_tutorial_runs_in_a_fresh_kernel_without_an_error_or_a_warning(path):
    executed = runner.execute(path)
    assert runner.complaints(executed) == []
    assert [
        output for cell in executed.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]


@each
def test_committed_tutorial_was_executed_whole_and_in_order(path):
    cells = code_cells(path)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert any("image/png" in output.get("data", {}) for cell in cells for output in cell.outputs)
    assert runner.complaints(nbformat.read(path, as_version=4)) == []


@each
def test_committed_tutorial_holds_nothing_of_the_machine_it_was_made_on(path):
    text = path.read_text(encoding="utf-8")
    for cell in code_cells(path):
        assert "execution" not in cell.metadata  # times of day
        for output in cell.outputs:
            shown = output.get("text", "") + "".join(output.get("data", {}).get("text/plain", ""))
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users|usr)/", shown), shown
    assert len(text) < 1_500_000


@each
def test_links_between_tutorials_lead_somewhere(path):
    cells = nbformat.read(path, as_version=4).cells
    links = re.findall(
        r"\]\((?!https?:)([^)]+)\)", "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    )
    assert [link for link in links if not (FOLDER / link).is_file()] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("import warnings\nwarnings.warn('look out')", "look out"),
        ("import sys\nprint('to standard error', file=sys.stderr)", "to standard error"),
    ],
    ids=["a warning", "standard error"],
)
def test_the_runner_notices_what_a_cell_complains_of(source, complaint, tmp_path):
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook_of("1 + 1", source), path)
    (found,) = runner.complaints(runner.execute(path))
    assert complaint in found


@pytest.mark.slow
def test_the_runner_stops_at_a_cell_that_fails(tmp_path):
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook_of("raise ValueError('no such gene')"), path)
    with pytest.raises(Exception, match="no such gene"):
        runner.execute(path)


@pytest.mark.slow
def test_cells_run_outside_the_repository_and_find_this_checkout(tmp_path):
    path = tmp_path / "one.ipynb"
    nbformat.write(notebook_of("import os, scvae\nprint(os.getcwd())\nprint(scvae.__file__)"), path)
    (output,) = runner.execute(path).cells[0].outputs
    folder, package = map(Path, output.text.splitlines())
    assert package == FOLDER.parent / "scvae" / "__init__.py"
    assert FOLDER.parent not in [folder, *folder.parents]
    assert not folder.exists()
