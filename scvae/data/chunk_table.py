"""The places of the chunks of a one-dimensional array in its files, so that any thread can read any chunk.

The HDF5 library serves one thread at a time, so programs that use it decompress on one core. Here, the library is asked
once for the place of each chunk. Chunks are then read from the file by position and decompressed by functions that
release the GIL. `of_hdf5` and `of_zarr` return None for unknown layouts, which the libraries must read.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import weakref
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from .turns import path_of

Decode = Callable[[bytes], Any]  # from the bytes in a file to the bytes of the array

DEFLATE, SHUFFLE = 1, 2  # HDF5's numbers of its filters
ZARR_CODECS = {"blosc", "gzip", "lz4", "zlib", "zstd"}
EMPTY = 2**64 - 1  # offset of an inner chunk that is missing in a shard


class UnknownLayoutError(ValueError):
    """The layout can only be read by the library."""


@dataclass(frozen=True, eq=False, slots=True)
class Places:
    """The places of the chunks.

    Parameters
    ----------
    paths
        The files.
    file
        Index of the file of each chunk.
    offset, size
        First byte of each chunk in its file, and its number of bytes there.
    """

    paths: tuple[Path, ...]
    file: NDArray[np.int32]
    offset: NDArray[np.int64]
    size: NDArray[np.int64]


@final
class ChunkTable:
    """A one-dimensional array in files, read by position.

    Parameters
    ----------
    name
        Name of the array in messages.
    length
        Number of elements.
    dtype
        Type of an element, in the byte order of this machine.
    per_chunk
        Number of elements of a chunk; the last chunk may be shorter or padded.
    places
        The places of the chunks.
    decode
        Decompresses a chunk; None if chunks are not compressed, and then parts of a chunk can be read.
    """

    def __init__(
        self, name: str, length: int, dtype: np.dtype[Any], per_chunk: int, places: Places, decode: Decode | None
    ) -> None:
        self.name, self.length, self.dtype, self.per_chunk = name, length, dtype, per_chunk
        self._places, self._decode = places, decode
        self._open = _Descriptor(places.paths[0]) if len(places.paths) == 1 else None

    @property
    def is_coded(self) -> bool:
        """Whether chunks are compressed, so that a chunk can only be read completely."""
        return self._decode is not None

    def read(self, ranges: list[tuple[int, int]]) -> NDArray[Any]:
        """The elements of ascending, non-overlapping ranges (first, one past the last), concatenated.

        Raises
        ------
        OSError
            If a chunk cannot be read or decoded; the message names the chunk.
        """
        out = np.empty(sum(stop - start for start, stop in ranges), self.dtype)
        place, known, chunk = 0, -1, np.empty(0, self.dtype)
        for first, stop in ranges:
            start = first
            while start < stop:
                number, within = divmod(start, self.per_chunk)
                n = min(stop - start, self.per_chunk - within)
                if self._decode is None:
                    piece = self._stored(number, within, n)
                else:
                    if number != known:
                        known, chunk = number, self._decoded(number)
                    piece = chunk[within : within + n]
                out[place : place + n] = piece
                place, start = place + n, start + n
        return out

    def _stored(self, number: int, first: int, n: int) -> NDArray[Any]:
        """Some elements of a chunk that is not compressed."""
        return np.frombuffer(self._bytes(number, first * self.dtype.itemsize, n * self.dtype.itemsize), self.dtype)

    def _decoded(self, number: int) -> NDArray[Any]:
        assert self._decode is not None
        raw = self._bytes(number, 0, int(self._places.size[number]))
        n = min(self.per_chunk, self.length - number * self.per_chunk)
        try:
            chunk = np.frombuffer(self._decode(raw), self.dtype)
        except _decoding_errors() as error:
            raise self._failure(number, f"cannot be decompressed ({error})") from error
        if len(chunk) < n:
            raise self._failure(number, f"holds {len(chunk):,} values instead of {n:,}")
        return chunk

    def _bytes(self, number: int, first: int, n: int) -> bytes:
        places = self._places
        offset = int(places.offset[number]) + first
        try:
            if self._open is not None:
                raw = _pread(self._open.number, n, offset)
            else:
                descriptor = _opened(places.paths[places.file[number]])
                try:
                    raw = _pread(descriptor, n, offset)
                finally:
                    os.close(descriptor)
        except OSError as error:
            raise self._failure(number, f"cannot be read ({error.strerror or error})") from error
        if len(raw) < n:
            raise self._failure(number, f"ends after {len(raw):,} of {n:,} bytes: the file was cut short")
        return raw

    def _failure(self, number: int, what: str) -> OSError:
        path = self._places.paths[self._places.file[number]]
        first = number * self.per_chunk
        last = min(first + self.per_chunk, self.length) - 1
        return OSError(f"{path}: chunk {number:,} of {self.name} (values {first:,} to {last:,}) {what}")


@final
class _Descriptor:
    """An open file, which is closed when nothing refers to it any more."""

    def __init__(self, path: Path) -> None:
        self.number = _opened(path)
        weakref.finalize(self, os.close, self.number)


def of_hdf5(dataset: Any) -> ChunkTable | None:
    """The table of an `h5py.Dataset`; None if only the library can read it."""
    try:
        return _of_hdf5(dataset)
    except UnknownLayoutError:
        return None


def _of_hdf5(dataset: Any) -> ChunkTable:
    import h5py

    file = dataset.file
    path = path_of(file)
    plain = dataset.ndim == 1 and not dataset.is_virtual and dataset.external is None
    if path is None or not (plain and _is_plain(dataset.dtype) and file.userblock_size == 0):
        raise UnknownLayoutError(dataset.name)
    if file.mode != "r":
        file.flush()
    length, name = int(dataset.shape[0]), dataset.name
    properties = dataset.id.get_create_plist()
    if properties.get_layout() == h5py.h5d.CONTIGUOUS:
        start = dataset.id.get_offset()
        if start is None:
            raise UnknownLayoutError(dataset.name)
        places = Places((path,), np.zeros(1, np.int32), np.array([start]), np.array([dataset.nbytes]))
        return ChunkTable(name, length, dataset.dtype, max(length, 1), places, None)
    if properties.get_layout() != h5py.h5d.CHUNKED:
        raise UnknownLayoutError(dataset.name)
    filters = [properties.get_filter(i)[0] for i in range(properties.get_nfilters())]
    per_chunk = int(dataset.chunks[0])
    decode = _of_filters(filters, dataset.dtype.itemsize, per_chunk)
    found: list[Any] = []
    dataset.id.chunk_iter(found.append)
    if len(found) != -(-length // per_chunk) or any(chunk.filter_mask for chunk in found):
        raise UnknownLayoutError(dataset.name)
    found.sort(key=lambda chunk: chunk.chunk_offset[0])
    offset, size = (np.array([getattr(c, part) for c in found], np.int64) for part in ("byte_offset", "size"))
    places = Places((path,), np.zeros(len(found), np.int32), offset, size)
    return ChunkTable(name, length, dataset.dtype, per_chunk, places, decode)


def of_zarr(folder: Path) -> ChunkTable | None:
    """The table of a zarr array in a folder, of format 2 or 3; None if only the library can read it."""
    try:
        if (folder / "zarr.json").is_file():
            return _of_zarr_3(folder, json.loads((folder / "zarr.json").read_text(encoding="utf-8")))
        if (folder / ".zarray").is_file():
            return _of_zarr_2(folder, json.loads((folder / ".zarray").read_text(encoding="utf-8")))
    except (FileNotFoundError, KeyError, IndexError, TypeError, ValueError):  # not as expected: leave it to zarr
        return None
    return None


def _of_zarr_2(folder: Path, record: dict[str, Any]) -> ChunkTable:
    dtype = np.dtype(record["dtype"])
    if len(record["shape"]) != 1 or not _is_plain(dtype) or record["filters"]:
        raise UnknownLayoutError(folder.name)
    length, per_chunk = int(record["shape"][0]), int(record["chunks"][0])
    decode: Decode | None = None
    if record["compressor"] is not None:
        decode = _codec(record["compressor"]["id"], dtype.itemsize * per_chunk)
    paths = tuple(folder / str(i) for i in range(-(-length // per_chunk)))
    return ChunkTable(folder.name, length, dtype, per_chunk, _whole_files(paths), decode)


def _of_zarr_3(folder: Path, record: dict[str, Any]) -> ChunkTable:
    codecs, grid, key = record["codecs"], record["chunk_grid"], record["chunk_key_encoding"]
    if not isinstance(record["data_type"], str) or len(record["shape"]) != 1 or grid["name"] != "regular":
        raise UnknownLayoutError(folder.name)
    dtype = np.dtype(record["data_type"])
    if not _is_plain(dtype) or key["name"] not in ("default", "v2"):
        raise UnknownLayoutError(folder.name)
    length, per_file = int(record["shape"][0]), int(grid["configuration"]["chunk_shape"][0])
    separator = key.get("configuration", {}).get("separator", "/" if key["name"] == "default" else ".")
    names = range(-(-length // per_file))
    paths = tuple(folder / (f"c{separator}{i}" if key["name"] == "default" else str(i)) for i in names)
    if codecs[0]["name"] != "sharding_indexed":
        decode = _of_codecs(codecs, dtype, per_file)
        return ChunkTable(folder.name, length, dtype, per_file, _whole_files(paths), decode)
    shards = codecs[0]["configuration"]
    per_chunk = int(shards["chunk_shape"][0])
    decode = _of_codecs(shards["codecs"], dtype, per_chunk)
    index_codecs = [codec["name"] for codec in shards["index_codecs"]]
    if len(codecs) > 1 or per_file % per_chunk or index_codecs not in (["bytes"], ["bytes", "crc32c"]):
        raise UnknownLayoutError(folder.name)
    at_end = shards.get("index_location", "end") == "end"
    places = _in_shards(paths, per_file // per_chunk, -(-length // per_chunk), at_end, 4 * (len(index_codecs) - 1))
    return ChunkTable(folder.name, length, dtype, per_chunk, places, decode)


def _in_shards(paths: tuple[Path, ...], per_shard: int, n_chunks: int, at_end: bool, n_check: int) -> Places:
    """Reads the index of each shard: offset and size of its chunks, as uint64, optionally followed by a checksum."""
    tables = []
    for path in paths:
        n_bytes = 16 * per_shard + n_check
        with path.open("rb") as file:
            file.seek(-n_bytes if at_end else 0, os.SEEK_END if at_end else os.SEEK_SET)
            tables.append(np.frombuffer(file.read(n_bytes)[: 16 * per_shard], "<u8").reshape(per_shard, 2))
    table = np.concatenate(tables)[:n_chunks] if tables else np.empty((0, 2), "<u8")
    if (table == EMPTY).any():
        raise UnknownLayoutError("a shard without all its chunks")
    files = np.repeat(np.arange(len(paths), dtype=np.int32), per_shard)[:n_chunks]
    return Places(paths, files, table[:, 0].astype(np.int64), table[:, 1].astype(np.int64))


def _whole_files(paths: tuple[Path, ...]) -> Places:
    size = np.array([path.stat().st_size for path in paths], np.int64)
    return Places(paths, np.arange(len(paths), dtype=np.int32), np.zeros(len(paths), np.int64), size)


def _of_codecs(codecs: list[dict[str, Any]], dtype: np.dtype[Any], per_chunk: int) -> Decode | None:
    """The function that decodes the codecs of zarr's format 3; None if there are none."""
    first, rest = codecs[0], codecs[1:]
    little = first.get("configuration", {}).get("endian", "little") == "little" or dtype.itemsize == 1
    if first["name"] != "bytes" or not little or len(rest) > 1:
        raise UnknownLayoutError(str(codecs))
    return _codec(rest[0]["name"], dtype.itemsize * per_chunk) if rest else None


