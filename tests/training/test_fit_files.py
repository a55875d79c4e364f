"""`fit` and `embed` of files: the results go into them, and nothing else of them changes."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import warnings

import anndata
import h5py
import numpy as np
import pytest
import zarr

import scvae
import scvae.training.train
from scvae import TrainingConfig
from scvae.data.in_place import InPlace, changed_in_place, restore
from scvae.data.sources import listed

SHORT = {"n_latent": 3, "rng": 0, "verbose": False}
STREAMED = TrainingConfig(epochs=2, memory=0.0)
HELD = TrainingConfig(epochs=2)


def cells(n=60, seed=0, n_genes=30):
    adata = scvae.datasets.simulate(n_cells=n, n_genes=n_genes, rng=seed)
    adata = anndata.AnnData(adata.X, adata.obs[[]], adata.var[[]])
    adata.obs["donor"] = np.where(np.arange(n) % 2 == 0, "a", "b")
    adata.obs["donor"] = adata.obs["donor"].astype("category")
    adata.layers["other"] = adata.X * 2
    adata.uns["kept"] = {"a": 1}
    return adata


def stored(adata, path, zarr_format=2):
    if path.suffix == ".zarr":
        version = {"zarr_format": zarr_format} if int(zarr.__version__.partition(".")[0]) >= 3 else {}
        if zarr_format == 3 and not version:
            pytest.skip("zarr 2 has no format 3")
        root = zarr.open_group(str(path), mode="w", **version)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on formats to come
            anndata.io.write_elem(root, "/", adata)
            zarr.consolidate_metadata(str(path))
    else:
        adata.write_h5ad(path, compression="gzip")
    return path


def reread(path):
    return anndata.read_zarr(path) if path.suffix == ".zarr" else anndata.read_h5ad(path)


def without_results(adata):
    adata = adata.copy()
    for key in ("X_scvae", "X_scvae_var"):
        del adata.obsm[key]
    del adata.uns["scvae"]
    return adata


def assert_same(found, expected):
    assert (found.X != expected.X).nnz == 0
    assert list(found.layers) == list(expected.layers)
    for frame in ("obs", "var"):
        assert getattr(found, frame).equals(getattr(expected, frame)), frame
    assert list(found.uns) == list(expected.uns)
    assert list(found.obsm) == list(expected.obsm)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(("ending", "zarr_format"), [("h5ad", 0), ("zarr", 2), ("zarr", 3)])
@pytest.mark.parametrize("training", [STREAMED, HELD], ids=["streamed", "held"])
def test_a_file_gets_the_results_and_nothing_else(tmp_path, ending, zarr_format, training):
    adata = cells()
    path = stored(adata, tmp_path / f"cells.{ending}", zarr_format)
    model = scvae.fit(path if ending == "zarr" else str(path), training=training, **SHORT)
    found = reread(path)
    assert_same(without_results(found), reread(stored(adata, tmp_path / f"again.{ending}", zarr_format)))
    embedded = scvae.tl.embed(adata, model, copy=True)
    assert np.allclose(found.obsm["X_scvae"], embedded.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    assert found.uns["scvae"]["seed"] == 0
    assert names_in(tmp_path) == [f"again.{ending}", f"cells.{ending}"]


@pytest.mark.parametrize("ending", ["h5ad", "zarr"])
def test_results_written_again_take_the_place_of_the_earlier(tmp_path, ending):
    path = stored(cells(), tmp_path / f"cells.{ending}")
    linear = scvae.NetworkConfig(decoder="linear")
    scvae.fit(path, training=HELD, network=linear, **SHORT)
    assert reread(path).varm["scvae_loadings"].shape == (30, 3)
    model = scvae.fit(path, training=HELD, **SHORT | {"n_latent": 2})
    found = reread(path)
    assert "scvae_loadings" not in found.varm
    assert found.obsm["X_scvae"].shape == (60, 2)
    assert scvae.tl.embed(path, model, n_samples=4) is None
    assert reread(path).obsm["X_scvae_samples"].shape == (60, 4, 2)


@pytest.mark.slow
def test_a_fit_from_a_file_sorted_by_type_is_as_good_as_one_in_memory(tmp_path):
    simulated = scvae.datasets.simulate(n_cells=1500, n_genes=150, n_types=5, rng=0)
    adata = anndata.AnnData(simulated.X, simulated.obs[["cell_type"]], simulated.var[[]])
    adata = adata[np.argsort(adata.obs["cell_type"].astype(str).to_numpy(), kind="stable")].copy()
    path = stored(adata, tmp_path / "cells.h5ad")
    short = {"epochs": 15, "batch_size": 64}
    held = scvae.fit(path, training=TrainingConfig(**short), **SHORT | {"n_latent": 8})
    streamed = scvae.fit(path, training=TrainingConfig(**short, memory=1e-4), **SHORT | {"n_latent": 8})
    assert streamed.outcome.held_out_elbo == pytest.approx(held.outcome.held_out_elbo, rel=0.003)
    assert len(streamed.history) == 15


def two_files(tmp_path):
    """The second lacks two genes, has one more, and another order of them."""
    first, second = cells(60), cells(50, seed=1)
    order = np.random.default_rng(0).permutation(30)[:28]
    more = second[:, order].copy()
    more = anndata.AnnData(more.X, more.obs, more.var.copy())
    more.var_names = [*more.var_names[:-1], "of its own"]
    stored(first, tmp_path / "one.h5ad")
    stored(more, tmp_path / "two.h5ad")
    return first, more


@pytest.mark.filterwarnings("ignore:27 genes are in all 2 files:UserWarning")
@pytest.mark.parametrize("training", [STREAMED, HELD], ids=["streamed", "held"])
def test_a_folder_is_one_set_of_cells_and_each_file_gets_its_own(tmp_path, training):
    first, second = two_files(tmp_path)
    model = scvae.fit(tmp_path, training=training, batch_key="file", covariate_keys=["donor"], **SHORT)
    shared = [name for name in first.var_names if name in set(second.var_names)]
    assert list(model.genes) == shared
    assert model.schema.batch.categories == ("one", "two")
    joined = anndata.concat({"one": first, "two": second}, label="file", index_unique="-")
    embedded = scvae.tl.embed(joined, model, copy=True)
    found = [reread(tmp_path / f"{name}.h5ad").obsm["X_scvae"] for name in ("one", "two")]
    assert np.allclose(np.concatenate(found), embedded.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    small = scvae.tl.embed([tmp_path / "one.h5ad", tmp_path / "two.h5ad"], model, copy=True)
    assert small.shape == (110, 0)
    assert list(small.obs_names) == list(embedded.obs_names)
    assert small.obs["file"].tolist() == joined.obs["file"].tolist()
    assert np.allclose(small.obsm["X_scvae"], embedded.obsm["X_scvae"], rtol=1e-5, atol=1e-6)


def test_files_with_genes_of_their_own_are_told(tmp_path):
    two_files(tmp_path)
    with pytest.warns(
        UserWarning, match="27 genes are in all 2 files and are used; up to 3 genes of a file are left out"
    ):
        scvae.fit(tmp_path, training=HELD, **SHORT)


def test_files_that_do_not_fit_together_are_refused_and_left_alone(tmp_path):
    adata = cells()
    adata.var_names = [f"other_{i}" for i in range(30)]
    one, two = stored(cells(), tmp_path / "one.h5ad"), stored(adata, tmp_path / "two.h5ad")
    before = two.read_bytes()
    with pytest.raises(
        ValueError, match=r"the 2 files share no gene: genes in .*one\.h5ad are .*two\.h5ad are 'other_0'"
    ):
        scvae.fit([one, two], **SHORT)
    with pytest.raises(ValueError, match=r"two\.h5ad: adata.layers has no 'counts'"):
        scvae.fit(two, layer="counts", **SHORT)
    for i, path in enumerate((one, two)):
        adata = cells()
        adata.var["highly_variable"] = np.arange(30) % 2 == i
        stored(adata, path)
    with pytest.raises(ValueError, match=r"do not agree on var\['highly_variable'\]"):
        scvae.fit([one, two], **SHORT)
    adata = cells()
    adata.X = adata.X.tocsc()
    stored(adata, two)
    with pytest.raises(ValueError, match=r"stored by genes \(CSC\)"):
        scvae.fit([one, two], **SHORT)
    two.write_bytes(before)
    assert two.read_bytes() == before


def test_paths_that_mean_no_cells_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file"):
        scvae.fit(tmp_path / "nothing.h5ad")
    with pytest.raises(FileNotFoundError, match="has no file that ends in"):
        scvae.fit(tmp_path)
    (tmp_path / "text.h5ad").write_text("no cells")
    with pytest.raises(ValueError, match=r"cannot read .*text\.h5ad as an h5ad file"):
        scvae.fit(str(tmp_path / "text.h5ad"))
    (tmp_path / "a").mkdir()
    one, other = stored(cells(), tmp_path / "a" / "x.h5ad"), stored(cells(), tmp_path / "x.h5ad")
    with pytest.raises(ValueError, match="several files are named 'x'"):
        scvae.fit([one, other])
    with pytest.raises(TypeError, match="adata is a int"):
        scvae.fit(3)
    assert listed(tmp_path / "a") == (one,)


def test_a_file_that_cannot_be_written_to_is_refused_before_training(tmp_path, monkeypatch):
    path = stored(cells(), tmp_path / "cells.h5ad")
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    monkeypatch.setattr("scvae.training.fit.read_and_train", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(
        PermissionError, match=r"cells\.h5ad cannot be written to, but the results would be written into it"
    ):
        scvae.fit(path, **SHORT)


def test_a_disk_that_fills_up_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = stored(cells(), tmp_path / "cells.h5ad")
    before, appended = path.read_bytes(), []

    class Full(io.FileIO):
        def write(self, view):
            appended.append(len(view))
            if len(appended) > 2:
                raise OSError(28, "No space left on device")
            return super().write(view)

    begin = InPlace.__init__

    def on_a_full_disk(self, path, file):
        begin(self, path, Full(file.fileno(), "r+b", closefd=False))

    monkeypatch.setattr(InPlace, "__init__", on_a_full_disk)
    with pytest.raises(
        OSError, match=r"cannot be written into .*cells\.h5ad \(No space left on device\); it is unchanged"
    ):
        scvae.fit(path, training=HELD, **SHORT)
    assert path.read_bytes() == before
    assert names_in(tmp_path) == ["cells.h5ad"]


KILLED = """
import os, sys
from pathlib import Path
import h5py, numpy as np

