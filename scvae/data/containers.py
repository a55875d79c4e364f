"""The kinds of matrix that an AnnData may hold, read in pieces as compressed rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from anndata.abc import CSCDataset, CSRDataset
from numpy.typing import NDArray

from ..common.checks import RAW, check_layer, is_raw
from ..kernels.rows import keep_entries
from .rows import BLOCK, row_ranges


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """Some consecutive cells as compressed rows, with the columns of the file.

    Row 0 is the cell `first_cell`; a block may hold only some of the columns.
    """

    first_cell: int
    indptr: NDArray[np.int64]
    columns: NDArray[Any]
    values: NDArray[Any]

    @property
    def cells(self) -> slice:
        """The cells of this block."""
        return slice(self.first_cell, self.first_cell + len(self.indptr) - 1)


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """Compressed rows of all cells, with the columns of the file; no column occurs twice in a row."""

    indptr: NDArray[np.integer[Any]]
    columns: NDArray[Any]
    values: NDArray[Any]
    is_sorted: bool


def matrix_of(adata: AnnData, layer: str | None) -> Any:
    """The matrix of a layer (None for `X`) in a form that `blocks` can read, without changing `adata`.

    Its columns are the genes of `adata`; those of ``"raw"`` are the genes of `adata.raw` (see `var_names_of`).

    Raises
    ------
    MissingKeyError
        If the layer does not exist.
    ValueError
        If `adata` is a view of a backed AnnData.
    TypeError
        If the container or the element type cannot be read.
    """
    check_layer(adata, layer)
    if adata.isbacked and adata.is_view:
        raise ValueError("adata is a view of a backed file; call adata.to_memory() or adata.copy(filename) first")
    matrix = adata.X if layer is None else adata.raw.X if is_raw(adata, layer) else adata.layers[layer]
    return readable(matrix, name_of(layer))


def name_of(layer: str | None) -> str:
    """The name of a matrix in messages: "X", "layers['counts']" or "layer 'raw'"."""
    return "X" if layer is None else f"layer {RAW!r}" if layer == RAW else f"layers[{layer!r}]"


def var_names_of(adata: AnnData, layer: str | None) -> pd.Index:
    """Names of the columns of the matrix of a layer."""
    return adata.raw.var_names if is_raw(adata, layer) else adata.var_names


def readable(matrix: Any, name: str) -> Any:
    """`matrix` as a scipy CSR matrix, a numpy array or a matrix on disk; errors as in `matrix_of`."""
    if isinstance(matrix, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; fill its gaps first, e.g. with .filled(0)")
    if isinstance(matrix, pd.DataFrame):
        matrix = matrix.to_numpy()
    if sp.issparse(matrix):
        matrix = matrix if matrix.format == "csr" else matrix.tocsr()
    elif isinstance(matrix, np.ndarray):
        matrix = np.asarray(matrix)
    elif not isinstance(matrix, CSRDataset | CSCDataset) and not _is_array_on_disk(matrix):
        raise TypeError(f"{name} is a {type(matrix).__name__}; pass a scipy CSR or CSC matrix or a numpy array")
    if np.dtype(matrix.dtype).kind not in "biuf":
        raise TypeError(f"{name} holds values of type {matrix.dtype}; pass integers or floating point numbers")
    return matrix


def is_dense(matrix: Any) -> bool:
    """Whether every value is stored."""
    return not sp.issparse(getattr(matrix, "_meta", matrix)) and not isinstance(matrix, CSRDataset | CSCDataset)


def blocks(matrix: Any) -> Iterator[Block]:
    """All values of a matrix in memory, or of a CSC matrix on disk, in pieces of about `BLOCK`; CSR is not copied."""
    if sp.issparse(matrix):
        for start, stop in row_ranges(matrix.indptr):
            yield _rows_of(matrix, start, stop)
    elif isinstance(matrix, CSCDataset):
        for start, stop in row_ranges(matrix.group["indptr"][...]):
            yield _block(0, matrix[:, start:stop].tocsr(), first_column=start)
    else:
        for start, chunk in dense_chunks(matrix):
            rows, columns = np.nonzero(chunk)
            indptr = np.searchsorted(rows, np.arange(len(chunk) + 1)).astype(np.int64)
            yield Block(start, indptr, columns.astype(np.int32), chunk[rows, columns])


def dense_chunks(matrix: Any) -> Iterator[tuple[int, NDArray[Any]]]:
    """The first cell and the values of consecutive cells of a dense matrix, about `BLOCK` values at a time."""
    n_cells, n_columns = matrix.shape
    step = max(1, BLOCK // n_columns)
    for start in range(0, n_cells, step):
        yield start, np.asarray(matrix[start : start + step])


def without_duplicates(matrix: Any) -> tuple[Any, bool]:
    """A CSR matrix in memory whose rows hold each column once, and whether the columns of each row are ascending.

    scipy's own test would store its result in the user's matrix, and its repair would change that matrix. A matrix
    with duplicates is therefore repaired in a copy; any other is returned as it is.
    """
    is_sorted = True
    for start, stop in row_ranges(matrix.indptr):
        block = _rows_of(matrix, start, stop)
        if rises(block.indptr, block.columns):
            continue
        is_sorted = False
        row = np.repeat(np.arange(stop - start), np.diff(block.indptr))
        key = np.sort(row * matrix.shape[1] + block.columns)
        if (key[1:] == key[:-1]).any():
            values = matrix.data.astype(np.int64) if matrix.data.dtype.kind in "iu" else matrix.data.copy()
            # integers are widened because a sum may not fit, e.g. 200 + 100 in uint8
            repaired = sp.csr_array((values, matrix.indices.copy(), matrix.indptr.copy()), shape=matrix.shape)
            repaired.sum_duplicates()
            return repaired, True
    return matrix, is_sorted


def rises(indptr: NDArray[np.int64], columns: NDArray[Any]) -> bool:
    """Whether the columns of each row are ascending."""
    larger = columns[1:] > columns[:-1]
    starts = indptr[1:-1]
    larger[starts[(starts > 0) & (starts < len(columns))] - 1] = True  # the first column of a row may be smaller
    return bool(larger.all())


def gather(pieces: list[Block], shape: tuple[int, int]) -> Stored:
    """Concatenates blocks along the cells, or along the columns if each block holds all cells and some columns."""
    columns = np.concatenate([piece.columns for piece in pieces])
    values = np.concatenate([piece.values for piece in pieces])
    if len(pieces) > 1 and all(piece.cells == slice(0, shape[0]) for piece in pieces):
        cells = np.concatenate([np.repeat(np.arange(shape[0]), np.diff(piece.indptr)) for piece in pieces])
        joined = sp.coo_array((values, (cells, columns)), shape=shape).tocsr()
        return Stored(joined.indptr.astype(np.int64), joined.indices, joined.data, is_sorted=True)
    lengths = np.concatenate([np.diff(piece.indptr) for piece in pieces])
    indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Stored(indptr, columns, values, is_sorted=True)


def masked(block: Block, mask: NDArray[np.bool_]) -> Block:
    """The entries of a block in the columns of `mask`, stored in types of at most four bytes."""
    indptr, columns, values = keep_entries(block.indptr, block.columns, block.values, mask[block.columns])
    narrow = values if values.dtype.itemsize <= 4 else values.astype(np.float32)
    return Block(block.first_cell, indptr, columns.astype(np.int32), narrow)


def renumbered(block: Block, place: NDArray[np.integer[Any]]) -> Block:
    """The entries of a block whose columns have a place, with these places as columns; -1 is no place."""
    kept = place[block.columns] >= 0
    indptr, columns, values = keep_entries(block.indptr, block.columns, block.values, kept)
    return Block(block.first_cell, indptr, place[columns], values)


def _rows_of(matrix: Any, start: int, stop: int) -> Block:
    indptr = np.asarray(matrix.indptr[start : stop + 1], dtype=np.int64)
    part = slice(int(indptr[0]), int(indptr[-1]))
    return Block(start, indptr - indptr[0], matrix.indices[part], matrix.data[part])


def _block(first_cell: int, piece: Any, first_column: int = 0) -> Block:
    """A piece that was read from disk, which may therefore be changed, as a block."""
    piece, is_sorted = without_duplicates(piece)
    if not is_sorted:
        piece.sort_indices()
    columns = piece.indices if first_column == 0 else piece.indices + first_column
    return Block(first_cell, piece.indptr.astype(np.int64), columns, piece.data)


def _is_array_on_disk(matrix: Any) -> bool:
    """Whether this is an h5py.Dataset, zarr.Array or dask.array.Array, without importing any of them."""
    return type(matrix).__module__.partition(".")[0] in ("dask", "h5py", "zarr") and len(matrix.shape) == 2
