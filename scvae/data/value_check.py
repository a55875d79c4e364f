"""Checks whether values are raw counts; every stored value is checked, in blocks, while the matrix is read.

If some are fractions, cells spread evenly over the data are examined as a whole (see `transforms`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, final

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from ..common.checks import is_raw, layers_of, warn
from ..kernels.rows import take_rows
from .containers import Block, is_dense, matrix_of, name_of, readable, var_names_of
from .rows import row_sums
from .schema import Kind
from .transforms import Transform, recognised

MOST_CELLS, LEAST_CELLS = 1_000, 100  # to examine
MOST_KEPT, MOST_EXAMINED = 2**23, 2**20  # of their values: 32 MB are kept
ROUNDING, RELATIVE_ROUNDING = 1e-4, 1e-6  # distance from an integer, the latter relative to it
UNCHANGED = 0.01  # of the values, if a correction has changed the others
FEWEST_GENES, MOST_GENES = 10, 0.9  # with a largest value of 1
PEEKED_CELLS = 1_000


@final
class ValueCheck:
    """Checks blocks of a matrix: refuses invalid values at once, and keeps some cells to examine as a whole.

    Parameters
    ----------
    kind
        Expected kind of the values.
    layer
        Layer of the values; None for `X`.
    adata
        Source of the names in messages; never changed.
    mask
        The genes that may be modelled, one bool per column of the matrix.
    kind_is_open
        Whether messages may suggest another likelihood, as in a fit.
    searched
        Whose other matrices are searched for raw counts, if not those of `adata`.

    Attributes
    ----------
    name
        Name of the matrix in messages.
    library
        float64 sum over the genes of `mask`, per cell.
    seen
        Whether a gene has any value other than 0.
    n_stored, n_kept
        Number of stored values so far, and of those in genes of `mask`.
    """

    def __init__(
        self,
        kind: Kind,
        layer: str | None,
        adata: AnnData,
        mask: NDArray[np.bool_],
        *,
        kind_is_open: bool,
        searched: AnnData | None = None,
    ) -> None:
        self._kind = kind
        self._kind_is_open = kind_is_open
        self._layer = layer
        self.name = name_of(layer)
        self._adata = adata
        self._searched = adata if searched is None else searched
        self._mask = mask
        self.library = np.zeros(adata.n_obs)
        self.seen = np.zeros(len(mask), dtype=bool)
        self.n_stored = 0
        self.n_kept = 0
        n_examined = min(MOST_CELLS, max(LEAST_CELLS, MOST_KEPT // len(mask)))
        self._examined = np.unique(np.linspace(0, adata.n_obs - 1, n_examined).astype(np.int64))
        self._pieces: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]] = []
        self._smallest, self._largest = math.inf, 0.0
        self._reach_one = np.zeros(len(mask), dtype=bool)
        self._n_filled = 0
        self._n_fractions = 0
        self._fraction = ""
        self._rounding = ""
        self._whole = WholeNumbers()

    def add(self, block: Block) -> None:
        """Checks a block of cells.

        Raises
        ------
        ValueError
            If a value is nan, infinite, negative (unless values are real), or other than 0 and 1 in binary data.
        """
        values = block.values
        if values.dtype.kind == "f":
            self._refuse(block, ~np.isfinite(values), "missing or infinite values", "remove or fill them first")
        if self._kind != "real" and values.dtype.kind in "if":
            is_negative = values < 0
            if is_negative.any() and values.min() >= -ROUNDING:
                place = "adata.X" if self._layer is None else f"adata.layers[{self._layer!r}]"
                remedy = f"these look like rounding errors; set them to 0: {place}[{place} < 0] = 0"
                self._refuse(block, is_negative, "negative values", remedy)
            self._refuse(block, is_negative, "negative values, so it looks scaled", self._advice)
        if self._kind == "binary":
            other = (values != 0) & (values != 1)
            remedy = "binarise it, e.g. adata.X = (adata.X > 0)"
            remedy += ", or pass likelihood='nb' for counts" if self._kind_is_open else ", as the model's data were"
            self._refuse(block, other, "values other than 0 and 1", remedy)
        filled = values != 0
        self.seen[block.columns[filled]] = True
        kept = self._mask[block.columns]
        self.n_stored += len(values)
        self.n_kept += int(kept.sum())
        self.library[block.cells] += row_sums(block.indptr, values if kept.all() else np.where(kept, values, 0))
        if self._kind == "counts" and filled.any():
            self._look_for_fractions(block, values[filled])
        if self._kind == "real":
            self._whole.add(values)

    def finish(self) -> None:
        """Checks whole cells, after the last block.

        Raises
        ------
        ValueError
            If some values are fractions, and cells show that they are a transform of counts.

        Warns
        -----
        UserWarning
            If some values are other fractions, or integers up to rounding errors; if real values are expected and all
            are counts.
        """
        if self._kind == "real":
            self._whole.finish(self.name, kind_is_open=self._kind_is_open)
        if self._n_fractions:
            found = self._transform()
            if found is not None:
                raise ValueError(
                    f"{self.name} looks {found.name}: {found.sign} (e.g. {self._fraction}); {self._advice()}"
                )
            warn(self._words_on_fractions())
        elif self._rounding:
            warn(
                f"{self.name} holds integers with rounding errors (e.g. {self._rounding}), which are used as they are; "
                "numpy.rint removes the errors"
            )

    def _look_for_fractions(self, block: Block, filled: NDArray[Any]) -> None:
        values = block.values
        self._n_filled += len(filled)
        self._smallest = min(self._smallest, float(filled.min()))
        self._largest = max(self._largest, float(filled.max()))
        if values.dtype.kind != "f":
            return
        cells = self._examined[(self._examined >= block.cells.start) & (self._examined < block.cells.stop)]
        indptr, _, kept = take_rows(block.indptr, block.columns, values, cells - block.first_cell, None)
        self._pieces.append((cells, np.diff(indptr), kept))
        is_whole = values == np.rint(values)
        if is_whole.all():
            return
        self._reach_one[block.columns[np.abs(values - 1.0) <= RELATIVE_ROUNDING]] = True
        fractions = _are_fractions(values)
        if not fractions.any():
            self._rounding = self._rounding or self._example(block, int(is_whole.argmin()))
        elif not self._n_fractions:
            self._fraction = self._example(block, int(fractions.argmax()))
        self._n_fractions += int(fractions.sum())

    def _transform(self) -> Transform | None:
        """The transform of counts that the cells with fractions show, if any."""
        cells, lengths, values = (np.concatenate(arrays) for arrays in zip(*self._pieces, strict=True))
        cells = np.repeat(cells, lengths)
        order = np.argsort(cells, kind="stable")  # a block may hold some genes of all cells
        cells, values = cells[order], values[order].astype(np.float64)
        with_fractions = np.unique(cells[_are_fractions(values)])
        examined = np.isin(cells, with_fractions[:: 1 + len(values) // MOST_EXAMINED]) & (values > 0)
        cells, values = cells[examined], values[examined]
        if len(values) == 0:
            return None
        indptr = np.append(np.flatnonzero(np.diff(cells, prepend=-1)), len(cells)).astype(np.int64)
        genes_reach_one = (
            self._largest <= 1.0 + RELATIVE_ROUNDING
            and self.seen.sum() >= FEWEST_GENES
            and np.mean(self._reach_one[self.seen]) >= MOST_GENES
        )
        return recognised(indptr, values, genes_reach_one=bool(genes_reach_one))

    def _words_on_fractions(self) -> str:
        share = self._n_fractions / self._n_filled
        text = (
            f"{100 * share:.3g} % of the non-zero values in {self.name} are not integers (e.g. {self._fraction}; the "
            f"values lie between {self._smallest:.4g} and {self._largest:.4g}); they are taken as counts"
        )
        found = where_counts_are(self._searched, self._layer)
        if found:
            return f"{text}, but {' or '.join(found)} looks like raw counts"
        if share < 1.0 - UNCHANGED:
            text += ", which suits counts corrected for ambient RNA and reads shared out among genes"
        other = " or likelihood='gaussian'" if self._kind_is_open else ""
        return f"{text}; if they are anything else, pass raw counts{other}"

    def _refuse(self, block: Block, wrong: NDArray[np.bool_], what: str, remedy: str | Callable[[], str]) -> None:
        if not wrong.any():
            return
        remedy = remedy if isinstance(remedy, str) else remedy()
        example = self._example(block, int(wrong.argmax()))
        raise ValueError(f"{self.name} has {what} ({example}); {remedy}")

    def _example(self, block: Block, entry: int) -> str:
        row = int(np.searchsorted(block.indptr, entry, side="right")) - 1
        genes = var_names_of(self._adata, self._layer)
        cell, gene = self._adata.obs_names[block.first_cell + row], genes[int(block.columns[entry])]
        return example(block.values[entry], cell, gene)

    def _advice(self) -> str:
        found = where_counts_are(self._searched, self._layer)
        if found:
            return f"pass raw counts: {' or '.join(found)} looks like counts"
        other = " or pass likelihood='gaussian'" if self._kind_is_open else ""
        return f"neither X, another layer nor adata.raw looks like counts; load the raw counts{other}"


def _are_fractions(values: NDArray[Any]) -> NDArray[np.bool_]:
    """Which values are not integers, even up to rounding errors; any value between 0 and 0.5 is not."""
    allowed = np.where(values > 0.5, np.maximum(RELATIVE_ROUNDING * values, ROUNDING), 0.0)
    found: NDArray[np.bool_] = np.abs(values - np.rint(values)) > allowed
    return found


def example(value: Any, cell: str, gene: str) -> str:
    """A value with its cell and gene, for a message; with all its digits if it would look like an integer otherwise."""
    text = f"{value:.6g}"
    text = str(value) if value != (shown := float(text)) and shown.is_integer() else text
    return f"{text} at cell {cell!r}, gene {gene!r}"


@final
class WholeNumbers:
    """Whether values that should be real are raw counts: all of them whole numbers, and none negative."""

    def __init__(self) -> None:
        self._are_whole, self._largest = True, 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Looks at a block of values, in any shape."""
        if self._are_whole and values.size:
            self._largest = max(self._largest, float(values.max()))
            self._are_whole = bool(values.min() >= 0 and (values == np.rint(values)).all())

    def finish(self, name: str, *, kind_is_open: bool) -> None:
        """Warns if they are; the arguments are those of `ValueCheck`."""
        if self._are_whole and self._largest > 1.0:
            of_fit = "pass likelihood='nb', or transform them first"
            remedy = of_fit if kind_is_open else "transform them as the values of the fit were"
            warn(
                f"{name} holds only whole numbers, up to {self._largest:.6g}, as raw counts do, and the Gaussian head "
                f"is for log or CLR values; {remedy}"
            )


