"""Modelled values that are read from disk whenever cells are taken."""

from __future__ import annotations

import math
import threading
import weakref
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple, final

import numpy as np
from jaxtyping import Int
from numpy.typing import DTypeLike, NDArray

from ..kernels.backends import cpu_kernels
from ..kernels.csr import CSR
from ..kernels.rows import Taken, place_rows, renamed
from .batches import Shuffle
from .on_disk import Joined, Part, Raw, Run, in_threads, regular
from .rows import Rows

SLACK = 1.05  # windows with the same number of cells differ slightly in their number of values
MOST_SPARE = 2  # indices and values of a window: while one is in use, another is read


SMALLEST_BLOCK = 16  # cells; the overhead of a read is then small
CHUNKS_OF_A_BLOCK = 4  # so that little more than a quarter of the data read, at the ends of a block, is not used
LARGEST_RATIO = 2.0  # upper bound of `Shuffle.variance_ratio` for larger blocks
USUAL_BATCH = 256
WINDOW_SHARE = 0.25  # of the allowed memory: one window is in use, one is read ahead, one is being assembled
BATCHES_PER_BLOCK_CELL = 10  # of the window; larger windows have no visible effect


class _Task(NamedTuple):
    """One read of a thread: runs of cells in one file, and their places among the sorted positions."""

    part: Part
    runs: list[Run]
    rows: slice


