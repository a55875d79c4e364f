"""Rows on disk are the rows in memory: the same values, bit for bit, in the order asked for."""

from __future__ import annotations

import os
import threading

import anndata
import h5py
import numpy as np
import pytest
import torch
from scipy import sparse

from scvae.data import on_disk as module
from scvae.data.batches import Shuffle, chunks, epoch_plan
from scvae.data.feeds import FromDisk, Host, make_feed, single_pass, store_on
from scvae.data.intake import read_query
from scvae.data.rows import DenseRows, SparseRows
from scvae.data.stored_rows import StoredRows
from scvae.kernels import rows as kernel_rows
from scvae.likelihoods.base import dense
from tests.data.reading import read_fit

CPU = torch.device("cpu")
N_CELLS, N_GENES = 90, 40


def matrix(kind="csr"):
    rng = np.random.default_rng(0)
    values = rng.poisson(0.6, (N_CELLS, N_GENES))
    values[[4, 50, 89]] = 0
    values[:, 7] = 0
    if kind == "dense":
        return values.astype(np.float32)
    found = sparse.csr_matrix(values.astype(np.float32))
    if kind == "csr":
        return found
    shuffled = found.copy()  # columns of a row in any order
    for start, stop in zip(found.indptr[:-1], found.indptr[1:], strict=True):
        order = rng.permutation(stop - start)
        shuffled.indices[start:stop] = found.indices[start:stop][order]
        shuffled.data[start:stop] = found.data[start:stop][order]
    if kind == "twice":  # each value as two entries of half
        shuffled = sparse.csr_matrix(
            (np.repeat(shuffled.data, 2) / 2, np.repeat(shuffled.indices, 2), 2 * found.indptr), shape=found.shape
        )
    shuffled.has_canonical_format = shuffled.has_sorted_indices = False
    return shuffled


def adata_of(x):
    adata = anndata.AnnData(x)
    adata.obs["batch"] = np.where(np.arange(N_CELLS) % 3 == 0, "a", "b")
    adata.obs["age"] = np.arange(N_CELLS) / 7
    return adata


LAYOUTS = {
    "gzip": {"compression": "gzip"},
    "plain": {},
    "lzf": {"compression": "lzf"},
    "small chunks": {"compression": "gzip", "dataset_kwargs": {"chunks": (17,)}},
}


def backed(tmp_path, adata, layout="gzip"):
    keywords = dict(LAYOUTS[layout])
    keywords |= keywords.pop("dataset_kwargs", {})
    path = tmp_path / "cells.h5ad"
    if "chunks" in keywords:
        adata.write_h5ad(path)
        with h5py.File(path, "r+") as file:
            for name in ("data", "indices"):
                values = file["X"][name][:]
                del file["X"][name]
                file["X"].create_dataset(name, data=values, **keywords)
    else:
        adata.write_h5ad(path, **keywords)
    return anndata.read_h5ad(path, backed="r")


def read(adata, memory=0.0, mask=None):
    options = {"layer": None, "mask_var": mask, "batch_key": "batch", "covariate_keys": ["age"]}
    return read_fit(adata, **options, size_factor_key=None, kind="counts", memory=memory)


def orders():
    rng = np.random.default_rng(3)
    yield np.arange(N_CELLS)
    yield rng.permutation(N_CELLS)
    yield rng.permutation(N_CELLS)[:11]
    yield np.array([4])
    yield np.array([5, 6, 5, 89, 0, 4, 50])
    yield np.empty(0, np.int64)


def assert_same_rows(found, expected):
    for positions in orders():
        a, b = found.take(positions), expected.take(positions)
        assert a.n_columns == b.n_columns
        for part in ("indptr", "indices", "values"):
            x, y = getattr(a, part), getattr(b, part)
            assert x.dtype == y.dtype
            assert torch.equal(x, y), part


MASKS = {"all": None, "half": np.arange(N_GENES) % 2 == 0, "few": np.isin(np.arange(N_GENES), [3, 7, 30])}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("task", [64, 2**19])
def test_rows_of_an_h5ad_are_those_in_memory(tmp_path, monkeypatch, layout, mask, task):
    monkeypatch.setattr(module, "TASK", task)
    adata = adata_of(matrix())
    schema, expected = read(adata, mask=MASKS[mask])
    stored_schema, found = read(backed(tmp_path, adata, layout), mask=MASKS[mask])
    assert isinstance(found.rows, StoredRows)
    assert stored_schema == schema
    assert_same_rows(found.rows, expected.rows)
    assert np.array_equal(found.library, expected.library)
    assert found.fingerprint() == expected.fingerprint()


