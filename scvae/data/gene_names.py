"""Other columns and spellings of gene names, for messages: genes are matched by the names as they stand."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

import pandas as pd
from pandas.api.types import is_bool_dtype, is_float_dtype

# what makes names alike: in words, as a function, and as its source
ALIKE: Final[dict[str, tuple[Callable[[str], str], str]]] = {
    "": (str, "str"),
    "without versions": (
        lambda name: re.sub(r"^(ENS[A-Z]*\d+)\.\d+", r"\1", name),
        r"lambda name: re.sub(r'^(ENS[A-Z]*\d+)\.\d+', r'\1', name)",
    ),
    "in another case": (str.upper, "str.upper"),
    "with other separators": (
        lambda name: re.sub(r"[._]", "-", name),
        "lambda name: re.sub('[._]', '-', name)",
    ),
    "without the genome": (
        lambda name: re.sub(r"^(GRC[a-z]\d+|hg\d+|mm\d+)_+", "", name),
        r"lambda name: re.sub(r'^(GRC[a-z]\d+|hg\d+|mm\d+)_+', '', name)",
    ),
}


class Match(NamedTuple):
    """Where more genes would be found.

    Parameters
    ----------
    n
        How many of those wanted.
    column
        Column of `var`; None for the index.
    alike
        What makes the names alike, a key of `ALIKE`.
    """

    n: int
    column: str | None
    alike: str

    def where(self, owner: str) -> str:
        """The names of an AnnData called `owner`, in words."""
        place = f"{owner}.var_names" if self.column is None else f"{owner}.var[{self.column!r}]"
        return f"{place} {self.alike}".strip()

    def rename(self) -> str:
        """Code that gives `adata` the names of `model`."""
        place = "adata.var_names" if self.column is None else f"adata.var[{self.column!r}]"
        if not self.alike:
            return f"adata.var_names = {place}.astype(str)"
        change = ALIKE[self.alike][1]
        needed = "import re; " if "re." in change else ""
        return (
            f"{needed}key = {change}; known = {{key(gene): gene for gene in model.genes}}; "
            f"adata.var_names = [known.get(key(name), name) for name in {place}.astype(str)]"
        )


def better_match(var: pd.DataFrame, wanted: pd.Index) -> Match | None:
    """The column of `var` and the spelling with the most genes of `wanted`; None if none has more than the index."""
    columns: dict[str | None, pd.Index] = {None: var.index}
    for key in var.columns[var.columns.map(lambda key: isinstance(key, str))].unique():
        column = var[key]
        if isinstance(column, pd.Series) and not is_float_dtype(column) and not is_bool_dtype(column):
            columns[key] = pd.Index(column)
    found = []
    for key, names in columns.items():
        text = {str(name) for name in names}
        for alike, (change, _) in ALIKE.items():
            changed = set(map(change, text))
            found.append(Match(sum(change(gene) in changed for gene in wanted), key, alike))
    best = max(found, key=lambda match: match.n)  # the first of equal ones, so as they are in the index if possible
    return best if best.n > found[0].n else None