@final
class StoredRows(Rows):
    """Rows on disk: each `take` reads and decodes them in several threads, and keeps the modelled genes.

    Parameters
    ----------
    source
        The files.
    column_map
        int32 modelled gene of each column, -1 for a column that is not modelled.
    n_genes
        Number of modelled genes.
    n_kept
        Number of stored values in modelled genes, over all cells.
    memory
        Bytes that cells may take at a time.
    """

    def __init__(
        self, source: Joined, column_map: NDArray[np.int32], n_genes: int, *, n_kept: int, memory: float
    ) -> None:
        self._source, self._n_genes, self.n_kept = source, n_genes, n_kept
        maps = [column_map if part.columns is None else _composed(part.columns, column_map) for part in source.parts]
        self._rising = [bool(np.all(np.diff(chosen[chosen >= 0]) > 0)) for chosen in maps]
        # no map is needed if all columns are modelled, in their own order
        self._maps = [None if np.array_equal(chosen, np.arange(n_genes)) else chosen for chosen in maps]
        self._first_cells = np.array([part.first_cell for part in source.parts])
        self._per_chunk = max(part.matrix.cells_per_chunk for part in source.parts)
        self.shuffle = self._shuffle(memory)
        self._memory = Recycled()
        cpu_kernels()  # the first call must not be in a thread

    @property
    def n_cells(self) -> int:
        """Number of cells."""
        return self._source.shape[0]

    @property
    def n_genes(self) -> int:
        """Number of modelled genes."""
        return self._n_genes

    @property
    def read_per_used(self) -> float:
        """Number of values read per value in a block; chunks at the ends of a block are read completely."""
        return 1.0 + max(self._per_chunk - 1.0, 0.0) / self.shuffle.block

    def take(self, positions: Int[np.ndarray, " cells"]) -> CSR:
        """See `Rows.take`."""
        positions = np.asarray(positions, dtype=np.int64)
        order = np.argsort(positions, kind="stable")
        tasks = self._tasks(positions[order])
        coming = in_threads(self._read, tasks) if len(tasks) > 1 else map(self._read, tasks)
        lengths = np.empty(len(positions), np.int64)
        if self._keeps_all:
            lengths[order] = self._stored(positions[order])
        else:
            pieces = list(coming)
            for task, piece in zip(tasks, pieces, strict=True):
                lengths[order[task.rows]] = np.diff(piece[0])
            coming = _handed_out(pieces)
        indptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        indices, values = (self._memory.empty(int(indptr[-1]), kind) for kind in (np.int32, np.float32))
        for task, piece in zip(tasks, coming, strict=True):
            place_rows(piece, indptr[order[task.rows]], indices, values)
        return CSR.from_numpy(indptr, indices, values, self._n_genes)

    @property
    def _keeps_all(self) -> bool:
        """Whether all stored values are kept, so that the place of each row is known before it is read.

        Each piece can then be copied as soon as it arrives, and its memory is used for the next one. Memory that is new
        from the system costs as much time as decoding into it.
        """
        known = all(part.matrix.indptr is not None for part in self._source.parts)
        return known and self._source.is_regular and all(chosen is None for chosen in self._maps)

    def _stored(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Number of stored values of each of some cells; all files must have an `indptr`."""
        of_part = self._part_of(cells)
        lengths = np.empty(len(cells), np.int64)
        for number in np.unique(of_part):
            part, here = self._source.parts[number], of_part == number
            rows, indptr = cells[here] - part.first_cell, part.matrix.indptr
            assert indptr is not None
            lengths[here] = indptr[rows + 1] - indptr[rows]
        return lengths

    def _part_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Index of the file of each cell."""
        return np.searchsorted(self._first_cells, cells, side="right") - 1

    def _tasks(self, rising: NDArray[np.int64]) -> list[_Task]:
        of_part = self._part_of(rising)
        tasks = []
        for number in np.unique(of_part):
            part = self._source.parts[number]
            begin, end = np.searchsorted(of_part, [number, number + 1])
            cells = rising[begin:end] - part.first_cell
            task = part.matrix.task_of(cells)
            edges = [0, *(np.flatnonzero(np.diff(task)) + 1).tolist(), len(cells)]
            for start, stop in pairwise(edges):
                tasks.append(_Task(part, _runs(cells[start:stop]), slice(int(begin) + start, int(begin) + stop)))
        return tasks

    def _read(self, task: _Task) -> Taken:
        number = int(self._part_of(np.array([task.part.first_cell]))[0])
        piece = renamed(*self._source.read(task.part, task.runs), self._maps[number])
        if self._rising[number]:
            return piece
        indptr, indices, values = regular(Raw(*piece), self._n_genes)
        return indptr, indices.astype(np.int32, copy=False), values

    def _shuffle(self, memory: float) -> Shuffle:
        """Blocks that are long enough for the chunks of the file, and a window that fits in memory."""
        cell = 8.0 * max(self.n_kept / max(self.n_cells, 1), 1.0)  # bytes
        window = max(USUAL_BATCH, int(WINDOW_SHARE * memory / cell))
        wished = max(SMALLEST_BLOCK, math.ceil(CHUNKS_OF_A_BLOCK * self._per_chunk))
        allowed = 1 + int((LARGEST_RATIO - 1) * window / USUAL_BATCH)
        block = max(1, min(wished, allowed))
        return Shuffle(block, min(window, BATCHES_PER_BLOCK_CELL * USUAL_BATCH * block))


def _handed_out(pieces: list[Taken]) -> Iterator[Taken]:
    """Yields the pieces in order and drops its reference to each."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def _composed(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    """The composition of two maps: `first`, then `second`."""
    found: NDArray[np.int32] = np.where(first >= 0, np.append(second, np.int32(-1))[first], np.int32(-1))
    return found


def _runs(cells: NDArray[np.int64]) -> list[Run]:
    """Ascending cells as runs of consecutive cells."""
    edges = np.flatnonzero(np.diff(cells) != 1) + 1
    starts, stops = cells[np.concatenate([[0], edges])], cells[np.concatenate([edges - 1, [len(cells) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


@final
class Recycled:
    """Makes arrays, and reuses the memory of an array when nothing refers to it or to a view of it any more."""

    def __init__(self) -> None:
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """An uninitialised array of `n` elements."""
        n_bytes = n * np.dtype(dtype).itemsize
        with self._lock:
            fitting = [i for i, memory in enumerate(self._spare) if len(memory) >= n_bytes]
            memory = self._spare.pop(fitting[0]) if fitting else np.empty(int(SLACK * n_bytes) + 1, np.uint8)
        # the base of every view is this array, the last one before the memory, so it outlives its views
        array = np.frombuffer(memory.data, dtype, count=n)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        """Keeps the largest memory; may run wherever the last reference is dropped, even within `empty`."""
        self._spare.append(memory)
        if len(self._spare) > MOST_SPARE:
            self._spare.sort(key=len)
            del self._spare[0]