def _of_filters(filters: list[int], itemsize: int, per_chunk: int) -> Decode | None:
    """The function that decodes the filters of HDF5; None if there are none."""
    if not filters:
        return None
    if filters == [DEFLATE]:
        return _inflate(itemsize * per_chunk)
    if filters == [SHUFFLE, DEFLATE]:
        return functools.partial(_unshuffled, inflate=_inflate(itemsize * per_chunk), itemsize=itemsize)
    raise UnknownLayoutError(str(filters))


def _codec(name: str, n_bytes: int) -> Decode:
    """A codec of numcodecs, for chunks of `n_bytes` bytes; the compressed data contain its settings."""
    if name not in ZARR_CODECS:
        raise UnknownLayoutError(name)
    if name == "zlib":
        return _inflate(n_bytes)
    from numcodecs import get_codec

    decode: Decode = get_codec({"id": name}).decode
    return decode


def _inflate(n_bytes: int) -> Decode:
    """zlib decompression into a buffer of the right size, with Intel's faster library if it is installed."""
    try:
        from isal import isal_zlib
    except ImportError:
        return functools.partial(zlib.decompress, bufsize=n_bytes)
    return functools.partial(isal_zlib.decompress, bufsize=n_bytes)


def _decoding_errors() -> tuple[type[Exception], ...]:
    """The exceptions that the codecs raise."""
    errors: list[type[Exception]] = [zlib.error, ValueError, RuntimeError, EOFError]
    try:
        from isal import isal_zlib
    except ImportError:
        return tuple(errors)
    faster: Any = isal_zlib.error
    return (*errors, faster)


def _unshuffled(raw: bytes, *, inflate: Decode, itemsize: int) -> NDArray[np.uint8]:
    """Undoes the shuffle filter, which stores the first bytes of all elements, then the second bytes, and so on."""
    shuffled = np.frombuffer(inflate(raw), np.uint8)
    return np.ascontiguousarray(shuffled.reshape(itemsize, -1).T).reshape(-1)


def _is_plain(dtype: np.dtype[Any]) -> bool:
    """Whether the bytes in a file are also the elements in memory."""
    return dtype.kind in "iufb" and dtype.isnative and sys.byteorder == "little" and hasattr(os, "pread")


def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))


def _pread(descriptor: int, n: int, offset: int) -> bytes:
    """The requested bytes, or as many as the file has."""
    raw = os.pread(descriptor, n, offset)
    while len(raw) < n:
        more = os.pread(descriptor, n - len(raw), offset + len(raw))
        if not more:
            break
        raw += more
    return raw
