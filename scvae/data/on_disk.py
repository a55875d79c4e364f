"""Matrices that stay on disk: runs of cells that any thread can read, and one pass over all values in blocks."""

from __future__ import annotations

import functools
import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, final

import numpy as np
import scipy.sparse as sp
import torch
from anndata import AnnData
from anndata.abc import CSRDataset
from numpy.typing import NDArray

from .chunk_table import ChunkTable, of_hdf5, of_zarr
from .containers import Block, rises, without_duplicates
from .rows import BLOCK, row_ranges

LIBRARY_LOCK = threading.Lock()  # only one thread at a time calls h5py or zarr
TASK = 2**19  # stored values that a thread reads at a time: about 4 MB
LOCAL_STORES = ("LocalStore", "DirectoryStore", "NestedDirectoryStore")

Run = tuple[int, int]  # first cell, and one past the last
A = TypeVar("A")
B = TypeVar("B")


class Raw(NamedTuple):
    """Compressed rows with the columns and types of the file."""

    indptr: NDArray[np.int64]
    columns: NDArray[Any]
    values: NDArray[Any]


@final
class Slices:
    """A one-dimensional array that its library reads, one thread at a time."""

    def __init__(self, dataset: Any) -> None:
        self.length, self.dtype = int(dataset.shape[0]), dataset.dtype
        self.per_chunk, self.is_coded = int(dataset.chunks[0]) if dataset.chunks else 1, bool(dataset.chunks)
        self._dataset = dataset

    def read(self, ranges: list[tuple[int, int]]) -> NDArray[Any]:
        """See `ChunkTable.read`."""
        with LIBRARY_LOCK:
            pieces = [self._dataset[start:stop] for start, stop in ranges]
        return np.concatenate(pieces)