from scvae.data.in_place import changed_in_place

fsync, unlink = os.fsync, Path.unlink


def change(path, last):
    steps = iter(range(1, 100))

    def step(*_):
        if next(steps) == last:
            os.kill(os.getpid(), 9)

    os.fsync = step
    Path.unlink = lambda self, missing_ok=False: (step(), unlink(self, missing_ok=missing_ok))
    with changed_in_place(path) as changes, h5py.File(changes, "r+") as file:
        del file["obsm/old"]
        file["obsm/new"] = np.arange(50_000.0)
        file["uns/note"] = "new"


for last in range(1, 7):
    if (child := os.fork()) == 0:
        change(Path(sys.argv[1]) / str(last) / "cells.h5", last)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """A folder with a file for each step at which a process that changes it was killed, and how each of them ended."""
    folder = tmp_path_factory.mktemp("killed")
    for step in range(1, 7):
        (folder / str(step)).mkdir()
        with h5py.File(folder / str(step) / "cells.h5", "w") as file:
            file["X/data"] = np.arange(20_000.0)
            file["obsm/old"] = np.arange(30.0)
            file.create_group("uns")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(part for part in sys.path if part)}
    command = [sys.executable, "-c", KILLED, folder]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=100)
    return folder, [int(line) for line in run.stdout.split()]