@pytest.mark.parametrize("kind", ["dense", "unsorted", "twice"])
def test_dense_unsorted_and_repeated_entries_are_read_as_in_memory(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(module, "TASK", 200)
    adata = adata_of(matrix(kind))
    expected = read(adata)[1]
    found = read(backed(tmp_path, adata))[1]
    assert isinstance(found.rows, StoredRows)
    assert_same_rows(found.rows, expected.rows)


@pytest.mark.parametrize("kind", ["int64", "uint16", "float64", "bool"])
def test_any_type_of_values_is_read_as_in_memory(tmp_path, kind):
    values = matrix()
    adata = adata_of(sparse.csr_matrix((values.data.astype(kind), values.indices, values.indptr), shape=values.shape))
    assert_same_rows(read(backed(tmp_path, adata))[1].rows, read(adata)[1].rows)


@pytest.mark.parametrize("sharded", [False, True])
def test_rows_of_a_zarr_store_are_those_in_memory(tmp_path, sharded):
    zarr = pytest.importorskip("zarr", minversion="3")
    adata = adata_of(matrix())
    root = zarr.open_group(tmp_path / "cells.zarr", mode="w", zarr_format=3)
    anndata.io.write_elem(root, "X", adata.X, dataset_kwargs={"chunks": (50,), "shards": (200,) if sharded else None})
    on_disk = anndata.AnnData(anndata.io.sparse_dataset(root["X"]), adata.obs, adata.var)
    found = read(on_disk)[1]
    assert isinstance(found.rows, StoredRows)
    assert found.rows._source.parts[0].matrix._values.per_chunk == 50
    assert_same_rows(found.rows, read(adata)[1].rows)


@pytest.mark.parametrize("kind", ["csr", "dense"])
def test_rows_of_a_dask_array_are_computed_block_by_block(kind):
    dask = pytest.importorskip("dask.array")
    x, computed = matrix(kind), []

    def block(block_info=None):
        first, stop = block_info[None]["array-location"][0]
        computed.append((first, stop))
        return x[first:stop]

    meta = x[:0]
    sizes = (20, 30, 7, 33)
    array = dask.map_blocks(block, chunks=(sizes, (N_GENES,)), dtype=x.dtype, meta=meta)
    adata = anndata.AnnData(array, adata_of(x).obs)
    found = read(adata)[1]
    assert_same_rows(found.rows, read(adata_of(x))[1].rows)
    computed.clear()
    found.rows.take(np.array([21, 22, 60]))
    assert sorted(computed) == [(20, 50), (57, 90)]  # threads compute them, in any order


def test_a_query_finds_its_genes_by_name_in_any_order(tmp_path):
    adata = adata_of(matrix())
    schema, _ = read(adata, mask=MASKS["half"])
    other = adata[:, np.random.default_rng(0).permutation(N_GENES)].copy()
    assert_same_rows(read_query(backed(tmp_path, other), schema, memory=0.0).rows, read_query(other, schema).rows)


def test_real_values_that_do_not_fit_are_read_as_those_that_do(tmp_path):
    values = np.random.default_rng(0).normal(size=(N_CELLS, N_GENES)).astype(np.float32)
    adata = adata_of(values)
    options = {
        "layer": None,
        "mask_var": MASKS["half"],
        "batch_key": None,
        "covariate_keys": [],
        "size_factor_key": None,
    }
    stored = backed(tmp_path, adata)
    for memory, kind in ((0.0, StoredRows), (4.0 * N_CELLS * 20, DenseRows)):
        _, found = read_fit(stored, **options, kind="real", memory=memory)
        assert isinstance(found.rows, kind)
        taken = found.rows.take(np.array([5, 3, 88]))
        assert torch.equal(dense(taken), torch.from_numpy(values[[5, 3, 88]][:, ::2]))


def test_a_device_that_can_hold_the_cells_gets_them_from_disk_once(tmp_path):
    adata = adata_of(matrix())
    source, memory = read(backed(tmp_path, adata))[1], read(adata)[1]
    found, expected = (store_on(cells, CPU).everything for cells in (source, memory))
    assert torch.equal(dense(found.x), dense(expected.x))


def test_without_numba_the_rows_are_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_rows, "cpu_kernels", lambda: None)
    adata = adata_of(matrix())
    for mask in MASKS.values():
        assert_same_rows(read(backed(tmp_path, adata), mask=mask)[1].rows, read(adata, mask=mask)[1].rows)


def test_what_fits_the_memory_allowed_is_held_there(tmp_path):
    adata = adata_of(matrix())
    size = 8.0 * adata.X.nnz
    assert isinstance(read(backed(tmp_path, adata), memory=size)[1].rows, SparseRows)
    assert isinstance(read(backed(tmp_path, adata), memory=size - 1)[1].rows, StoredRows)
    few = MASKS["few"]  # of the modelled genes only
    assert isinstance(read(backed(tmp_path, adata), memory=size / 3, mask=few)[1].rows, SparseRows)