class OnDisk(ABC):
    """A matrix of cells x columns in one file.

    Attributes
    ----------
    indptr
        Where the stored values of each cell begin, and where those of the last end; None if not known before reading.
    """

    name: str
    shape: tuple[int, int]
    dtype: np.dtype[Any]
    indptr: NDArray[np.int64] | None = None

    @property
    @abstractmethod
    def values_per_cell(self) -> float:
        """Mean number of stored values per cell."""

    @property
    @abstractmethod
    def cells_per_chunk(self) -> float:
        """Smallest number of cells that can be read at a time."""

    @abstractmethod
    def ranges(self) -> list[Run]:
        """All cells, cut into runs of about `BLOCK` values."""

    @abstractmethod
    def task_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of the task that reads each of some ascending cells; the cells of a task are read together."""

    @abstractmethod
    def read(self, runs: list[Run]) -> Raw:
        """The rows of ascending runs of cells, concatenated."""


@final
class CompressedOnDisk(OnDisk):
    """A CSR matrix: `indptr` in memory, columns and values in the file."""

    def __init__(
        self, name: str, indptr: NDArray[Any], columns: ChunkTable | Slices, values: ChunkTable | Slices, n_columns: int
    ) -> None:
        self.name, self.shape, self.dtype = name, (len(indptr) - 1, n_columns), values.dtype
        self.indptr: NDArray[np.int64] = np.asarray(indptr, np.int64)
        self._columns, self._values = columns, values
        n_stored = min(columns.length, values.length)
        if self.indptr[0] != 0 or (np.diff(self.indptr) < 0).any() or self.indptr[-1] > n_stored:
            raise ValueError(f"{name}: its indptr does not fit its {n_stored:,} values; the file is damaged")

    @property
    def values_per_cell(self) -> float:
        return float(self.indptr[-1]) / max(self.shape[0], 1)

    @property
    def cells_per_chunk(self) -> float:
        coded = [array.per_chunk for array in (self._columns, self._values) if array.is_coded]
        return max(coded, default=0) / max(self.values_per_cell, 1.0)

    def ranges(self) -> list[Run]:
        return row_ranges(self.indptr)

    def task_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        task: NDArray[np.int64] = np.cumsum(self.indptr[cells + 1] - self.indptr[cells]) // TASK
        return task

    def read(self, runs: list[Run]) -> Raw:
        stored = [(int(self.indptr[first]), int(self.indptr[stop])) for first, stop in runs]
        try:
            columns, values = self._columns.read(stored), self._values.read(stored)
        except OSError as error:
            cells = f"cells {runs[0][0]:,} to {runs[-1][1] - 1:,}"
            raise OSError(
                f"{error}, while {cells} of {self.name} were read; if the file was changed or moved, restore it and "
                "continue from the checkpoint, if there is one"
            ) from error
        lengths = np.concatenate([np.diff(self.indptr[first : stop + 1]) for first, stop in runs])
        return Raw(np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]), columns, values)


@final
class DenseOnDisk(OnDisk):
    """A dense matrix that its library reads."""

    def __init__(self, name: str, matrix: Any) -> None:
        self.name, self.shape, self.dtype = name, (int(matrix.shape[0]), int(matrix.shape[1])), matrix.dtype
        self._matrix = matrix

    @property
    def values_per_cell(self) -> float:
        return float(self.shape[1])

    @property
    def cells_per_chunk(self) -> float:
        chunks = getattr(self._matrix, "chunks", None)
        return float(chunks[0]) if chunks else 0.0

    def ranges(self) -> list[Run]:
        return _even(self.shape[0], max(1, BLOCK // self.shape[1]))

    def task_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.arange(len(cells)) * self.shape[1] // TASK

    def read(self, runs: list[Run]) -> Raw:
        pieces = []
        for first, stop in runs:
            with LIBRARY_LOCK:
                pieces.append(self._matrix[first:stop])
        return compressed(np.concatenate(pieces))


@final
class DaskOnDisk(OnDisk):
    """A dask array, computed one block of cells at a time."""

    def __init__(self, name: str, array: Any) -> None:
        self.name, self.shape, self.dtype = name, (int(array.shape[0]), int(array.shape[1])), array.dtype
        if any(np.isnan(size) for sizes in array.chunks for size in sizes):
            raise ValueError(f"{name} is a dask array with chunks of unknown sizes; call .compute_chunk_sizes() first")
        self._array = array.rechunk({1: -1}) if len(array.chunks[1]) > 1 else array
        self._edges = np.concatenate([[0], np.cumsum(array.chunks[0])]).astype(np.int64)

    @property
    def values_per_cell(self) -> float:
        return float(self.shape[1])

    @property
    def cells_per_chunk(self) -> float:
        return float(np.diff(self._edges).max(initial=0))

    def ranges(self) -> list[Run]:
        edges = self._edges.tolist()
        return [(first, stop) for first, stop in pairwise(edges) if first < stop]

    def task_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(self._edges, cells, side="right")

    def read(self, runs: list[Run]) -> Raw:
        number = int(np.searchsorted(self._edges, runs[0][0], side="right")) - 1
        start = int(self._edges[number])
        block = self._array.blocks[number].compute(scheduler="synchronous")
        rows = np.concatenate([np.arange(first, stop) for first, stop in runs]) - start
        if not sp.issparse(block):
            return compressed(np.asarray(block)[rows])
        chosen = block.tocsr()[rows]
        return Raw(chosen.indptr.astype(np.int64), chosen.indices, chosen.data)


@dataclass(frozen=True, eq=False, slots=True)
class Part:
    """The cells of one file.

    Parameters
    ----------
    matrix
        The values of the file.
    first_cell
        Position of the file's first cell among all cells.
    columns
        int32 position of each column of the file among the common columns, -1 for other columns; None if they agree.
    """

    matrix: OnDisk
    first_cell: int
    columns: NDArray[np.int32] | None = None


@final
class Joined:
    """The cells of several files, one after another, with the columns that the files have in common.

    Parameters
    ----------
    parts
        The files.
    n_columns
        Number of common columns.
    first
        The AnnData of the first of several files, whose other matrices are searched for counts if these are none.

    Attributes
    ----------
    is_regular
        Whether each row holds each column once, in ascending order; known after a pass over all `blocks`.
    """

    def __init__(self, parts: tuple[Part, ...], n_columns: int, first: AnnData | None = None) -> None:
        self.parts, self.first = parts, first
        self.shape = (sum(part.matrix.shape[0] for part in parts), n_columns)
        self.dtype = functools.reduce(np.promote_types, [part.matrix.dtype for part in parts])
        self.is_regular = True

    def blocks(self) -> Iterator[Block]:
        """All values in pieces, as from `containers.blocks`, read ahead by other threads."""
        self.is_regular = True
        jobs = [(part, run) for part in self.parts for run in part.matrix.ranges()]
        for (part, (first, _)), (raw, was_regular) in zip(jobs, in_threads(self._read_block, jobs), strict=True):
            self.is_regular &= was_regular
            yield Block(part.first_cell + first, *raw)

    def read(self, part: Part, runs: list[Run]) -> Raw:
        """Rows of a part with its own columns, each column once and in ascending order."""
        raw = part.matrix.read(runs)
        return raw if self.is_regular else regular(raw, part.matrix.shape[1])

    def _read_block(self, job: tuple[Part, Run]) -> tuple[Raw, bool]:
        part, run = job
        raw = part.matrix.read([run])
        n_columns = part.matrix.shape[1]
        if len(raw.columns) and not 0 <= raw.columns.min() <= raw.columns.max() < n_columns:
            raise ValueError(f"{part.matrix.name} has an index beyond its {n_columns:,} columns; the file is damaged")
        was_regular = rises(raw.indptr, raw.columns)
        if not was_regular:
            raw = regular(raw, n_columns)
        if part.columns is not None:
            kept = part.columns[raw.columns] >= 0
            before = np.concatenate([np.zeros(1, np.int64), np.cumsum(kept)])
            raw = Raw(before[raw.indptr], part.columns[raw.columns[kept]], raw.values[kept])
        return raw, was_regular


def on_disk(matrix: Any, name: str) -> Joined | None:
    """A matrix of a backed AnnData, a zarr store or dask as rows to stream; None if it cannot be read by rows."""
    found: OnDisk | None = None
    if isinstance(matrix, Joined):
        return matrix
    if isinstance(matrix, CSRDataset):
        found = _compressed(matrix, name)
    elif type(matrix).__module__.partition(".")[0] == "dask":
        found = DaskOnDisk(name, matrix)
    elif type(matrix).__module__.partition(".")[0] in ("h5py", "zarr"):
        found = DenseOnDisk(name, matrix)
    return None if found is None else Joined((Part(found, 0),), found.shape[1])


def _compressed(matrix: Any, name: str) -> CompressedOnDisk:
    group = matrix.group
    indptr = np.asarray(group["indptr"][...])
    columns, values = (_array(group[part]) for part in ("indices", "data"))
    return CompressedOnDisk(name, indptr, columns, values, int(matrix.shape[1]))


def _array(dataset: Any) -> ChunkTable | Slices:
    table: ChunkTable | None = None
    if type(dataset).__module__.partition(".")[0] == "h5py":
        table = of_hdf5(dataset)
    elif type(dataset.store).__name__ in LOCAL_STORES:
        root = getattr(dataset.store, "root", None) or dataset.store.path
        table = of_zarr(Path(os.fspath(root)) / dataset.path)
    return table or Slices(dataset)


def regular(raw: Raw, n_columns: int) -> Raw:
    """The rows with each column once, in ascending order; values of repeated columns are summed."""
    rows = sp.csr_array((raw.values, raw.columns, raw.indptr), shape=(len(raw.indptr) - 1, n_columns))
    rows.sort_indices()
    rows, _ = without_duplicates(rows)
    return Raw(rows.indptr.astype(np.int64), rows.indices, rows.data)


def compressed(dense: NDArray[Any]) -> Raw:
    """Dense rows as compressed rows."""
    rows, columns = np.nonzero(dense)
    indptr = np.searchsorted(rows, np.arange(len(dense) + 1)).astype(np.int64)
    return Raw(indptr, columns.astype(np.int32), dense[rows, columns])


def n_threads() -> int:
    """Number of threads that torch uses, so that `torch.set_num_threads` also limits reading."""
    return torch.get_num_threads()


def in_threads(function: Callable[[A], B], arguments: Iterable[A]) -> Iterator[B]:
    """The results in order, while other threads compute the next few."""
    with ThreadPoolExecutor(n_threads(), thread_name_prefix="scvae-read") as pool:
        waiting: deque[Any] = deque()
        for argument in arguments:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > n_threads():
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _even(n: int, size: int) -> list[Run]:
    return [(start, min(start + size, n)) for start in range(0, n, size)]