@pytest.mark.parametrize("step", range(1, 7))
@pytest.mark.slow
def test_a_process_killed_while_it_writes_leaves_a_whole_file(killed, step):
    folder, ended = killed
    path = folder / str(step) / "cells.h5"
    assert ended[step - 1] == (-signal.SIGKILL if step < 6 else 0)
    restore(path)
    assert ".cells.h5.before" not in names_in(path.parent)
    with h5py.File(path) as file:
        assert np.array_equal(file["X/data"], np.arange(20_000.0))
        if step < 4:  # at 4, all new bytes have been written
            assert np.array_equal(file["obsm/old"], np.arange(30.0))
            assert list(file["uns"]) == []
        else:
            assert np.array_equal(file["obsm/new"], np.arange(50_000.0))
            assert "old" not in file["obsm"]


def test_changes_are_those_that_h5py_makes_itself(tmp_path):
    rng = np.random.default_rng(0)
    for path in (tmp_path / "a.h5", tmp_path / "b.h5"):
        with h5py.File(path, "w") as file:
            file["X"] = np.arange(5_000.0)
    for i in range(12):
        value, drop = rng.normal(size=int(rng.integers(1, 20_000))), i % 3 == 2
        with h5py.File(tmp_path / "a.h5", "r+") as plain:
            change(plain, i, value, drop)
        with changed_in_place(tmp_path / "b.h5") as changes, h5py.File(changes, "r+") as file:
            change(file, i, value, drop)
        with h5py.File(tmp_path / "a.h5") as plain, h5py.File(tmp_path / "b.h5") as file:
            assert list(plain) == list(file)
            for name in plain:
                assert np.array_equal(plain[name], file[name])


