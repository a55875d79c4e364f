"""Turns at a file: nobody has it open while its bytes change, and those who want to change it wait for each other.

The lock is the one that HDF5 takes of the files it opens (`flock`: shared to read, exclusive to write), so all programs
that use HDF5 respect it. Of a zarr store, the folder is locked, which only scvae does.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final
from urllib.request import url2pathname

from ..common.checks import warn

PATIENCE = 60.0  # seconds that a change waits for those who have the file open
PATIENCE_TO_READ = 10.0
SILENT = 2.0  # seconds of waiting before anything is said
BUSY = (errno.EAGAIN, errno.EACCES)


def check_can_be_changed(path: Path) -> None:
    """Checks that results can be written into a file, before a long computation starts.

    Raises
    ------
    PermissionError
        If it cannot be written to.
    BlockingIOError
        If it is open in this process, or open for writing in another one.
    """
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        raise PermissionError(
            f"{path} cannot be written to, but the results would be written into it; make it writable, or pass "
            "anndata.read_h5ad(..., backed='r') to get the results in memory (on the command line: "
            "scvae fit ... -o latent.h5ad)"
        )
    refuse_open_here(path)
    with turn(path, to_write=False):
        pass


def refuse_open_here(path: Path) -> None:
    """Raises BlockingIOError if this process has the file open through h5py, whatever the state of its locks."""
    if not path.is_file() or not is_open_here(path):
        return
    gc.collect()  # a handle that nobody refers to any more
    if is_open_here(path):
        raise BlockingIOError(
            f"{path} is open in this process, so results cannot be written into it; close it first "
            "(adata.file.close(), or the h5py.File), or pass the open AnnData instead of the path to get the results "
            "in memory"
        )


def is_open_here(path: Path) -> bool:
    """Whether this process has the file open through h5py."""
    from h5py import h5f

    for file in h5f.get_obj_ids(h5f.OBJ_ALL, h5f.OBJ_FILE):
        with contextlib.suppress(RuntimeError, OSError, ValueError):  # without a descriptor, or closed by now
            if os.path.samestat(os.fstat(file.get_vfd_handle()), path.stat()):
                return True
    return False


@contextmanager
def turn(path: Path, *, to_write: bool) -> Iterator[int]:
    """Descriptor of a file or folder that nobody else changes (`to_write`: or reads) during the block.

    Raises
    ------
    BlockingIOError
        If others still have it open after a while.
    """
    if not to_write and path.is_file() and is_open_here(path):
        yield -1  # HDF5 lets a process read through its own open handles
        return
    patience = PATIENCE if to_write else PATIENCE_TO_READ
    begin, told = time.monotonic(), False
    while True:
        handle = os.open(path, os.O_RDWR if to_write and path.is_file() else os.O_RDONLY)
        try:
            if _lock(handle, to_write) and os.path.samestat(os.fstat(handle), path.stat()):
                yield handle
                return
        finally:
            os.close(handle)
        waited = time.monotonic() - begin
        if waited > patience:
            raise BlockingIOError(
                f"{path} is open in {_holders(path)}, also after waiting {patience:g} s; close it there"
            )
        if waited > SILENT and not told:
            told = True
            warn(f"waiting up to {patience:g} s for {path}, which is open in {_holders(path)}")
        time.sleep(0.05)


@final
class Reader(io.BufferedReader):
    """A file for `h5py.File` to read values from while others may add to it, which leaves values where they are.

    HDF5 neither locks it nor shares what it knows of it with other handles of this process, so these see what is new.
    Read names and columns within a `turn`: they do move.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(io.FileIO(path))
        self._uri = path.resolve().as_uri()

    def __repr__(self) -> str:
        """What HDF5 takes for the name of the file; see `path_of`."""
        return self._uri


def path_of(file: Any) -> Path | None:
    """The path of an open h5py.File; None if its bytes are not simply those of a file."""
    name = os.fsdecode(file.filename)
    if file.driver in ("sec2", "stdio"):
        return Path(name)
    return Path(url2pathname(name.removeprefix("file://"))) if name.startswith("file:///") else None


def let_others_add(file: Any) -> None:
    """Gives up HDF5's lock of an h5py.File from which only values are read."""
    _flock(file.id.get_vfd_handle(), "LOCK_UN")


def _lock(handle: int, to_write: bool) -> bool:
    try:
        _flock(handle, "LOCK_EX" if to_write else "LOCK_SH", "LOCK_NB")
    except OSError as error:
        return error.errno not in BUSY  # a file system without locks; HDF5 does not insist either
    return True


def _flock(handle: int, *flags: str) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    fcntl.flock(handle, sum(getattr(fcntl, flag) for flag in flags))


def _holders(path: Path) -> str:
    """The processes that have a lock of the file, as far as the system tells."""
    found = []
    with contextlib.suppress(OSError):
        inode = str(path.stat().st_ino)
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()
            if words[1] == "FLOCK" and words[5].split(":")[-1] == inode:
                found.append(_process(int(words[4])))
    return " and ".join(dict.fromkeys(found)) or "another program"


def _process(number: int) -> str:
    try:
        words = Path(f"/proc/{number}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ").split()
    except OSError:
        return f"process {number}"
    return f"process {number} ({' '.join(words)[:80]})"
