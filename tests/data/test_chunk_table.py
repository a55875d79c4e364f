"""Chunks read by position are what h5py and zarr read, whatever the layout."""

from __future__ import annotations

import os
import sys
import zlib

import h5py
import numpy as np
import pytest
import zarr

from scvae.data import chunk_table
from scvae.data.chunk_table import of_hdf5, of_zarr

VERSION = int(zarr.__version__.partition(".")[0])
DTYPES = ["int32", "int64", "uint8", "uint16", "float32", "float64", "float16"]
LAYOUTS = {
    "contiguous": {},
    "chunked": {"chunks": (100,)},
    "gzip": {"chunks": (100,), "compression": "gzip"},
    "gzip and shuffle": {"chunks": (64,), "compression": "gzip", "shuffle": True},
    "one chunk": {"chunks": (1000,), "compression": "gzip"},
    "tiny chunks": {"chunks": (3,), "compression": "gzip", "compression_opts": 9},
}


def numbers(dtype, n=1000):
    return np.random.default_rng(0).integers(0, 200, n).astype(dtype)


def some_ranges(n):
    rng = np.random.default_rng(1)
    for _ in range(20):
        edges = np.unique(rng.integers(0, n + 1, 2 * rng.integers(1, 8)))
        edges = edges[: len(edges) // 2 * 2]
        yield list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))
    yield [(0, n)]
    yield [(0, 0), (5, 5), (n, n)]
    yield [(4, 5), (5, 6), (6, 9)]


