"""The examples in public docstrings do what they show."""

from __future__ import annotations

import doctest
import functools
import hashlib
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
SLOTS = ("obsm", "varm", "uns")


def once(function):
    """Calls the function with the same cells and arguments once; later calls write what that one wrote."""
    done = {}

    @functools.wraps(function)
    def call(adata, *models, **given):
        key = (hashlib.blake2b(adata.X.toarray().tobytes()).digest(), tuple(map(id, models)), repr(given))
        if key not in done:
            result = function(adata, *models, **given)
            written = {slot: dict(getattr(adata, slot)) for slot in SLOTS}
            done[key] = (result, written, models)  # the models are kept, so that no other takes their id
        result, written, _ = done[key]
        for slot in SLOTS:
            getattr(adata, slot).update(written[slot])
        return result

    return call


SHORTCUTS = {(scvae, "fit"): once(scvae.fit), (scvae, "tune_beta"): once(scvae.tune_beta)} | {
    (scvae.tl, name): once(getattr(scvae.tl, name)) for name in ("diagnose", "map_query")
}


@pytest.fixture
def at_work(tmp_path, monkeypatch):
    """An empty folder to write into; fits that several examples begin with are made once; no window, no figure left."""
    from matplotlib import pyplot as plt

    monkeypatch.chdir(tmp_path)
    plt.switch_backend("agg")
    for (module, name), call in SHORTCUTS.items():
        monkeypatch.setattr(module, name, call)
    yield
    plt.close("all")


@pytest.mark.slow
@pytest.mark.usefixtures("at_work")
@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_the_example_in_the_docstring_shows_what_comes_out(name):
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
