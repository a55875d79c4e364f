"""Sources of batches: made on the host, streamed to a CUDA device, read from disk, or selected in GPU memory."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import final

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Tensor

from ..common.distributed import ranks
from ..kernels.block import Dense
from ..kernels.context import give_way
from ..kernels.csr import CSR
from ..kernels.selection import SelectedRows
from .batches import Batch, Batches, Shuffle, WindowedPlan, chunks
from .cells import Cells
from .rows import DenseRows, SparseRows
from .stored_rows import USUAL_BATCH, StoredRows

logger = logging.getLogger(__name__)

CHUNK = 4096  # cells copied to the device at a time
MUCH_READ_IN_VAIN = 4.0  # values read from disk per value used, above which there is a warning
STORE_SHARE = 0.6  # the largest fraction of free memory for the data: the rest is for training


class Feed(ABC):
    """Provides cells batch by batch on the device of the model.

    Attributes
    ----------
    shuffle
        The order that plans must use; None for any order.
    """

    shuffle: Shuffle | None = None

    @abstractmethod
    def batches(self, plan: Batches) -> Iterator[Batch]:
        """The batches with the cells at the given positions, one after another."""


@final
class Host(Feed):
    """Makes each batch on demand and copies it to the device."""

    def __init__(self, cells: Cells, device: torch.device) -> None:
        self.cells, self.device = cells, device

    def batches(self, plan: Batches) -> Iterator[Batch]:
        for positions in plan:
            give_way()
            yield self.cells.batch(positions).to(self.device)


@final
class Streamed(Feed):
    """Makes the next batch in another thread and copies it to a CUDA device while the current one is in use.

    The copy is from page-locked memory and on a separate stream, so only work that needs the batch waits for it.
    """

    def __init__(self, cells: Cells, device: torch.device) -> None:
        self.cells, self.device = cells, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def batches(self, plan: Batches) -> Iterator[Batch]:
        if len(plan) == 0:
            return
        with ThreadPoolExecutor(1, thread_name_prefix="scvae-feed") as worker:
            coming = worker.submit(self._send, plan[0])
            for following in [*plan[1:], None]:
                sent = coming.result()
                if following is not None:
                    coming = worker.submit(self._send, following)
                yield self._received(*sent)

    def _send(self, positions: Int[np.ndarray, " cells"]) -> tuple[Batch, torch.cuda.Event | None]:
        batch = self.cells.batch(positions)
        if self.stream is None:
            return batch.to(self.device), None
        with torch.cuda.stream(self.stream):
            sent = _uploaded(batch, self.device)
            return sent, self.stream.record_event()

    def _received(self, batch: Batch, copied: torch.cuda.Event | None) -> Batch:
        if copied is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            batch.map(lambda tensor: _used_on(tensor, current))
        return batch


@final
class FromDisk(Feed):
    """Reads the cells of many batches together; another thread reads the next ones while these are in use.

    Parameters
    ----------
    cells
        Cells whose rows are on disk.
    held
        Positions, ascending, of cells that are needed repeatedly: they are read once and stay in memory.
    """

    def __init__(self, cells: Cells, device: torch.device, held: Int[np.ndarray, " held"] | None = None) -> None:
        assert isinstance(cells.rows, StoredRows)
        self.cells, self.device = cells, device
        self.shuffle = dataclasses.replace(cells.rows.shuffle, world=ranks().world)
        self.held = np.empty(0, np.int64) if held is None else held
        self.held_cells = cells.taken(self.held) if len(self.held) else None

    def batches(self, plan: Batches) -> Iterator[Batch]:
        if len(plan) == 0:
            return
        if self.held_cells is not None and np.isin(plan[0], self.held).all():
            places = [np.searchsorted(self.held, part) for part in plan]
            yield from (self._sent(self.held_cells.batch(part)) for part in places)
            return
        with ThreadPoolExecutor(1, thread_name_prefix="scvae-feed") as worker:
            groups = self._groups(plan)
            group = next(groups, [])
            coming = worker.submit(self._read, group)
            while group:
                window = coming.result()
                following = next(groups, [])
                if following:
                    coming = worker.submit(self._read, following)
                start = 0
                for part in group:
                    yield self._sent(_between(window, start, start + len(part)))
                    start += len(part)
                del window
                group = following

    def _groups(self, plan: Batches) -> Iterator[list[Int[np.ndarray, "_"]]]:
        """Groups of batches to be read together: a window of the plan, or as many as fit in a window."""
        if isinstance(plan, WindowedPlan):
            size = plan.batches_per_window
            yield from (list(plan[start : start + size]) for start in range(0, len(plan), size))
            return
        assert self.shuffle is not None
        group: list[Int[np.ndarray, "_"]] = []
        n = 0
        for part in plan:
            if group and n + len(part) > self.shuffle.window:
                yield group
                group, n = [], 0
            group.append(part)
            n += len(part)
        yield group

    def _read(self, group: list[Int[np.ndarray, "_"]]) -> Cells:
        return self.cells.taken(np.concatenate(group))

    def _sent(self, batch: Batch) -> Batch:
        if self.device.type != "cuda":
            give_way()
            return batch.to(self.device)
        return _uploaded(batch, self.device)


def _between(window: Cells, start: int, stop: int) -> Batch:
    """Consecutive cells, without a copy."""
    rows = window.rows
    assert isinstance(rows, SparseRows)
    first, last = int(rows.indptr[start]), int(rows.indptr[stop])
    indptr = rows.indptr[start : stop + 1] - first
    return Batch(
        x=CSR.from_numpy(indptr, rows.indices[first:last], rows.values[first:last], rows.n_columns),
        library=torch.from_numpy(window.library[start:stop]),
        codes=torch.from_numpy(window.codes[start:stop]),
        numeric=torch.from_numpy(window.numeric[start:stop]),
        has_batch=window.has_batch,
        missing=None if window.missing is None else torch.from_numpy(window.missing),
        labels=None if window.labels is None else torch.from_numpy(window.labels[start:stop]),
        **window.further(np.arange(start, stop)),
    )


@final
class Resident(Feed):
    """Selects each batch from the data, all of which are kept in the memory of the device."""

    def __init__(self, everything: Batch) -> None:
        self.everything = everything

    @property
    def device(self) -> torch.device:
        """The device with the cells."""
        return self.everything.library.device

    def batches(self, plan: Batches) -> Iterator[Batch]:
        if len(plan) == 0:
            return
        positions = upload(np.concatenate(plan), self.device)
        for part in positions.split([len(part) for part in plan]):
            yield self.pick(part)

    def pick(self, positions: Int[Tensor, " chosen"]) -> Batch:
        """The cells at `positions`, which are on the device; the host does not wait for it."""
        every = self.everything
        return dataclasses.replace(
            every,
            x=every.x.select(positions),
            library=every.library[positions],
            codes=every.codes[positions],
            numeric=every.numeric[positions],
            labels=None if every.labels is None else every.labels[positions],
            present=None if every.present is None else every.present[positions],
            views=tuple(view.select(positions) for view in every.views),
        )


def make_feed(cells: Cells, device: torch.device, held: Int[np.ndarray, " held"] | None = None) -> Feed:
    """The feed for many passes. A CUDA device keeps all cells; if they do not fit, they are streamed, with a log line.

    Cells on disk that do not fit are read again in every pass, except for those at the positions `held`.
    """
    if device.type == "cuda":
        try:
            store = store_on(cells, device)
        except torch.OutOfMemoryError:
            store = None
        if store is not None:
            return store
    if isinstance(cells.rows, StoredRows):
        _say_how(cells.rows)
        return FromDisk(cells, device, held)
    if device.type != "cuda":
        return Host(cells, device)
    logger.warning("the cells do not fit into the memory of %s; they are streamed to it batch by batch", device)
    return Streamed(cells, device)


def _say_how(rows: StoredRows) -> None:
    """Writes a log line on the shuffle, and a warning if most values are read without being used."""
    shuffle = rows.shuffle
    logger.info(
        "cells are read from disk: blocks of %d cells, permuted in windows of %d; if similar cells are adjacent, "
        "the mean of a batch of %d has %.2f times the variance of a random order; %.1f values are read per value used",
        shuffle.block,
        shuffle.window,
        USUAL_BATCH,
        shuffle.variance_ratio(USUAL_BATCH, rows.n_cells),
        rows.read_per_used,
    )
    if rows.read_per_used > MUCH_READ_IN_VAIN:
        logger.warning(
            "%.0f values are read from disk per value used, since the file's chunks are large; write the file with "
            "smaller ones, or raise TrainingConfig.memory",
            rows.read_per_used,
        )


def single_pass(cells: Cells, device: torch.device) -> Feed:
    """The feed for one pass over the cells."""
    if isinstance(cells.rows, StoredRows):
        return FromDisk(cells, device)
    return Streamed(cells, device) if device.type == "cuda" else Host(cells, device)


def store_on(cells: Cells, device: torch.device) -> Resident | None:
    """All cells on the device; None if they would fill more than `STORE_SHARE` of its free memory.

    Sparse rows use the narrowest types that are exact: int16 for columns up to 32,768 genes, else int32; uint8 or int16
    for values if all are integers in range, else float32.
    """
    room = STORE_SHARE * _free_memory(device)
    room -= sum(array.nbytes for array in (cells.library, cells.codes, cells.numeric))
    x = _dense_store(cells, device, room) if isinstance(cells.rows, DenseRows) else _sparse_store(cells, device, room)
    if x is None:
        return None
    library, codes, numeric = (torch.from_numpy(a).to(device) for a in (cells.library, cells.codes, cells.numeric))
    missing, labels = (None if a is None else torch.from_numpy(a).to(device) for a in (cells.missing, cells.labels))
    return Resident(Batch(x, library, codes, numeric, cells.has_batch, missing=missing, labels=labels))


def _dense_store(cells: Cells, device: torch.device, room: float) -> Dense | None:
    if 4 * len(cells) * cells.rows.n_genes > room:
        return None
    store = torch.empty(len(cells), cells.rows.n_genes, device=device)
    for part in chunks(len(cells), CHUNK):
        store[part[0] : part[-1] + 1] = cells.rows.take(part).to_dense().to(device)
    return Dense(store)


def _sparse_store(cells: Cells, device: torch.device, room: float) -> SelectedRows | None:
    index_type = torch.int16 if cells.rows.n_genes <= 2**15 else torch.int32
    if isinstance(cells.rows, StoredRows) and cells.rows.n_kept * (index_type.itemsize + 1) > room:
        return None
    lengths, indices, values = [], [], []
    for part in chunks(len(cells), CHUNK):
        rows = cells.rows.take(part)
        assert isinstance(rows, CSR)
        lengths.append(rows.indptr.diff())
        indices.append(rows.indices.to(index_type))
        values.append(_narrowed(rows.values))
    value_type = functools.reduce(torch.promote_types, [piece.dtype for piece in values])
    length = torch.cat(lengths)
    if int(length.sum()) * (index_type.itemsize + value_type.itemsize) + 16 * len(cells) > room:
        return None
    last = length.cumsum(0)
    return SelectedRows(
        first=(last - length).to(device),
        last=last.to(device),
        indices=_joined(indices, index_type, device),
        values=_joined(values, value_type, device),
        n_columns=cells.rows.n_genes,
        longest=int(length.max()),
    )


def _joined(pieces: list[Num[Tensor, "_"]], kind: torch.dtype, device: torch.device) -> Num[Tensor, " stored"]:
    joined = torch.empty(sum(len(piece) for piece in pieces), dtype=kind, device=device)
    start = 0
    for piece in pieces:
        joined[start : start + len(piece)] = piece.to(device)
        start += len(piece)
    return joined


def _narrowed(values: Float[Tensor, " stored"]) -> Num[Tensor, " stored"]:
    """The same values in the narrowest exact type of uint8, int16 and float32."""
    for kind in (torch.uint8, torch.int16):
        limits = torch.iinfo(kind)
        if ((values >= limits.min) & (values <= limits.max) & (values == values.round())).all():
            return values.to(kind)
    return values


def _free_memory(device: torch.device) -> float:
    """Free memory of the device in bytes."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else math.inf


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy on the device; the host does not wait for the copy to a CUDA device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _uploaded(batch: Batch, device: torch.device) -> Batch:
    """The batch on a CUDA device; rows are given by start and end, since counting them would wait for the device."""
    sent = batch.map(lambda tensor: tensor.pin_memory().to(device, non_blocking=True))
    return dataclasses.replace(sent, x=sent.x.selected())


def _used_on(tensor: Tensor, stream: torch.cuda.Stream) -> Tensor:
    """Keeps the tensor's memory from being reused before `stream` is done with it."""
    tensor.record_stream(stream)
    return tensor
