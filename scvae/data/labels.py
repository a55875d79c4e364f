"""Known cell types of some cells, which a fit may learn to tell apart: a column of `obs` as codes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData
from jaxtyping import Bool, Int
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from ..common.checks import check_obs_column, listing, warn
from .categories import spelling

UNKNOWN = "unknown"  # what a cell is called that is like none of the labels
UNLABELLED = -1  # code of a cell without a label
LABEL_WEIGHT = 10.0  # by default; measured: see benchmarks/README.md
FEW_LABELS = 20  # up to this many labels are accepted for any number of cells


@dataclass(frozen=True, slots=True)
class Labels:
    """The labels of a fit.

    Parameters
    ----------
    key
        Column of `obs`.
    names
        The labels in the order of their codes 0, 1, ..., without those in `coarse`.
    unlabelled
        Value of the column in cells without a label, besides missing values; None if there is none.
    weight
        Weight of the label term: the objective of a labelled cell has `weight` log p(label | z) in nats.
    coarse
        Coarser labels, whose codes follow: the name of each, and the codes of the labels under it.
    """

    key: str
    names: tuple[str, ...]
    unlabelled: str | None
    weight: float
    coarse: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def every(self) -> tuple[str, ...]:
        """All labels of cells, in the order of their codes: the names, then the coarser ones."""
        return (*self.names, *(name for name, _ in self.coarse))

    @property
    def members(self) -> Bool[np.ndarray, "codes names"]:
        """Which of the names a cell with each code may have: one, or those under a coarser label."""
        own = np.eye(len(self.names), dtype=bool)
        return np.vstack([own, *(own[list(under)].any(0) for _, under in self.coarse)])

    def codes(self, adata: AnnData) -> Int[np.ndarray, " cells"]:
        """int64 code of the label of each cell, `UNLABELLED` for cells without one.

        Raises
        ------
        MissingKeyError
            If the column does not exist.
        ValueError
            If it has other labels.
        """
        text = _text_of(check_obs_column(adata, self.key))
        known = {spelling(name): code for code, name in enumerate(self.every)}
        missing = text.isna() | (text == self.unlabelled)
        codes = np.array([known.get(name, UNLABELLED) for name in text], dtype=np.int64)
        strange = text[(codes == UNLABELLED) & ~missing.to_numpy()]
        if len(strange):
            raise ValueError(
                f"adata.obs[{self.key!r}] has {listing(strange.unique(), 5)}, unknown to the model, whose labels are "
                f"{listing(self.every)}; with init, pass labels_key to add labels"
            )
        return codes

    def to_json(self) -> dict[str, Any]:
        """The labels as strings, numbers, lists and dicts."""
        record = asdict(self) | {"names": list(self.names)}
        if not self.coarse:
            del record["coarse"]  # as in files and checkpoints of versions that had none
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any] | None) -> Labels | None:
        """The inverse of `to_json`; None of None."""
        if record is None:
            return None
        coarse = tuple((name, tuple(under)) for name, under in record.get("coarse", ()))
        return cls(**record | {"names": tuple(record["names"]), "coarse": coarse})


def learn_labels(
    adata: AnnData, key: str, unlabelled: str | None, weight: float, known: Labels | None = None
) -> Labels:
    """The labels in a column of `obs`, after those already `known` to a model.

    Raises
    ------
    MissingKeyError
        If the column does not exist.
    ValueError
        If it holds numbers or no value at all, has no cell with the value `unlabelled`, a label ``"unknown"``, nearly
        as many labels as cells, or fewer than two labels.

    Warns
    -----
    UserWarning
        If a category of the column has no cell.
    """
    column = check_obs_column(adata, key)
    where = f"adata.obs[{key!r}]"
    if column.isna().all():
        raise ValueError(f"{where} has no label: all values are missing; leave labels_key out, or label some cells")
    if not isinstance(column.dtype, pd.CategoricalDtype) and is_numeric_dtype(column) and not is_bool_dtype(column):
        raise ValueError(
            f"{where} has numbers ({column.dtype}), not names of types; if they are codes of types, make them text: "
            f"{where} = {where}.astype(str)"
        )
    text = _text_of(column)
    value = None if unlabelled is None else spelling(str(unlabelled))
    if value is not None and not (text == value).any():
        raise ValueError(
            f"unlabelled is {unlabelled!r}, which no cell of {where} has (but {listing(text.dropna().unique(), 5)}); "
            "leave it out if cells without a label are missing values"
        )
    labelled = text[text.notna() & (text != value)]
    names = tuple(sorted(set(labelled)))
    check_names(names, len(labelled), where, f"pass unlabelled={UNKNOWN!r} if these cells have no label, or rename it")
    _warn_of_empty(column, labelled, value, where)
    earlier, coarse = ((), ()) if known is None else (known.names, known.coarse)
    of_model = set() if known is None else {spelling(name) for name in known.every}
    new = tuple(name for name in names if name not in of_model)
    if len(earlier) + len(new) < 2:
        raise ValueError(f"{where} has the labels {listing(names)}; at least two labels are needed to tell them apart")
    return Labels(key, earlier + new, value, weight, coarse)


def labels_in(column: pd.Series, where: str) -> pd.Categorical:
    """The labels of a reference, in alphabetical order; missing where a cell has none.

    Parameters
    ----------
    column
        Column of `obs`.
    where
        The column, for messages.

    Raises
    ------
    ValueError
        If fewer than two cells have a label, or as `check_names`.
    """
    text = column.astype(object).map(str, na_action="ignore")
    names, n_labelled = sorted(set(text.dropna())), int(text.notna().sum())
    if n_labelled < 2:
        raise ValueError(f"{where} labels {n_labelled} cells; pass at least two")
    check_names(names, n_labelled, where, "rename it, or set it to NaN to leave these cells out")
    return pd.Categorical(text, categories=names)


def check_names(names: Sequence[str], n_labelled: int, where: str, remedy: str) -> None:
    """Checks the different labels of some cells.

    Parameters
    ----------
    names
        The labels.
    n_labelled
        Number of cells with a label.
    where
        The column, for messages.
    remedy
        What to do about a label ``"unknown"``.

    Raises
    ------
    ValueError
        If there are nearly as many labels as cells, or one is ``"unknown"``.
    """
    if len(names) > max(FEW_LABELS, n_labelled // 2):
        raise ValueError(
            f"{where} has {len(names):,} different values in {n_labelled:,} cells ({listing(names, 3)}); pass a "
            "column of labels that many cells share"
        )
    if UNKNOWN in names:
        raise ValueError(
            f"{where} has the label {UNKNOWN!r} ({listing(names)}), which is reserved for cells without a counterpart; "
            f"{remedy}"
        )


def _text_of(column: pd.Series) -> pd.Series:
    """The column as text by which labels are compared; missing values stay missing."""
    return column.astype(object).map(lambda value: spelling(str(value)), na_action="ignore")


def _warn_of_empty(column: pd.Series, labelled: pd.Series, unlabelled: str | None, where: str) -> None:
    if not isinstance(column.dtype, pd.CategoricalDtype):
        return
    present = {*labelled, unlabelled}
    empty = [str(name) for name in column.cat.categories if spelling(str(name)) not in present]
    if empty:
        warn(f"{where} has categories without cells ({listing(empty)}); the model does not know these labels")