def check_finite(chunk: NDArray[Any], first_cell: int, name: str, cells: pd.Index, genes: pd.Index) -> None:
    """Raises ValueError if a block of dense cells has a nan or infinite value."""
    wrong = ~np.isfinite(chunk)
    if wrong.any():
        cell, gene = np.unravel_index(int(wrong.argmax()), chunk.shape)
        at = example(chunk[cell, gene], cells[first_cell + int(cell)], genes[int(gene)])
        raise ValueError(f"{name} has missing or infinite values ({at}); remove or fill them first")


def where_counts_are(adata: AnnData, layer: str | None) -> list[str]:
    """Other matrices that look like counts in their first cells, written as the arguments to pass."""
    return [
        f"layer={other!r}" + (" (adata.X)" if other is None else " (adata.raw)" if is_raw(adata, other) else "")
        for other in (None, *layers_of(adata))
        if other != layer and _looks_like_counts(adata, other)
    ]


def _looks_like_counts(adata: AnnData, layer: str | None) -> bool:
    try:
        matrix = matrix_of(adata, layer)
    except (TypeError, ValueError):
        return False
    return _peek_is_counts(matrix, name_of(layer))


def _peek_is_counts(matrix: Any, name: str) -> bool:
    try:
        part = readable(matrix, name)[:PEEKED_CELLS]
    except TypeError:
        return False
    part = part.compute() if hasattr(part, "dask") else part
    values = np.asarray(part) if is_dense(part) else part.data
    return bool(values.size and values.any() and (values >= 0).all() and (values == np.rint(values)).all())