@pytest.mark.parametrize("window", [20, 32, 1000])
def test_a_feed_from_disk_gives_the_cells_of_the_plan_in_its_order(tmp_path, window):
    adata = adata_of(matrix())
    source, memory = read(backed(tmp_path, adata))[1], read(adata)[1]
    source.rows.shuffle = Shuffle(4, window)
    held = np.array([2, 17, 44, 80])
    feed = FromDisk(source, CPU, held)
    train = np.setdiff1d(np.arange(N_CELLS), held)
    plans = [epoch_plan(train, 8, seed=0, epoch=0, shuffle=feed.shuffle), [held[:3], held[3:]], chunks(N_CELLS, 7), []]
    for plan in plans:
        batches = list(feed.batches(plan))
        assert len(batches) == len(plan)
        for batch, expected in zip(batches, Host(memory, CPU).batches(plan), strict=True):
            assert torch.equal(batch.x.to_dense(), expected.x.to_dense())
            for part in ("library", "codes", "numeric", "group"):
                assert torch.equal(getattr(batch, part), getattr(expected, part))


def test_cells_asked_for_again_and_again_are_read_once(tmp_path, monkeypatch):
    source, held = read(backed(tmp_path, adata_of(matrix())))[1], np.array([2, 17, 44, 80])
    feed = make_feed(source, CPU, held)
    assert isinstance(feed, FromDisk)
    monkeypatch.setattr(StoredRows, "take", lambda *_: pytest.fail("read from disk"))
    assert [len(batch) for batch in feed.batches([held[:2], held[1:]])] == [2, 3]


def test_the_next_window_is_read_while_one_is_in_use(tmp_path, monkeypatch):
    source = read(backed(tmp_path, adata_of(matrix())))[1]
    source.rows.shuffle = Shuffle(4, 16)
    plan = epoch_plan(np.arange(N_CELLS), 8, seed=0, epoch=0, shuffle=source.rows.shuffle)
    asked, events = [], [threading.Event() for _ in range(2)]
    take = StoredRows.take

    def watched(self, positions):
        asked.append(positions)
        if len(asked) <= 2:
            events[len(asked) - 1].set()
        return take(self, positions)

    monkeypatch.setattr(StoredRows, "take", watched)
    stream = single_pass(source, CPU).batches(plan)
    next(stream)
    assert events[1].wait(20)
    assert len(asked) == 2
    stream.close()


@pytest.mark.parametrize(("per_chunk", "block", "window"), [(1, 16, 40_960), (50, 200, 62_500), (500, 245, 62_500)])
def test_blocks_grow_with_the_chunks_of_the_file_and_windows_with_the_memory(
    tmp_path, monkeypatch, per_chunk, block, window
):
    monkeypatch.setattr(module.CompressedOnDisk, "cells_per_chunk", per_chunk)
    rows = read(backed(tmp_path, adata_of(matrix())))[1].rows
    rows.n_kept = 100 * N_CELLS  # 800 bytes a cell
    shuffle = rows._shuffle(200e6)
    assert (shuffle.block, shuffle.window) == (block, window)
    assert shuffle.variance_ratio(256, 10**6) <= 2.0


def test_the_log_tells_of_the_shuffle_and_of_reading_in_vain(tmp_path, monkeypatch, caplog):
    rows = read(backed(tmp_path, adata_of(matrix())))[1]
    with caplog.at_level("INFO"):
        make_feed(rows, CPU)
    assert "blocks of 2 cells, permuted in windows of 256" in caplog.text
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "the file's chunks are large" in caplog.text
    rows.rows._per_chunk = 3.0
    caplog.clear()
    make_feed(rows, CPU)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_a_file_cut_short_while_in_use_is_told_with_file_chunk_and_cells(tmp_path):
    rows = read(backed(tmp_path, adata_of(matrix()), "small chunks"))[1].rows
    os.truncate(tmp_path / "cells.h5ad", 3000)
    with pytest.raises(OSError, match=r"cells\.h5ad: chunk .* of /X/.* cells \d+ to \d+ of X were read.*checkpoint"):
        rows.take(np.arange(N_CELLS))


def test_a_damaged_index_is_refused(tmp_path):
    path = tmp_path / "cells.h5ad"
    for name, value, message in (("indices", N_GENES, "beyond its 40 columns"), ("indptr", 10**6, "does not fit")):
        adata_of(matrix()).write_h5ad(path)
        with h5py.File(path, "r+") as file:
            file["X"][name][30] = value
        adata = anndata.read_h5ad(path, backed="r")
        with pytest.raises(ValueError, match=message):
            read(adata)
        adata.file.close()
