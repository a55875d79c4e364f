"""The examples in public docstrings do what they show."""

from __future__ import annotations

import doctest
import inspect

import pytest

import scvae
from scvae import FittedModel, NetworkConfig, TrainingConfig

SPACES = {"scvae": scvae, "scvae.tl": scvae.tl, "scvae.pl": scvae.pl, "scvae.datasets": scvae.datasets}
FUNCTIONS = {
    f"{space}.{name}": getattr(module, name)
    for space, module in SPACES.items()
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
CLASSES = {f"scvae.{cls.__name__}": cls for cls in (FittedModel, NetworkConfig, TrainingConfig)}
OPTIONS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_the_example_in_the_docstring_shows_what_comes_out(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # examples may write files
    documented = {**FUNCTIONS, **CLASSES}[name]
    found = doctest.DocTestFinder(recurse=False).find(documented, name, globs={"scvae": scvae})
    examples = [test for test in found if test.examples]
    assert examples, f"{name} has no example"
    report: list[str] = []
    for test in examples:
        doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    assert not report, "".join(report)


def test_a_wrong_example_is_reported():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    report: list[str] = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    assert "Expected" in "".join(report)
