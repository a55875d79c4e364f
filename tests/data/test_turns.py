"""A file is changed only while nobody else has it open, and nobody's changes are lost."""

import gc
import io
import subprocess
import sys
import threading

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
import zarr
from anndata.io import write_elem

import scvae
from scvae.cli import main
from scvae.data import in_place, turns, write_back
from scvae.data.in_place import InPlace, changed_in_place, restore

SHORT = {"n_latent": 3, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=2)}
NAMES = {"obs": pd.Index([f"cell_{i}" for i in range(40)]), "var": pd.Index([f"gene_{i}" for i in range(12)])}
HOLD = """
import sys, h5py
with h5py.File(sys.argv[1], sys.argv[2]) as file:
    print("open", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def path(tmp_path):
    values = np.random.default_rng(0).poisson(1.0, (40, 12)).astype(np.float32)
    adata = anndata.AnnData(values, pd.DataFrame(index=NAMES["obs"]), pd.DataFrame(index=NAMES["var"]))
    adata.obsm["mine"] = np.ones((40, 500))
    adata.write_h5ad(tmp_path / "cells.h5ad")
    return tmp_path / "cells.h5ad"


@pytest.fixture
def held(path):
    """Opens the file in another process, in one mode of h5py, until the end of the test or `release`."""
    running = []

    def hold(mode):
        child = subprocess.Popen(
            [sys.executable, "-c", HOLD, path, mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        running.append(child)
        assert child.stdout.readline() == "open\n"
        return child

    yield hold
    for child in running:
        child.stdin.close()
        child.stdout.close()
        child.wait()


def add(path, key, value):
    write = write_back._write_zarr if path.is_dir() else write_back._write_h5ad
    write(path, {"obsm": {key: np.full((40, 50), float(value))}, "varm": {}, "uns": {}, "var": {}}, NAMES)


@pytest.mark.parametrize(
    "open_",
    [lambda p: anndata.read_h5ad(p, backed="r+").file, lambda p: h5py.File(p, "r+"), lambda p: h5py.File(p, "r")],
    ids=["backed", "h5py", "reader"],
)
@pytest.mark.parametrize("locking", ["true", pytest.param("false", marks=pytest.mark.slow)])
def test_a_file_that_is_open_in_this_process_is_refused_before_anything_is_read(path, open_, locking, monkeypatch):
    monkeypatch.setenv("HDF5_USE_FILE_LOCKING", locking)
    monkeypatch.setattr("scvae.training.fit.read_and_train", lambda *_, **__: pytest.fail("trained"))
    before, handle = path.read_bytes(), open_(path)
    try:
        for call in (lambda: scvae.fit(path, **SHORT), lambda: scvae.tl.highly_variable_genes(path, n_top_genes=5)):
            with pytest.raises(BlockingIOError, match=r"cells\.h5ad is open in this process"):
                call()
        assert main(["fit", str(path), "-o", str(path), "--force", "--quiet"]) == 2
    finally:
        handle.close()
    assert path.read_bytes() == before


def test_what_an_open_handle_has_not_written_yet_is_read(path):
    model = scvae.fit(anndata.read_h5ad(path), **SHORT)
    with h5py.File(path, "r+") as handle:
        handle["X"][:] = np.flip(handle["X"][:], 0)
        found = scvae.tl.embed(path, model, copy=True).obsm["X_scvae"]
    adata = anndata.read_h5ad(path)
    scvae.tl.embed(adata, model)
    assert np.array_equal(found, adata.obsm["X_scvae"])


def test_a_handle_that_nobody_refers_to_is_closed_first_and_its_changes_are_kept(path):
    handle = h5py.File(path, "r+")
    del handle["obsm/mine"]
    gc.disable()
    try:
        circle = [handle]
        circle.append(circle)
        del circle, handle
        add(path, "new", 1)
    finally:
        gc.enable()
    assert set(anndata.read_h5ad(path).obsm) == {"new"}


def test_a_file_open_for_writing_in_another_process_is_refused_with_the_number_of_that_process(path, held, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE_TO_READ", 0.1)
    child = held("r+")
    with pytest.raises(BlockingIOError, match=rf"cells\.h5ad is open in process {child.pid} \(.*python"):
        scvae.fit(path, **SHORT)


def test_results_that_cannot_be_written_leave_the_file_whole_and_give_the_model(path, held, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    before, child = path.read_bytes(), held("r")
    with pytest.raises(scvae.NotWrittenError, match=rf"open in process {child.pid}.*The model is not lost") as found:
        scvae.fit(path, **SHORT)
    assert path.read_bytes() == before
    child.stdin.close()
    child.wait()
    scvae.tl.embed(path, found.value.model)
    assert anndata.read_h5ad(path).obsm["X_scvae"].shape == (40, 3)


def test_a_writer_waits_for_a_reader_and_says_so(path, held, monkeypatch):
    monkeypatch.setattr(turns, "SILENT", 0.2)
    child = held("r")
    threading.Timer(1.0, lambda: child.stdin.close()).start()
    with pytest.warns(
        UserWarning, match=rf"waiting up to 60 s for .*cells\.h5ad, which is open in process {child.pid}"
    ):
        add(path, "new", 1)
    assert set(anndata.read_h5ad(path).obsm) == {"mine", "new"}


@pytest.mark.parametrize("ending", [".h5ad", ".zarr"])
def test_all_results_of_those_who_write_at_the_same_time_are_there(path, ending):
    if ending == ".zarr":
        adata, path = anndata.read_h5ad(path), path.with_suffix(".zarr")
        write_elem(zarr.open_group(path, mode="w", zarr_format=2), "/", adata)
    together = threading.Barrier(6)

    def run(i):
        together.wait()
        add(path, f"run_{i}", i)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = (anndata.read_zarr if ending == ".zarr" else anndata.read_h5ad)(path)
    assert set(found.obsm) == {"mine", *(f"run_{i}" for i in range(6))}
    assert all((found.obsm[f"run_{i}"] == i).all() for i in range(6))


def test_another_run_may_write_while_one_still_reads_values(path):
    from scvae.data.sources import opened

    with opened(path, None) as source:
        add(path, "new", 1)
        assert np.array_equal(np.asarray(source.adata.X[:]), anndata.read_h5ad(path).X)


def test_a_change_in_progress_is_not_undone_by_another_run(path, monkeypatch):
    monkeypatch.setattr(turns, "PATIENCE", 0.1)
    put_aside = in_place._put_aside

    def interfere(*arguments):
        put_aside(*arguments)
        with pytest.raises(BlockingIOError):
            restore(path)

    monkeypatch.setattr(in_place, "_put_aside", interfere)
    add(path, "new", 1)
    assert set(anndata.read_h5ad(path).obsm) == {"mine", "new"}


class Killed(BaseException):
    """What stands for the end of the process."""


def interrupted(path, n_pages):
    """A change of the file whose process ends after some of the old pages have been overwritten."""
    left, begin = [n_pages], InPlace.__init__

    class Dying(io.FileIO):
        def write(self, view):
            if in_place._aside(path).is_file():
                left[0] -= 1
                if left[0] < 0:
                    raise Killed
            return super().write(view)

    def dying(self, path, file):
        begin(self, path, Dying(file.fileno(), "r+b", closefd=False))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InPlace, "__init__", dying)
        patch.setattr(in_place, "_restore", lambda *_: None)
        with pytest.raises(Killed), changed_in_place(path) as changes, h5py.File(changes, "r+") as file:
            file["obsm/mine"][:] = 2


@pytest.mark.parametrize("n_pages", [0, 1, 30])
@pytest.mark.parametrize("call", [restore, lambda path: add(path, "more", 1)])
def test_a_change_that_was_interrupted_is_undone_by_the_next_run(path, n_pages, call):
    link = path.parent / "folder" / "link.h5ad"
    link.parent.mkdir()
    link.symlink_to(path)
    interrupted(path, n_pages)
    call(link)
    assert (anndata.read_h5ad(path).obsm["mine"] == 1).all()
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["cells.h5ad", "folder"]
    assert [entry.name for entry in link.parent.iterdir()] == ["link.h5ad"]


def test_old_bytes_are_not_put_into_a_file_that_was_written_again(path):
    adata = anndata.read_h5ad(path)
    interrupted(path, 1)
    adata.obsm["more"] = np.arange(4_000.0).reshape(40, 100)
    adata.write_h5ad(path)
    written = path.read_bytes()
    with pytest.warns(UserWarning, match="something else has written to the file since; it is left as it is"):
        restore(path)
    assert path.read_bytes() == written
    restore(path)


def test_results_are_not_written_to_other_cells_than_those_that_were_read(path, monkeypatch):
    adata, train = anndata.read_h5ad(path), scvae.training.fit.read_and_train

    def replaced(*arguments):
        adata[::-1].copy().write_h5ad(path)
        return train(*arguments)

    monkeypatch.setattr("scvae.training.fit.read_and_train", replaced)
    with pytest.raises(scvae.NotWrittenError, match=r"cells\.h5ad has other obs_names than when it was read"):
        scvae.fit(path, **SHORT)
    assert set(anndata.read_h5ad(path).obsm) == {"mine"}
