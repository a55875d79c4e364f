"""Every way to feed a model gives it the same cells."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from scvae.data import feeds
from scvae.data.feeds import Host, Resident, Streamed, make_feed, single_pass, store_on
from scvae.data.rows import SparseRows
from scvae.kernels.selection import SelectedRows
from scvae.likelihoods.base import dense
from tests.data.reading import read_fit

CPU = torch.device("cpu")
PLAN = [np.array([3, 0, 7]), np.array([1]), np.array([11, 10, 9, 3])]


def cells(kind="counts", *, values=None, mask=None):
    """Twelve cells with a batch, a category, a number and a label; an empty one, and genes out of order in the file."""
    rng = np.random.default_rng(0)
    if values is None:
        values = rng.poisson(0.7, (12, 9)).astype(np.float32)
        values[4] = 0
    if kind == "binary":
        values = (values > 0).astype(np.float32)
    if kind == "real":
        values = values / 2
    obs = pd.DataFrame(
        {
            "batch": list("aabbababbaab"),
            "donor": list("xyzxyzxyzxyz"),
            "age": rng.normal(size=12),
            "type": list("pqqp?pq?pqqp"),
        },
        index=[f"cell_{i}" for i in range(12)],
    )
    adata = anndata.AnnData(values if kind == "real" else sparse.csr_matrix(values), obs)
    options = {"layer": None, "mask_var": mask, "batch_key": "batch", "covariate_keys": ["donor", "age"]}
    options |= {"labels_key": "type", "unlabelled": "?"}
    return read_fit(adata, **options, size_factor_key=None, kind=kind)[1]


def assert_same(found, expected):
    assert torch.equal(dense(found.x), dense(expected.x))
    for name in ("library", "codes", "numeric", "group", "labels"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert found.has_batch == expected.has_batch


@pytest.mark.parametrize("make", [Streamed, store_on, make_feed, single_pass])
@pytest.mark.parametrize("kind", ["counts", "binary", "real"])
@pytest.mark.parametrize("mask", [None, np.arange(9) % 2 == 0])
def test_every_feed_gives_the_cells_of_the_plan_in_its_order(monkeypatch, make, kind, mask):
    monkeypatch.setattr(feeds, "CHUNK", 5)
    source = cells(kind, mask=mask)
    batches = list(make(source, CPU).batches(PLAN))
    assert len(batches) == len(PLAN)
    for batch, positions in zip(batches, PLAN, strict=True):
        assert_same(batch, source.batch(positions))


@pytest.mark.parametrize("make", [Host, Streamed, store_on])
def test_an_empty_plan_gives_no_batch(make):
    assert list(make(cells(), CPU).batches([])) == []


@pytest.mark.parametrize(
    ("largest", "kind"),
    [(255, torch.uint8), (256, torch.int16), (32_767, torch.int16), (32_768, torch.float32), (0.5, torch.float32)],
)
@pytest.mark.filterwarnings("ignore:.* % of the non-zero values:UserWarning")
def test_a_store_takes_the_narrowest_type_that_holds_every_value(monkeypatch, largest, kind):
    monkeypatch.setattr(feeds, "CHUNK", 5)  # the largest value is in the last of three parts
    values = np.ones((12, 9), np.float32)
    values[11, 3] = largest
    source = cells(values=values)
    everything = store_on(source, CPU).everything
    assert everything.x.values.dtype == kind
    assert everything.x.indices.dtype == torch.int16
    assert_same(everything, source.batch(np.arange(12)))


def test_columns_beyond_int16_are_int32():
    values = np.zeros((12, 32_769), np.float32)
    values[:, [0, 32_768]] = 3
    matrix = sparse.csr_matrix(values)
    rows = SparseRows(matrix.indptr, matrix.indices, matrix.data, values.shape[1])
    everything = store_on(replace(cells(), rows=rows), CPU).everything
    assert everything.x.indices.dtype == torch.int32
    assert torch.equal(dense(everything.x), torch.from_numpy(values))


def test_the_longest_row_bounds_all_rows():
    x = store_on(cells(), CPU).everything.x
    assert isinstance(x, SelectedRows)
    assert x.longest == int((x.last - x.first).max())


@pytest.mark.parametrize("kind", ["counts", "real"])
def test_cells_that_would_fill_the_memory_are_not_stored(monkeypatch, kind):
    for free, fits in ((100_000, True), (300, False)):
        monkeypatch.setattr(feeds, "_free_memory", lambda _, free=free: free)
        assert (store_on(cells(kind), CPU) is not None) == fits


def out_of_memory(*_):
    raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize("store", [lambda *_: None, out_of_memory])
def test_what_does_not_fit_on_a_cuda_device_is_streamed_with_one_log_line(monkeypatch, caplog, store):
    monkeypatch.setattr(feeds, "store_on", store)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: None)
    with caplog.at_level(logging.WARNING):
        assert isinstance(make_feed(cells(), torch.device("cuda")), Streamed)
    assert [record.message for record in caplog.records] == [
        "the cells do not fit into the memory of cuda; they are streamed to it batch by batch"
    ]


def watched(monkeypatch, source, then=lambda _: None):
    """Positions of the batches made so far, and an event a batch that is set once it was asked for."""
    made, events = [], [threading.Event() for _ in PLAN]
    original = type(source).batch

    def batch(self, positions):
        made.append(positions.tolist())
        events[len(made) - 1].set()
        then(len(made))
        return original(self, positions)

    monkeypatch.setattr(type(source), "batch", batch)
    return made, events


def test_the_next_batch_is_made_while_one_is_in_use(monkeypatch):
    source = cells()
    made, events = watched(monkeypatch, source)
    stream = Streamed(source, CPU).batches(PLAN)
    next(stream)
    assert events[1].wait(20)
    assert made == [p.tolist() for p in PLAN[:2]]
    assert len(list(stream)) == 2
    assert made == [p.tolist() for p in PLAN]


def test_an_error_in_the_other_thread_is_raised_where_the_batch_is_wanted(monkeypatch):
    def fail(n_made):
        if n_made == 2:
            raise OSError("the file is gone")

    source = cells()
    watched(monkeypatch, source, fail)
    stream = Streamed(source, CPU).batches(PLAN)
    next(stream)
    with pytest.raises(OSError, match="the file is gone"):
        next(stream)


def test_a_stream_left_early_leaves_no_thread_behind():
    before = threading.active_count()
    stream = Streamed(cells(), CPU).batches(PLAN)
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("kind", ["counts", "binary", "real"])
def test_feeds_of_a_cuda_device_give_the_cells_of_the_host(kind):
    device, source = torch.device("cuda"), cells(kind)
    assert isinstance(make_feed(source, device), Resident)
    for feed in (store_on(source, device), Streamed(source, device)):
        for batch, positions in zip(feed.batches(PLAN), PLAN, strict=True):
            assert batch.library.device.type == "cuda"
            assert torch.equal(dense(batch.x).cpu(), dense(source.batch(positions).x))
            assert torch.equal(batch.library.cpu(), source.batch(positions).library)
            assert torch.equal(batch.codes.cpu(), source.batch(positions).codes)
