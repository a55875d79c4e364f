"""Checks whether values are raw counts; every stored value is checked, in blocks, while the matrix is read.

Fractional values look normalised in two cases:

* The sums over all genes, of the values or of the values before a logarithm, are the same in every cell. The middle
  90 % of the sums may differ by 1 % of their median: rounding to half precision changes a sum by less, while the
  depths of real cells differ by tens of per cent.
* In a matrix cut to some genes, whose sums differ: each cell's values are integer multiples of its smallest value (the
  count 1, scaled by that cell's depth), and the cells have no unit in common.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, final

import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray

from ..common.checks import is_raw, layers_of, warn
from ..kernels.csr import CSR
from .containers import Block, is_dense, matrix_of, name_of, readable, var_names_of
from .rows import Rows, reduce_rows, row_sums
from .schema import Kind

SPREAD = 0.01  # relative; see the docstring of this module
FEWEST_SUMS = 3  # two cells can have the same depth by chance
FEWEST_CELLS = 20  # with fewer cells, multiples are not evidence
TESTED_CELLS = 2_000
LARGEST_LOGARITHM = 30.0  # no cell has 2^30 molecules of a gene
LARGEST_MULTIPLE = 20  # larger multiples are not resolved within the tolerance in half precision
TOLERANCE = 0.01  # of the unit; a random fraction passes with a probability of 2 %, a cell full of them hardly ever
PEEKED_CELLS = 1_000

Transform = Callable[[NDArray[np.float64]], NDArray[np.float64]]
BEFORE_LOGARITHM: Final[dict[str, Transform]] = {
    "normalised": lambda values: values,
    "log-normalised": np.expm1,
    "log2-normalised": lambda values: np.exp2(values) - 1.0,
}


@final
class ValueCheck:
    """Checks blocks of a matrix: refuses invalid values at once, and keeps sums for the checks that need all cells.

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
        self._sums = {name: np.zeros(adata.n_obs) for name in BEFORE_LOGARITHM}
        self._n_fractions = 0
        self._n_filled = 0
        self._fraction = ""
        self._could_be_logarithms = True

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
            self._refuse(block, values < 0, "negative values, so it looks scaled", self._advice)
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
        self._n_filled += int(filled.sum())
        self.library[block.cells] += row_sums(block.indptr, values if kept.all() else np.where(kept, values, 0))
        if self._kind == "counts":
            self._look_for_fractions(block)

    def finish(self, rows: Rows) -> None:
        """Checks all cells together, after the last block.

        Parameters
        ----------
        rows
            The modelled values; up to 2,000 cells are checked again if there are fractions.

        Raises
        ------
        ValueError
            If some values are fractions and look normalised.

        Warns
        -----
        UserWarning
            If some values are fractions but do not look normalised.
        """
        if self._n_fractions == 0:
            return
        possible = [name for name in BEFORE_LOGARITHM if name == "normalised" or self._could_be_logarithms]
        for name in possible:
            sums = self._sums[name]
            if _nearly_constant(sums):
                total = float(np.median(sums[sums > 0]))
                raise self._looks(name, f"{_before(name)} sum to about {total:.6g} in every cell")
        tested = rows.take(np.unique(np.linspace(0, rows.n_cells - 1, TESTED_CELLS).astype(np.int64)))
        assert isinstance(tested, CSR)
        indptr, values = tested.indptr.numpy(), tested.values.numpy()
        for name in possible:
            if _are_multiples(indptr, values, BEFORE_LOGARITHM[name]):
                multiples = "are whole multiples of a number that differs between cells"
                raise self._looks(name, f"in each cell, {_before(name)} {multiples}")
        warn(
            f"{100 * self._n_fractions / self._n_filled:.3g} % of the non-zero values in {self.name} are not integers "
            f"(e.g. {self._fraction}); this is expected after correction for ambient RNA; otherwise, pass raw counts"
        )

    def _looks(self, name: str, sign: str) -> ValueError:
        return ValueError(f"{self.name} looks {name}: {sign} (e.g. {self._fraction}); {self._advice()}")

    def _look_for_fractions(self, block: Block) -> None:
        values = block.values
        self._sums["normalised"][block.cells] += row_sums(block.indptr, values)
        fractions = values != np.rint(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        n_fractions = int(fractions.sum())
        if n_fractions == 0:
            # logarithms of scaled counts are not integers, so one block without fractions rules them out
            self._could_be_logarithms &= not values.any()
            return
        if self._n_fractions == 0:
            self._fraction = self._example(block, int(fractions.argmax()))
        self._n_fractions += n_fractions
        self._could_be_logarithms &= bool(values.max() <= LARGEST_LOGARITHM)
        if not self._could_be_logarithms:
            return
        wide = values.astype(np.float64)
        for name, transform in BEFORE_LOGARITHM.items():
            if name != "normalised":
                self._sums[name][block.cells] += row_sums(block.indptr, transform(wide))

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


def example(value: Any, cell: str, gene: str) -> str:
    """A value with its cell and gene, for a message."""
    return f"{value:.6g} at cell {cell!r}, gene {gene!r}"


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


def _before(name: str) -> str:
    return {"normalised": "its values", "log-normalised": "exp(value) - 1", "log2-normalised": "2^value - 1"}[name]


def _nearly_constant(sums: NDArray[np.float64]) -> bool:
    sums = sums[sums > 0]
    if len(sums) < FEWEST_SUMS:
        return False
    low, middle, high = np.percentile(sums, [5, 50, 95])
    return bool(high - low < SPREAD * middle)


def _are_multiples(indptr: NDArray[np.int64], values: NDArray[np.float32], transform: Transform) -> bool:
    """Whether the values of cells with fractions are integer multiples of a unit that differs between cells."""
    plain = transform(values.astype(np.float64))
    positive = np.where(plain > 0, plain, np.inf)
    unit = reduce_rows(np.minimum, indptr, positive, np.inf)
    fraction = reduce_rows(np.maximum, indptr, (values != np.rint(values)).astype(np.float64), 0.0) > 0
    with np.errstate(invalid="ignore", over="ignore"):  # neither inf / inf nor a huge multiple is used
        multiple = np.where(np.isfinite(positive), positive / np.repeat(unit, np.diff(indptr)), 0.0)
    multiple[multiple > LARGEST_MULTIPLE] = 0.0
    distance = reduce_rows(np.maximum, indptr, np.abs(multiple - np.rint(multiple)), 0.0)
    largest = reduce_rows(np.maximum, indptr, multiple, 0.0)
    tested = fraction & (largest > 1.5)
    if tested.sum() < FEWEST_CELLS or np.mean(distance[tested] <= TOLERANCE) < 0.99:
        return False
    relative = unit[tested] / unit[tested].min()
    in_common = np.abs(relative - np.rint(relative)) <= TOLERANCE  # all counts times 0.9 share the unit 0.9
    return bool(np.mean(in_common) < 0.5)
