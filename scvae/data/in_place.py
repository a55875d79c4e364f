"""Changes a large file in place, completely or not at all: it can always be opened, with or without the changes.

Added bytes are appended at the end of the file, where no reader looks. Overwritten bytes are kept in memory until the
changes are complete. Then the old bytes are saved to a second file, the new ones are written, and the second file is
deleted. If the process is killed in between, the second file remains and `restore` brings the old bytes back. All this
happens while nobody else has the file open (`turns.py`).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np

from ..common.checks import warn
from .turns import refuse_open_here, turn

PAGE = 4096  # bytes


@final
class InPlace(io.RawIOBase):
    """The file at `path`, open as `file`, for `h5py.File`; it reads as if the changes had already been made."""

    def __init__(self, path: Path, file: io.FileIO) -> None:
        super().__init__()
        self.path, self._file = path, file
        self._old_size = self._file.seek(0, os.SEEK_END)
        self._size, self._place = self._old_size, 0
        self._pages: dict[int, bytearray] = {}
        self.failure: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        return self._place

    def truncate(self, size: int | None = None, /) -> int:
        self._size = self._place if size is None else size
        if self._size > self._old_size and self.failure is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.failure = error
        return self._size

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        n = max(0, min(len(view), self._size - self._place))
        self._file.seek(self._place)
        found = self._file.readinto(view[:n]) or 0
        view[found:n] = bytes(n - found)
        for number, within, here in self._touched(n):
            if number in self._pages:
                view[here] = self._pages[number][within]
        self._place += n
        return n

    def write(self, buffer: Any, /) -> int:
        view = memoryview(buffer).cast("B")
        for number, within, here in self._touched(len(view)):
            if number not in self._pages:
                self._pages[number] = bytearray(self._stored(number))
            self._pages[number][within] = view[here]
        self._append(view[max(0, self._old_size - self._place) :])
        self._place += len(view)
        self._size = max(self._size, self._place)
        return len(view)

    def _touched(self, n: int) -> Iterator[tuple[int, slice, slice]]:
        """The old pages that overlap the next n bytes, with the overlap as a slice of the page and of the n bytes."""
        begin, end = self._place, min(self._place + n, self._old_size)
        for number in range(begin // PAGE, -(-end // PAGE)) if begin < end else ():
            start = number * PAGE
            first, last = max(begin, start), min(end, start + PAGE)
            yield number, slice(first - start, last - start), slice(first - begin, last - begin)

    def _stored(self, number: int) -> bytes:
        """A page of the old file, without the changes."""
        return _page(self._file, number, min(PAGE, self._old_size - number * PAGE))

    def _append(self, view: memoryview) -> None:
        """Writes the bytes that are added after the old end.

        HDF5 does not recover from an error here (its own clean-up fails), so the error is kept until HDF5 is done.
        """
        try:
            self._file.seek(max(self._place, self._old_size))
            while len(view) and self.failure is None:
                view = view[self._file.write(view) or 0 :]
        except OSError as error:
            self.failure = error

    def refuse_failure(self) -> None:
        """Raises the error that was hidden from HDF5, if there was one."""
        if self.failure is not None:
            why = self.failure.strerror or self.failure
            raise OSError(f"the results cannot be written into {self.path} ({why}); it is unchanged") from self.failure

    def commit(self) -> None:
        """Writes the changes to the file."""
        os.fsync(self._file.fileno())
        old = {number: self._stored(number) for number in self._pages}
        _put_aside(self.path, old, self._pages, self._old_size)
        for number, page in self._pages.items():
            self._file.seek(number * PAGE)
            self._file.write(page)
        os.fsync(self._file.fileno())
        _aside(self.path).unlink()
        self._file.truncate(self._size)

    def undo(self) -> None:
        """Discards the changes."""
        self._file.truncate(self._old_size)


@contextmanager
def changed_in_place(path: Path) -> Iterator[InPlace]:
    """The file to change; the changes are made at the end of the block, or discarded if it raises an error.

    Raises
    ------
    BlockingIOError
        If the file is open in this process, or stays open in another one.
    """
    refuse_open_here(path)
    with turn(path, to_write=True) as handle, open(handle, "r+b", buffering=0, closefd=False) as file:
        _restore(path, file)
        changes = InPlace(path, file)
        try:
            yield changes
            changes.refuse_failure()
        except BaseException:
            changes.undo()
            raise
        try:
            changes.commit()
        except BaseException:  # such as Ctrl-C between two pages
            _restore(path, file)
            raise


def restore(path: Path) -> None:
    """Restores the old bytes of a file if a change was interrupted."""
    if _aside(path).is_file():
        with turn(path, to_write=True) as handle, open(handle, "r+b", buffering=0, closefd=False) as file:
            _restore(path, file)


def _restore(path: Path, file: io.FileIO) -> None:
    """The same in one's turn, when no other process is in the middle of a change.

    Nothing is written if none or all of the pages had been changed, or if something else has changed the file since.
    """
    aside = _aside(path)
    _temporary(path).unlink(missing_ok=True)
    if not aside.is_file():
        return
    record, _, content = aside.read_bytes().partition(b"\n")
    found = json.loads(record)
    if _digest(content) != found["digest"]:
        raise ValueError(f"{aside} is damaged, and {path} may be, too; restore {path} from a copy and delete {aside}")
    starts = np.cumsum([0, *(n for _, n in found["pages"])])
    old = {number: content[at : at + n] for (number, n), at in zip(found["pages"], starts, strict=False)}
    here = {number: _page(file, number, len(page)) for number, page in old.items()}
    new = dict(zip(old, found.get("new", ()), strict=False))
    is_new = {number: _digest(page) == new.get(number) for number, page in here.items()}
    if new and not all(is_new[number] or page == old[number] for number, page in here.items()):
        warn(
            f"a change of {path} was interrupted, and something else has written to the file since; it is left as it "
            f"is, and the old bytes of the interrupted change stay in {aside.with_suffix('.lost')}"
        )
        aside.replace(aside.with_suffix(".lost"))
        return
    if not new or len(set(is_new.values())) == 2:
        for number, page in old.items():
            file.seek(number * PAGE)
            file.write(page)
        file.truncate(found["size"])
        os.fsync(file.fileno())
    aside.unlink()


def _put_aside(path: Path, old: dict[int, bytes], new: dict[int, bytearray], size: int) -> None:
    content = b"".join(old.values())
    pages = [(number, len(page)) for number, page in old.items()]
    record = {"size": size, "pages": pages, "digest": _digest(content), "new": [_digest(new[number]) for number in old]}
    temporary = _temporary(path)
    with temporary.open("wb") as file:
        file.write(json.dumps(record).encode() + b"\n" + content)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(_aside(path))


def _page(file: io.FileIO, number: int, n: int) -> bytes:
    file.seek(number * PAGE)
    return file.read(n) or b""


def _digest(content: bytes | bytearray) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _aside(path: Path) -> Path:
    path = Path(os.path.realpath(path))  # the same for all links to a file
    return path.with_name(f".{path.name}.before")


def _temporary(path: Path) -> Path:
    """The second file until it is complete; its name is fixed, so that there is one at most."""
    return _aside(path).with_suffix(".new")