def assert_reads(table, expected):
    assert table is not None
    assert table.dtype == expected.dtype
    for ranges in some_ranges(len(expected)):
        found = table.read(ranges)
        assert found.dtype == expected.dtype
        assert np.array_equal(found, np.concatenate([expected[a:b] for a, b in ranges]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_hdf5_is_read_as_h5py_reads_it(tmp_path, layout, dtype):
    expected = numbers(dtype)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("group/other", data=np.arange(50))
        file.create_dataset("group/x", data=expected, **LAYOUTS[layout])
    with h5py.File(tmp_path / "a.h5") as file:
        table = of_hdf5(file["group/x"])
        assert_reads(table, file["group/x"][:])
    assert_reads(table, expected)  # without the library's file
    assert table.is_coded == ("gzip" in layout or "chunk" in layout.replace("chunked", "")) or layout == "chunked"


def test_hdf5_appended_to_in_several_steps_is_read_in_order(tmp_path):
    expected = numbers("int32", 977)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        data = file.create_dataset("x", shape=(0,), maxshape=(None,), chunks=(50,), compression="gzip", dtype="int32")
        other = file.create_dataset("y", shape=(0,), maxshape=(None,), chunks=(70,), compression="gzip", dtype="int32")
        for start in range(0, 977, 90):
            for dataset in (data, other):
                part = expected[start : start + 90]
                dataset.resize((start + len(part),))
                dataset[start:] = part
    with h5py.File(tmp_path / "a.h5") as file:
        for name in "xy":
            assert_reads(of_hdf5(file[name]), expected)


def odd_hdf5(file, kind):
    if kind == "lzf":
        return file.create_dataset("x", data=numbers("int32"), chunks=(10,), compression="lzf")
    if kind == "checksums":
        return file.create_dataset("x", data=numbers("int32"), chunks=(10,), fletcher32=True)
    if kind == "big endian":
        return file.create_dataset("x", data=numbers(">i4"))
    if kind == "two dimensions":
        return file.create_dataset("x", data=numbers("int32").reshape(10, 100))
    if kind == "chunks never written":
        data = file.create_dataset("x", shape=(1000,), chunks=(10,), dtype="int32", compression="gzip")
        data[:15] = 3
        return data
    if kind == "never written":
        return file.create_dataset("x", shape=(1000,), dtype="int32")
    if kind == "text":
        return file.create_dataset("x", data=["a", "b"])
    chunk = file.create_dataset("x", data=numbers("int32"), chunks=(10,), compression="gzip")
    chunk.id.write_direct_chunk((0,), np.arange(10, dtype="int32").tobytes(), filter_mask=1)
    return chunk


@pytest.mark.parametrize(
    "kind",
    [
        "lzf",
        "checksums",
        "big endian",
        "two dimensions",
        "chunks never written",
        "never written",
        "text",
        "skipped filter",
    ],
)
def test_hdf5_layouts_that_are_not_known_are_left_to_h5py(tmp_path, kind):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        odd_hdf5(file, kind)
    with h5py.File(tmp_path / "a.h5") as file:
        assert of_hdf5(file["x"]) is None


def test_a_file_in_memory_or_with_a_user_block_is_left_to_h5py(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w", driver="core", backing_store=False) as file:
        assert of_hdf5(file.create_dataset("x", data=numbers("int32"))) is None
    with h5py.File(tmp_path / "b.h5", "w", userblock_size=512) as file:
        assert of_hdf5(file.create_dataset("x", data=numbers("int32"))) is None


def zarr_arrays(dtype):
    """Keywords of zarr.create_array, by name."""
    from numcodecs import Blosc, GZip, Zlib, Zstd

    two = {
        f"2 {name}": {"zarr_format": 2, "chunks": (100,), "compressors": codec}
        for name, codec in {
            "blosc-lz4": Blosc("lz4", shuffle=1),
            "blosc-zstd": Blosc("zstd", shuffle=2),
            "gzip": GZip(),
            "zlib": Zlib(),
            "zstd": Zstd(),
            "plain": None,
        }.items()
    }
    from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

    plain = {"blosc": BloscCodec(cname="lz4"), "gzip": GzipCodec(), "zstd": ZstdCodec(), "plain": None}
    three = {f"3 {name}": {"chunks": (100,), "compressors": codec} for name, codec in plain.items()}
    return (
        two
        | three
        | {
            f"3 sharded {name}": {"chunks": (50,), "shards": (200,), "compressors": codec}
            for name, codec in plain.items()
        }
    )


@pytest.mark.skipif(VERSION < 3, reason="zarr 2 has another way to make arrays")
@pytest.mark.parametrize("dtype", ["int32", "float32", "int64", "uint8"])
def test_zarr_is_read_as_zarr_reads_it(tmp_path, dtype):
    expected = numbers(dtype, 1030)
    for i, (name, keywords) in enumerate(zarr_arrays(dtype).items()):
        array = zarr.create_array(tmp_path / str(i), shape=expected.shape, dtype=dtype, **keywords)
        array[:] = expected
        table = of_zarr(tmp_path / str(i))
        assert table is not None, name
        assert_reads(table, expected)
        assert table.per_chunk == (50 if "sharded" in name else 100)
        assert table.is_coded == ("plain" not in name)


@pytest.mark.skipif(VERSION < 3, reason="zarr 2 has no shards")
def test_an_index_in_front_of_a_shard_is_found(tmp_path):
    from zarr.codecs import BytesCodec, ShardingCodec, ZstdCodec

    codec = ShardingCodec(chunk_shape=(50,), codecs=[BytesCodec(), ZstdCodec()], index_location="start")
    array = zarr.create_array(
        tmp_path / "x", shape=(1000,), dtype="int32", chunks=(200,), serializer=codec, compressors=None
    )
    array[:] = numbers("int32")
    assert_reads(of_zarr(tmp_path / "x"), numbers("int32"))


@pytest.mark.skipif(VERSION < 3, reason="zarr 2 has another way to make arrays")
def test_zarr_layouts_that_are_not_known_are_left_to_zarr(tmp_path):
    from numcodecs import Delta
    from zarr.codecs import BytesCodec

    odd = {
        "filter": {"zarr_format": 2, "filters": [Delta(dtype="i4")]},
        "big endian": {"serializer": BytesCodec(endian="big")},
        "not all written": {},
        "not all of a shard written": {"shards": (400,)},
        "two dimensions": {"shape": (10, 100), "chunks": (10, 10)},
    }
    for name, keywords in odd.items():
        array = zarr.create_array(
            tmp_path / name, **({"shape": (1000,), "dtype": "int32", "chunks": (100,)} | keywords)
        )
        array[:5] = 7
        assert of_zarr(tmp_path / name) is None, name
    assert of_zarr(tmp_path / "nothing") is None
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "zarr.json").write_text("{")
    assert of_zarr(tmp_path / "broken") is None


def gzip_table(tmp_path, n=1000):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("x", data=numbers("int32", n), chunks=(100,), compression="gzip")
    with h5py.File(tmp_path / "a.h5") as file:
        return of_hdf5(file["x"])


def test_a_file_cut_short_is_told_with_the_chunk_and_the_file(tmp_path):
    table = gzip_table(tmp_path)
    os.truncate(tmp_path / "a.h5", int(table._places.offset[7]) + 5)
    assert np.array_equal(table.read([(0, 700)]), numbers("int32")[:700])
    with pytest.raises(OSError, match=r"a\.h5: chunk 7 of /x \(values 700 to 799\) ends after 5 of .* cut short"):
        table.read([(690, 720)])


def test_a_damaged_chunk_is_told_with_the_chunk_and_the_file(tmp_path):
    table = gzip_table(tmp_path)
    with (tmp_path / "a.h5").open("r+b") as file:
        file.seek(int(table._places.offset[3]) + 10)
        file.write(bytes(20))
    with pytest.raises(OSError, match=r"a\.h5: chunk 3 of /x \(values 300 to 399\) cannot be decompressed"):
        table.read([(0, 1000)])


@pytest.mark.skipif(VERSION < 3, reason="zarr 2 has another way to make arrays")
def test_a_chunk_of_zarr_that_has_gone_is_told(tmp_path):
    array = zarr.create_array(tmp_path / "x", shape=(1000,), dtype="int32", chunks=(100,))
    array[:] = numbers("int32")
    table = of_zarr(tmp_path / "x")
    (tmp_path / "x" / "c" / "4").unlink()
    with pytest.raises(OSError, match=r"chunk 4 of x \(values 400 to 499\) cannot be read"):
        table.read([(0, 1000)])


def test_without_isal_zlib_reads_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "isal", None)
    assert_reads(gzip_table(tmp_path), numbers("int32"))
    assert chunk_table._inflate(100).func is zlib.decompress


def test_a_file_deleted_while_open_can_still_be_read(tmp_path):
    table = gzip_table(tmp_path)
    (tmp_path / "a.h5").unlink()
    assert_reads(table, numbers("int32"))
