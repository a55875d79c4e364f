"""The public surface keeps one shape."""

from __future__ import annotations

import builtins
import dataclasses
import importlib
import inspect
import re

import pytest

import scvae

SPACES = {name: importlib.import_module(name) for name in ("scvae", "scvae.datasets", "scvae.pl", "scvae.tl")}
FUNCTIONS = {
    f"{space}.{name}": getattr(module, name)
    for space, module in SPACES.items()
    for name in module.__all__
    if inspect.isfunction(getattr(module, name))
}
RECORDS = [cls for name in scvae.__all__ if dataclasses.is_dataclass(cls := getattr(scvae, name))]
METHODS = {
    f"{cls.__name__}.{name}": method
    for cls in RECORDS
    for name, method in inspect.getmembers(cls, inspect.isfunction)
    if not name.startswith("_")
}
ERRORS = {
    name: cls for name in scvae.__all__ if inspect.isclass(cls := getattr(scvae, name)) and issubclass(cls, Exception)
}
POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
BUNDLED = {"scvae.datasets.pbmc3k", "scvae.datasets.pbmc_citeseq"}
WITHOUT_ADATA = {"scvae.load", "scvae.datasets.simulate", "scvae.tl.generate"} | BUNDLED
WITHOUT_MODEL = {"scvae.tl.highly_variable_genes"}  # needs none
SHARED = {  # an argument of this name has this default wherever it occurs
    "key_added": {"scvae", "rank_genes_groups"},
    "layer": {None},
    "beta": {None, 1.0},
    "copy": {False},
    "verbose": {True},
    "ax": {None},
    "show": {None},
    "save": {None},
}


def sections(documented):
    """What a numpy docstring says, by the title of each section; "" is what stands before them."""
    found, title = {"": []}, ""
    lines = (inspect.getdoc(documented) or "").splitlines()
    for line, below in zip(lines, [*lines, ""][1:], strict=True):
        if line and set(below) == {"-"} and len(below) == len(line):
            title = line
            found[title] = []
        elif line and set(line) != {"-"}:
            found[title].append(line)
    return found


def described(documented):
    """Names that the section Parameters describes, in order; each with at least one line of its own."""
    names, lines = [], sections(documented).get("Parameters", [])
    for line, below in zip(lines, [*lines, ""][1:], strict=True):
        if re.match(r"\w", line):
            assert below.startswith("    "), f"nothing is said of {line}"
            names += line.split(", ")
    return names


@pytest.mark.parametrize("module", SPACES.values(), ids=SPACES)
def test_all_is_sorted_and_names_what_exists(module):
    assert list(module.__all__) == sorted(module.__all__)
    assert all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("module", SPACES.values(), ids=SPACES)
def test_all_names_every_public_function(module):
    functions = {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith(module.__name__)
    }
    assert functions <= set(module.__all__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_data_comes_first_and_what_follows_is_passed_by_name(name):
    parameters = inspect.signature(FUNCTIONS[name]).parameters.values()
    assert all(p.kind in (*POSITIONAL, p.KEYWORD_ONLY) for p in parameters), "*args and **kwargs hide what there is"
    positional = [p.name for p in parameters if p.kind in POSITIONAL]
    if name in WITHOUT_ADATA:
        assert positional in ([], ["model"], ["path"])
    elif name.startswith("scvae.tl.") and name not in WITHOUT_MODEL:
        assert positional == ["adata", "model"]
    else:
        assert positional == ["adata"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_parameter_is_described_once(name):
    assert sorted(described(FUNCTIONS[name])) == sorted(inspect.signature(FUNCTIONS[name]).parameters)


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_a_method_is_described(name):
    assert described(METHODS[name]) == list(inspect.signature(METHODS[name]).parameters)[1:]


@pytest.mark.parametrize("record", RECORDS, ids=lambda cls: cls.__name__)
def test_every_field_of_a_record_is_described(record):
    assert set(described(record)) == {field.name for field in dataclasses.fields(record)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_docstring_says_what_it_does_returns_and_raises_and_shows_an_example(name):
    said = sections(FUNCTIONS[name])
    assert said[""], "the first line says what it does"
    assert said[""][0].endswith((".", ":")), said[""][0]
    for title in ("Returns", "Raises", "Examples"):
        assert said.get(title), f"{name} has no section {title}"


@pytest.mark.parametrize("name", [*FUNCTIONS, *METHODS])
def test_every_error_that_a_docstring_promises_can_be_caught_by_its_public_name(name):
    promised = re.findall(r"\b[A-Z]\w+Error\b", " ".join(sections({**FUNCTIONS, **METHODS}[name]).get("Raises", [])))
    assert all(hasattr(builtins, error) or error in ERRORS for error in promised), promised


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_says_when_it_is_raised_and_is_one_of_pythons_own_kinds(name):
    assert sections(ERRORS[name])[""]
    assert any(vars(builtins).get(base.__name__) is base for base in ERRORS[name].__bases__)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_an_argument_of_one_name_has_one_default_everywhere(name):
    for parameter in inspect.signature(FUNCTIONS[name]).parameters.values():
        if parameter.name in SHARED and parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default in SHARED[parameter.name], parameter


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("scvae.pl.")])
def test_a_plot_can_be_shown_or_saved_as_in_scanpy(name):
    assert {"key_added", "save"} <= set(inspect.signature(FUNCTIONS[name]).parameters)


def test_a_missing_description_is_noticed():
    def function(adata, *, layer):
        """Does something.

        Parameters
        ----------
        adata
            Cells.
        """

    assert described(function) == ["adata"]
    assert "Returns" not in sections(function)