def change(file, i, value, drop):
    file[f"new_{i}"] = value
    if drop:
        del file[f"new_{i - 1}"]
    file["X"][i * 100 : i * 100 + 50] = i


def test_bytes_put_aside_that_are_damaged_are_not_put_back(tmp_path):
    path = stored(cells(), tmp_path / "cells.h5ad")
    before = path.read_bytes()
    (tmp_path / ".cells.h5ad.before").write_bytes(b'{"digest": "", "pages": [[0, 2]], "size": 3}\nxx')
    with pytest.raises(ValueError, match=r"\.cells\.h5ad\.before is damaged"):
        scvae.fit(path, **SHORT)
    assert path.read_bytes() == before


def results(path):
    found = reread(path)
    return found.obsm["X_scvae"].tobytes(), found.uns["scvae"]["history"]["validation_elbo"].tobytes()


def test_a_file_that_is_cut_short_in_training_ends_it_and_the_run_goes_on_once_it_is_back(tmp_path, monkeypatch):
    path = stored(cells(400), tmp_path / "cells.h5ad")
    whole = path.read_bytes()
    training = TrainingConfig(epochs=4, memory=0.0)
    scvae.fit(path, training=training, **SHORT)
    expected = results(path)
    path.write_bytes(whole)
    evaluate, calls = scvae.training.train.evaluate, []

    def cut(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 2:
            os.truncate(path, 9_000)
        return evaluate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(scvae.training.train, "evaluate", cut)
        with pytest.raises(OSError, match=r"cells\.h5ad: chunk .* while cells .* of X were read.*checkpoint"):
            scvae.fit(path, training=training, checkpoint=tmp_path / "run", **SHORT)
    assert len(calls) == 2
    path.write_bytes(whole)
    scvae.fit(path, training=training, checkpoint=tmp_path / "run", **SHORT)
    assert results(path) == expected


def test_a_checkpoint_is_not_resumed_with_a_file_that_was_changed(tmp_path):
    path = stored(cells(400), tmp_path / "cells.h5ad")
    training = TrainingConfig(epochs=2, memory=0.0)
    scvae.fit(path, training=training, checkpoint=tmp_path / "run", **SHORT)
    with h5py.File(path, "r+") as file:
        values = file["X/data"]
        values[-1] = values[-1] + 1
    with pytest.raises(ValueError, match="belongs to another run: data differ"):
        scvae.fit(path, training=training, checkpoint=tmp_path / "run", **SHORT)
    with pytest.raises(ValueError, match="belongs to another run: data, training differ"):
        scvae.fit(path, training=TrainingConfig(epochs=2, memory=1e-5), checkpoint=tmp_path / "run", **SHORT)


def test_a_continued_fit_takes_files(tmp_path):
    path = stored(cells(), tmp_path / "cells.h5ad")
    model = scvae.fit(path, training=HELD, **SHORT)
    again = scvae.fit(path, init=model, training=STREAMED, verbose=False, rng=1)
    assert again.outcome.epochs == 2
    embedded = scvae.tl.embed(path, again, copy=True)
    assert np.allclose(reread(path).obsm["X_scvae"], embedded.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
