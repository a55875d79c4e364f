"""Modelled values that are read from disk whenever some cells are taken."""

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

SLACK = 1.05  # windows of as many cells differ a little in their number of values
MOST_SPARE = 2  # indices and values of a window: while one is in use, another is read


SMALLEST_BLOCK = 16  # cells: what reading costs beyond its bytes is then small
CHUNKS_OF_A_BLOCK = 4  # so that of the chunks at its ends not much more than a quarter is read in vain
LARGEST_RATIO = 2.0  # of variances, see `Shuffle.variance_ratio`; a larger block must not exceed it
USUAL_BATCH = 256
WINDOW_SHARE = 0.25  # of the memory allowed: one window is in use, one on its way, one is being put together
BATCHES_PER_BLOCK_CELL = 10  # of the window; what a larger one would add no longer shows


class _Task(NamedTuple):
    """What a thread reads at once: runs of one file, and which of the rising positions they are."""

    part: Part
    runs: list[Run]
    rows: slice


@final
class StoredRows(Rows):
    """Rows on disk: each `take` reads and decodes them, in several threads, and keeps the modelled genes.

    Parameters
    ----------
    source
        Where the rows are.
    column_map
        int32 gene of the model for each column, -1 for a column that is not modelled.
    n_genes
        Number of modelled genes.
    n_kept
        Stored values of modelled genes, of all cells.
    memory
        Bytes that cells may fill at once.
    """

    def __init__(
        self, source: Joined, column_map: NDArray[np.int32], n_genes: int, *, n_kept: int, memory: float
    ) -> None:
        self._source, self._n_genes, self.n_kept = source, n_genes, n_kept
        maps = [column_map if part.columns is None else _composed(part.columns, column_map) for part in source.parts]
        self._rising = [bool(np.all(np.diff(chosen[chosen >= 0]) > 0)) for chosen in maps]
        # all columns in their own order need no names
        self._maps = [None if np.array_equal(chosen, np.arange(n_genes)) else chosen for chosen in maps]
        self._first_cells = np.array([part.first_cell for part in source.parts])
        self._per_chunk = max(part.matrix.cells_per_chunk for part in source.parts)
        self.shuffle = self._shuffle(memory)
        self._memory = Recycled()
        cpu_kernels()  # not for the first time in a thread

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
        """How many values are read for each that is in a block: chunks at its ends are read as a whole."""
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
        """Whether all stored values are those of a row, so that it is known where each row goes before it is read.

        Pieces are then done with as soon as they come, and their memory serves the next ones: memory that is fresh from
        the system costs as much time as decoding into it.
        """
        known = all(part.matrix.indptr is not None for part in self._source.parts)
        return known and self._source.is_regular and all(chosen is None for chosen in self._maps)

    def _stored(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Stored values of each of some cells, where that is known."""
        of_part = self._part_of(cells)
        lengths = np.empty(len(cells), np.int64)
        for number in np.unique(of_part):
            part, here = self._source.parts[number], of_part == number
            rows, indptr = cells[here] - part.first_cell, part.matrix.indptr
            assert indptr is not None
            lengths[here] = indptr[rows + 1] - indptr[rows]
        return lengths

    def _part_of(self, cells: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which of the files holds each cell."""
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
        """Blocks long enough for the chunks of the file, a window that fits the memory."""
        cell = 8.0 * max(self.n_kept / max(self.n_cells, 1), 1.0)  # bytes
        window = max(USUAL_BATCH, int(WINDOW_SHARE * memory / cell))
        wished = max(SMALLEST_BLOCK, math.ceil(CHUNKS_OF_A_BLOCK * self._per_chunk))
        allowed = 1 + int((LARGEST_RATIO - 1) * window / USUAL_BATCH)
        block = max(1, min(wished, allowed))
        return Shuffle(block, min(window, BATCHES_PER_BLOCK_CELL * USUAL_BATCH * block))


def _handed_out(pieces: list[Taken]) -> Iterator[Taken]:
    """One after another, each forgotten here as it goes."""
    pieces.reverse()
    while pieces:
        yield pieces.pop()


def _composed(first: NDArray[np.int32], second: NDArray[np.int32]) -> NDArray[np.int32]:
    """Of two maps, one after the other."""
    found: NDArray[np.int32] = np.where(first >= 0, np.append(second, np.int32(-1))[first], np.int32(-1))
    return found


def _runs(cells: NDArray[np.int64]) -> list[Run]:
    """Rising cells as runs of neighbours."""
    edges = np.flatnonzero(np.diff(cells) != 1) + 1
    starts, stops = cells[np.concatenate([[0], edges])], cells[np.concatenate([edges - 1, [len(cells) - 1]])] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))


@final
class Recycled:
    """Hands out arrays, and the memory of one again when neither it nor a view of it is held by anyone."""

    def __init__(self) -> None:
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of `n` elements that may hold anything."""
        n_bytes = n * np.dtype(dtype).itemsize
        with self._lock:
            fitting = [i for i, memory in enumerate(self._spare) if len(memory) >= n_bytes]
            memory = self._spare.pop(fitting[0]) if fitting else np.empty(int(SLACK * n_bytes) + 1, np.uint8)
        # the base of a view is the last array on the way to the memory, here always this one: it outlives its views
        array = np.frombuffer(memory.data, dtype, count=n)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        """Keeps the largest; may be called wherever the last reference goes, within `empty` too."""
        self._spare.append(memory)
        if len(self._spare) > MOST_SPARE:
            self._spare.sort(key=len)
            del self._spare[0]
