"""Trees of labels from an ontology in the OBO format, such as the Cell Ontology."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.checks import listing, warn

OBO = (".obo", ".obo.gz")
EXACT = re.compile(r'^"(.*)" EXACT\b')  # a synonym of a term


def is_ontology(path: str | os.PathLike[str]) -> bool:
    """Whether a text is the path of an OBO file, by its ending."""
    return str(path).lower().endswith(OBO)


def parents_in_ontology(path: str | os.PathLike[str], labels: Sequence[str]) -> dict[str, str | None]:
    """The parent of each label and class in an ontology, where a class of cells may have several.

    A label is the term of its name, else of its id, else of an exact synonym; upper and lower case are alike. Of the
    classes by ``is_a``, those that part the labels are kept: of classes with the same labels the most specific one,
    and of two that share some labels only, the one with more labels.

    Parameters
    ----------
    path
        OBO file.
    labels
        The labels.

    Returns
    -------
    dict
        Child to parent; None for children of the root.

    Warns
    -----
    UserWarning
        If the ontology lacks some labels. They are children of the root.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ImportError
        If obonet is not installed.
    ValueError
        If the file is no ontology, or has none of the labels.
    """
    terms, above, found = _labels_in(path, labels)
    lines = {label: set(_line(term, above)) for label, term in found.items()}
    own = {term: label for label, term in found.items()}
    below: dict[str, frozenset[str]] = {
        term: frozenset(label for label, line in lines.items() if term in line) for term in set().union(*lines.values())
    }
    depth = {term: len(_line(term, above)) for term in below}
    kept: list[str] = []
    for term in sorted(below, key=lambda term: (-len(below[term]), term not in own, -depth[term], term)):
        here = below[term]
        parts = 1 < len(here) < len(labels) or term in own
        if parts and all(here < below[other] or not here & below[other] for other in kept):
            kept.append(term)
    names = {term: own.get(term, terms[term]["name"]) for term in kept}
    inner = [term for term in kept if len(below[term]) > 1]

    def parent(label_set: frozenset[str], itself: str | None) -> str | None:
        around = [term for term in inner if term != itself and label_set <= below[term]]
        return names[min(around, key=lambda term: len(below[term]))] if around else None

    pairs = {names[term]: parent(below[term], term) for term in inner}
    return pairs | {label: parent(frozenset([label]), term) for label, term in found.items() if label not in pairs}


def labels_below(path: str | os.PathLike[str], labels: Sequence[str]) -> dict[str, set[str]]:
    """The other labels that are of the class of each label; errors and warnings are those of `parents_in_ontology`."""
    _, above, found = _labels_in(path, labels)
    lines = {label: _line(term, above)[1:] for label, term in found.items()}
    return {label: {other for other, line in lines.items() if found.get(label) in line} for label in labels}


def _labels_in(
    path: str | os.PathLike[str], labels: Sequence[str]
) -> tuple[Mapping[str, Any], dict[str, list[str]], dict[str, str]]:
    """The terms of an ontology, the parents of each, and the term of each label that has one."""
    terms, above = _read(path)
    found = _terms_of(labels, terms)
    lacking = [label for label in labels if label not in found]
    if not found:
        raise ValueError(
            f"{path} has no term for any label ({listing(labels, 5)}); labels must be names, ids or exact "
            "synonyms of its terms, or pass hierarchy as a dict"
        )
    if lacking:
        warn(f"{path} has no term for the labels {listing(lacking)}, which become children of the root")
    return terms, above, found


def _read(path: str | os.PathLike[str]) -> tuple[Mapping[str, Any], dict[str, list[str]]]:
    """Data of each term with a name, and its parents by ``is_a``."""
    try:
        import obonet
    except ImportError as error:
        raise ImportError(
            f"{str(path)!r} is an ontology, which obonet reads: pip install 'scvae-torch[ontology]'"
        ) from error
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no such file as {str(path)!r}; pass the path of an OBO file")
    try:
        graph = obonet.read_obo(path)
    except (ValueError, KeyError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} cannot be read as an OBO file ({why}); pass an ontology such as cl.obo") from error
    terms = {term: data for term, data in graph.nodes(data=True) if "name" in data}
    return terms, {term: [p for _, p, kind in graph.out_edges(term, keys=True) if kind == "is_a"] for term in terms}


def _terms_of(labels: Sequence[str], terms: Mapping[str, Any]) -> dict[str, str]:
    """The term of each label that has one."""
    known: dict[str, str] = {}
    synonyms = ((text, term) for term, data in terms.items() for text in _synonyms(data))
    names = ((data["name"], term) for term, data in terms.items())
    for text, term in (*synonyms, *((term, term) for term in terms), *names):  # the last wins
        known[text.casefold()] = term
    return {label: known[label.casefold()] for label in labels if label.casefold() in known}


def _synonyms(data: Mapping[str, Any]) -> Iterator[str]:
    for text in data.get("synonym", []):
        if match := EXACT.match(text):
            yield match[1]


def _line(term: str, above: Mapping[str, list[str]]) -> list[str]:
    """A term and all classes above it."""
    line = [term]
    for at in line:
        line += [parent for parent in above.get(at, []) if parent not in line]
    return [at for at in line if at in above]
