"""The public surface keeps one shape."""

from __future__ import annotations

import importlib
import importlib.util
import inspect

import pytest

import scvae

# plots come with a later release; from then on they are held to the same
NAMES = [name for name in ("scvae.datasets", "scvae.pl", "scvae.tl") if importlib.util.find_spec(name)]
SPACES = {"scvae": scvae} | {name: importlib.import_module(name) for name in NAMES}
PUBLIC = [
    pytest.param(getattr(module, name), id=f"{space}.{name}")
    for space, module in SPACES.items()
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
]
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@pytest.mark.parametrize("module", SPACES.values(), ids=SPACES)
def test_all_is_sorted_and_names_what_exists(module):
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", [SPACES[name] for name in NAMES], ids=NAMES)
def test_all_names_every_public_function(module):
    functions = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith(module.__name__)
    }
    assert functions <= set(module.__all__)


@pytest.mark.parametrize("function", PUBLIC)
def test_only_the_data_is_positional_and_the_docstring_is_complete(function):
    signature = inspect.signature(function)
    positional = [p.name for p in signature.parameters.values() if p.kind in POSITIONAL]
    assert positional in (["adata"], ["adata", "model"], ["model"], ["path"], []), positional
    assert all(p.annotation is not p.empty for p in signature.parameters.values())
    assert signature.return_annotation is not signature.empty
    documentation = inspect.getdoc(function)
    assert documentation
    assert "\nReturns\n" in documentation
    for name in signature.parameters:
        assert name in documentation, f"{name} is not described"
