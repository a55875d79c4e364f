"""The command line: what it writes, what it refuses, and that a refusal leaves no trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae
from scvae.cli import main
from scvae.likelihoods import LikelihoodName

QUICK = ("--epochs", 2, "--n-latent", 3, "--seed", 0, "--quiet")
N_CELLS, N_GENES = 60, 40


def make_adata():
    rng = np.random.default_rng(0)
    rate = rng.gamma(2.0, 1.0, (N_CELLS, N_GENES)) * np.exp(rng.normal(0, 1, N_GENES))
    counts = sparse.csr_matrix(rng.poisson(rate).astype(np.float32))
    normalised = sparse.csr_matrix(counts.multiply(1e4 / counts.sum(1)))
    adata = anndata.AnnData(
        counts,
        obs=pd.DataFrame(
            {
                "batch": pd.Categorical(["a", "b"] * (N_CELLS // 2)),
                "age": rng.normal(50, 9, N_CELLS),
                "depth": np.asarray(counts.sum(1)).ravel() + 1.0,
                "lineage": ["T", "T", "T", "B"] * (N_CELLS // 4),
                "type": ["T", "CD4", "CD8", "B"] * (N_CELLS // 4),
                "gap": [np.nan] + [1.0] * (N_CELLS - 1),
            },
            index=[f"cell{i}" for i in range(N_CELLS)],
        ),
        var=pd.DataFrame({"chosen": np.arange(N_GENES) < 25}, index=[f"gene{g}" for g in range(N_GENES)]),
        layers={"counts": counts * 2, "negative": -counts, "normalised": normalised},
        obsm={"X_pca": rng.normal(size=(N_CELLS, 2))},
        obsp={"connectivities": sparse.eye_array(N_CELLS, format="csr")},
        uns={"note": "kept", "nested": {"number": 3, "array": np.arange(4)}},
    )
    adata.raw = adata.copy()
    return adata


@pytest.fixture(scope="module")
def example(tmp_path_factory):
    """A folder with data, and a model that `scvae fit` trained on them; not to be changed."""
    folder = tmp_path_factory.mktemp("example")
    make_adata().write_h5ad(folder / "in.h5ad", compression="gzip")
    fit = ("fit", folder / "in.h5ad", *QUICK, "-o")
    assert run(*fit, folder / "fitted.h5ad", "--model", folder / "m.safetensors") == 0
    assert run(*fit, folder / "b.h5ad", "--model", folder / "batch.safetensors", "--batch-key", "batch") == 0
    cells = make_adata()
    cells.obs["type"] = pd.Categorical(np.where(np.arange(N_CELLS) < 40, "T", "B"))
    cells.obsm["X_umap"] = cells.obsm["X_pca"].astype(np.float32)
    model = scvae.load(folder / "batch.safetensors")
    model.save(folder / "ref.safetensors", reference=cells, labels="type", umap=True)
    model.save(folder / "two.safetensors", reference=cells, labels=["type", "batch"])
    return folder


@pytest.fixture(scope="module")
def good_and_bad(example, tmp_path_factory):
    """A folder with good and bad inputs; not to be changed."""
    made = tmp_path_factory.mktemp("inputs")
    for name in ("in.h5ad", "m.safetensors", "batch.safetensors", "ref.safetensors", "two.safetensors"):
        shutil.copy(example / name, made)
    (made / "text.h5ad").write_text("cells, genes")
    (made / "cut.h5ad").write_bytes((example / "in.h5ad").read_bytes()[:5000])
    with h5py.File(made / "foreign.h5ad", "w") as file:
        file["matrix"] = np.ones(3)
    with h5py.File(made / "10x.h5", "w") as file:
        file["matrix/barcodes"] = [b"cell"]
    shutil.copy(example / "in.h5ad", made / "empty_x.h5ad")
    with h5py.File(made / "empty_x.h5ad", "r+") as file:
        del file["X"]
    words = make_adata()[:, :2].copy()
    words.X = np.full(words.shape, "many")
    words.write_h5ad(made / "words.h5ad")
    other = make_adata()
    other.var_names = [f"other{g}" for g in range(N_GENES)]
    other.obs["batch"] = "c"
    del other.raw
    other.write_h5ad(made / "other_genes.h5ad")
    other.var_names = [f"gene{g}" for g in range(N_GENES)]
    other.write_h5ad(made / "other_batch.h5ad")
    (made / "old.h5ad").write_text("precious")
    (made / "folder.h5ad").mkdir()
    (made / "store.zarr").mkdir()
    return made


@pytest.fixture
def folder(good_and_bad, tmp_path, monkeypatch):
    """The current folder, with a copy of the inputs in it."""
    shutil.copytree(good_and_bad, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words):
    """The exit code of the command line."""
    try:
        return main([str(word) for word in words])
    except SystemExit as end:
        return end.code


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def the_error(capsys):
    """The one line that was printed."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("scvae: error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


REFUSED = {
    "missing input": ("fit none.h5ad -o out.h5ad", "there is no file none.h5ad"),
    "input is a folder": (
        "fit folder.h5ad -o out.h5ad",
        "the folder folder.h5ad has no file that ends in .h5ad or .zarr",
    ),
    "input is zarr": ("tune-beta store.zarr -o out.h5ad", "read_zarr"),
    "input is text": ("fit text.h5ad -o out.h5ad", "cannot read text.h5ad as an h5ad file"),
    "input is cut off": ("fit cut.h5ad -o out.h5ad", "cannot read cut.h5ad as an h5ad file"),
    "input is foreign": ("fit foreign.h5ad -o out.h5ad", "cannot read foreign.h5ad as an h5ad file"),
    "input is of 10x": ("fit 10x.h5", "cannot read 10x.h5 as an h5ad file of anndata: it is a 10x file; pass sc.read"),
    "input of 10x to copy": ("tune-beta 10x.h5 -o out.h5ad", "cannot read 10x.h5 as an h5ad file: it is a 10x file"),
    "input is an address": ("fit s3://bucket/in.h5ad -o out.h5ad", "s3://bucket/in.h5ad is an address"),
    "input without X": ("fit empty_x.h5ad -o out.h5ad", "pass layer=, one of 'counts'"),
    "input of words": ("fit words.h5ad -o out.h5ad", "words.h5ad: X holds values of type"),
    "wrong layer": ("fit in.h5ad -o out.h5ad --layer count", "did you mean 'counts'"),
    "wrong mask": ("fit in.h5ad -o out.h5ad --mask-var hvg", "no 'hvg'"),
    "wrong batch": ("fit in.h5ad -o out.h5ad --batch-key bacth", "did you mean 'batch'"),
    "wrong covariate": ("fit in.h5ad -o out.h5ad --covariate-keys age sex", "no 'sex'"),
    "wrong size factor": ("fit in.h5ad -o out.h5ad --size-factor-key size", "no 'size'"),
    "missing values": ("fit in.h5ad -o out.h5ad --covariate-keys gap", "missing values"),
    "negative counts": ("fit in.h5ad -o out.h5ad --layer negative", "layers['negative'] has negative values"),
    "normalised counts": ("fit in.h5ad -o out.h5ad --layer normalised", "layers['normalised'] looks normalised"),
    "likelihood": ("fit in.h5ad -o out.h5ad --likelihood nbb", "did you mean 'nb'"),
    "no dimensions": ("fit in.h5ad -o out.h5ad --n-latent 0", "n_latent"),
    "dimensions in words": ("fit in.h5ad -o out.h5ad --n-latent many", "neither an integer nor 'auto'"),
    "negative beta": ("fit in.h5ad -o out.h5ad --beta -1", "beta"),
    "infinite beta": ("fit in.h5ad -o out.h5ad --beta inf", "beta"),
    "no epochs": ("fit in.h5ad -o out.h5ad --epochs 0", "epochs"),
    "negative seed": ("fit in.h5ad -o out.h5ad --seed -3", "seed"),
    "device": ("fit in.h5ad -o out.h5ad --device gpu", "device"),
    "slot with a slash": ("fit in.h5ad -o out.h5ad --key-added a/b", "'a/b' cannot name a slot"),
    "output exists": ("fit in.h5ad -o old.h5ad", "old.h5ad exists; pass --force"),
    "output is the input": ("fit in.h5ad -o ./in.h5ad", "is the input"),
    "output of another format": ("fit in.h5ad -o out.loom", "end its name in .h5ad or .zarr"),
    "output is a folder": ("fit in.h5ad -o folder.h5ad --force", "folder.h5ad is a folder"),
    "output folder missing": ("fit in.h5ad -o away/out.h5ad", "the folder away does not exist"),
    "output is the model": ("fit in.h5ad -o out.h5ad --model out.h5ad", "output and --model are both out.h5ad"),
    "model exists": ("fit in.h5ad -o out.h5ad --model m.safetensors", "m.safetensors exists; pass --force"),
    "model is the input": ("fit in.h5ad -o out.h5ad --model in.h5ad --force", "in.h5ad is the input"),
    "model folder missing": ("fit in.h5ad -o out.h5ad --model away/m.safetensors", "the folder away does not exist"),
    "checkpoint is foreign": ("fit in.h5ad -o out.h5ad --checkpoint old.h5ad", "old.h5ad is truncated or not a"),
    "checkpoint is a model": ("fit in.h5ad -o out.h5ad --checkpoint m.safetensors", "expected 'scvae checkpoint'"),
    "checkpoint is the input": ("fit in.h5ad -o out.h5ad --checkpoint in.h5ad", "in.h5ad is the input"),
    "checkpoint folder missing": ("fit in.h5ad -o out.h5ad --checkpoint away/c", "the folder away does not exist"),
    "embed: missing input": ("embed none.h5ad --model m.safetensors -o out.h5ad", "there is no file none.h5ad"),
    "embed: missing model": ("embed in.h5ad --model none.safetensors -o out.h5ad", "there is no file none.safetensors"),
    "embed: foreign model": ("embed in.h5ad --model old.h5ad -o out.h5ad", "old.h5ad is truncated or not a"),
    "embed: output exists": ("embed in.h5ad --model m.safetensors -o old.h5ad", "old.h5ad exists; pass --force"),
    "embed: output is the input": ("embed in.h5ad --model m.safetensors -o in.h5ad", "is the input"),
    "embed: output is the model": ("embed in.h5ad --model m.safetensors -o m.safetensors --force", "are both"),
    "embed: wrong layer": ("embed in.h5ad --model m.safetensors -o out.h5ad --layer row", "no 'row'"),
    "embed: other genes": ("embed other_genes.h5ad --model m.safetensors -o out.h5ad", "none of the"),
    "embed: other batch": ("embed other_batch.h5ad --model batch.safetensors -o out.h5ad", "it knows 'a', 'b'"),
    "tune-beta: missing input": ("tune-beta none.h5ad -o out.h5ad", "there is no file none.h5ad"),
    "three betas": ("fit in.h5ad -o out.h5ad --beta 0.1 1 10", "beta has 3 values"),
    "embed: other beta": ("embed in.h5ad --model m.safetensors -o out.h5ad --beta 3", "β = 1 alone"),
    "tune-beta: one beta": ("tune-beta in.h5ad -o out.h5ad --betas 1 1", "pass at least 2"),
    "tune-beta: beta of 0": ("tune-beta in.h5ad -o out.h5ad --betas 0 1", "each of betas is 0.0"),
    "tune-beta: wrong labels": ("tune-beta in.h5ad -o out.h5ad --labels-key bacth", "did you mean 'batch'"),
    "tune-beta: wrong method": ("tune-beta in.h5ad -o out.h5ad --method swep", "did you mean 'sweep'"),
    "tune-beta: plot is no picture": ("tune-beta in.h5ad -o out.h5ad --plot rd.doc", "rd.doc is not an image file"),
    "tune-beta: plot is the model": ("tune-beta in.h5ad -o out.h5ad --plot a.png --model a.png", "are both a.png"),
    "tune-beta: plot exists": ("tune-beta in.h5ad -o out.h5ad --plot m.safetensors", "m.safetensors exists"),
    "tune-beta: plot folder missing": ("tune-beta in.h5ad -o out.h5ad --plot away/a.png", "folder away does not"),
    "tune-beta: explorer is no page": ("tune-beta in.h5ad -o out.h5ad --explorer e.png", "end its name in .html"),
    "tune-beta: explorer of a sweep": (
        "tune-beta in.h5ad -o out.h5ad --explorer e.html --method sweep",
        "--explorer needs one model for all β",
    ),
    "tune-beta: explorer folder missing": ("tune-beta in.h5ad -o out.h5ad --explorer away/e.html", "folder away does"),
    "tune-beta: output exists": ("tune-beta in.h5ad -o old.h5ad", "old.h5ad exists; pass --force"),
    "diagnose: missing input": ("diagnose none.h5ad --model m.safetensors", "there is no file none.h5ad"),
    "diagnose: missing model": ("diagnose in.h5ad --model none.safetensors", "there is no file none.safetensors"),
    "diagnose: foreign model": ("diagnose in.h5ad --model old.h5ad", "old.h5ad is truncated or not a"),
    "diagnose: output exists": ("diagnose in.h5ad --model m.safetensors -o old.h5ad", "old.h5ad exists; pass --force"),
    "diagnose: output is the model": ("diagnose in.h5ad --model m.safetensors -o m.safetensors --force", "are both"),
    "diagnose: wrong layer": ("diagnose in.h5ad --model m.safetensors --layer row", "no 'row'"),
    "diagnose: other genes": ("diagnose other_genes.h5ad --model m.safetensors", "none of the"),
    "diagnose: other beta": ("diagnose in.h5ad --model m.safetensors --beta 3", "β = 1 alone"),
    "diagnose: no cells": ("diagnose in.h5ad --model m.safetensors --n-cells 0", "n_cells is 0"),
    "label: no model": ("label in.h5ad -o out.h5ad", "--model (see scvae label --help)"),
    "label: model without labels": ("label in.h5ad --model m.safetensors -o out.h5ad", "fitted without labels"),
    "label: output exists": ("label in.h5ad --model m.safetensors -o old.h5ad", "old.h5ad exists; pass --force"),
    "label: output is the model": ("label in.h5ad --model m.safetensors -o m.safetensors --force", "are both"),
    "label: missing input": ("label none.h5ad --model m.safetensors -o out.h5ad", "there is no file none.h5ad"),
    "map: no reference": ("map in.h5ad -o out.h5ad", "--reference (see scvae map --help)"),
    "map: model alone": ("map in.h5ad --reference m.safetensors -o out.h5ad", "m.safetensors has a model, but no ref"),
    "map: foreign file": ("map in.h5ad --reference old.h5ad -o out.h5ad", "old.h5ad is truncated or not a"),
    "map: several labels": ("map in.h5ad --reference two.safetensors -o out.h5ad", "pass one of them as --labels-key"),
    "map: other labels": (
        "map in.h5ad --reference two.safetensors -o out.h5ad --labels-key typ --quiet",
        "did you mean 'type'",
    ),
    "map: output is the reference": ("map in.h5ad --reference ref.safetensors -o ref.safetensors", "are both"),
    "map: other genes": ("map other_genes.h5ad --reference ref.safetensors -o out.h5ad --quiet", "none of the"),
    "wrong labels": ("fit in.h5ad -o out.h5ad --labels-key bacth", "did you mean 'batch'"),
    "tree without labels": ("fit in.h5ad -o out.h5ad --label-hierarchy lineage", "but there is no labels_key"),
    "no such cells without label": (
        "fit in.h5ad -o out.h5ad --labels-key batch --unlabelled c",
        "unlabelled is 'c', which no cell",
    ),
    "demo: folder is a file": ("demo --out-dir old.h5ad", "old.h5ad is a file"),
    "no command": ("", "(see scvae --help)"),
    "unknown command": ("fitt in.h5ad", "(see scvae --help)"),
    "unknown option": ("fit in.h5ad -o out.h5ad --latent 3", "--latent"),
    "shortened option": ("fit in.h5ad -o out.h5ad --batch batch", "--batch"),
    "no output": ("tune-beta in.h5ad", "-o/--output (see scvae tune-beta --help)"),
    "no number": ("fit in.h5ad -o out.h5ad --beta high", "(see scvae fit --help)"),
    "diagnose: no model": ("diagnose in.h5ad", "--model (see scvae diagnose --help)"),
    "no model": ("embed in.h5ad -o out.h5ad", "--model (see scvae embed --help)"),
}


@pytest.mark.parametrize(("command", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_done_ends_with_one_line_and_changes_no_file(folder, capsys, command, said):
    before = contents(folder)
    assert run(*command.split()) == 2
    assert said in the_error(capsys)
    assert contents(folder) == before


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")  # as outside of tests
def test_a_file_of_old_that_cannot_take_the_results_is_refused_before_the_fit(folder, capsys, monkeypatch):
    with h5py.File("in.h5ad", "r+") as file:
        del file["obsm"]
        file["obsm"] = np.zeros(N_CELLS, dtype=[("X_pca", "f4", 2)])
    before = contents(folder)
    monkeypatch.setattr("scvae.training.fit.fit", lambda *_, **__: pytest.fail("the fit was begun"))
    assert run("fit", "in.h5ad", "-o", "out.h5ad") == 2
    assert "in.h5ad as an h5ad file: it has the format of anndata before 0.7" in the_error(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["fit in.h5ad -o old.h5ad", "demo --out-dir new"])
def test_a_folder_that_cannot_be_written_in_is_refused_before_the_fit(folder, capsys, monkeypatch, command):
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr("scvae.training.fit.fit", lambda *_, **__: pytest.fail("the fit was begun"))
    assert run(*command.split(), *(["--force"] if "fit" in command else [])) == 2
    assert "Read-only file system" in the_error(capsys)


@pytest.mark.parametrize(
    "command", ["fit in.h5ad -o old.h5ad --quiet --epochs 1", "embed in.h5ad --model m.safetensors -o old.h5ad"]
)
def test_a_disk_that_fills_up_leaves_the_old_output(folder, capsys, monkeypatch, command):
    def refuse(*_):
        raise OSError(28, "No space left on device")

    before = contents(folder)
    monkeypatch.setattr("anndata.io.write_elem", refuse)
    assert run(*command.split(), "--force") == 2
    assert "No space left on device" in the_error(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["fit in.h5ad -o out.h5ad", "embed in.h5ad --model m.safetensors -o out.h5ad"])
def test_ctrl_c_outside_training_ends_quietly(folder, capsys, monkeypatch, command):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    before = contents(folder)
    monkeypatch.setattr("anndata.read_h5ad", interrupt)
    assert run(*command.split()) == 130
    assert capsys.readouterr() == ("", "")
    assert contents(folder) == before


def test_ctrl_c_in_training_keeps_the_model_so_far_and_says_so(folder, capsys, monkeypatch):
    def interrupt(progress, *_):
        if progress.epoch == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr("scvae.training.train.save_checkpoint", lambda path, progress, *_: interrupt(progress))
    assert run("fit", "in.h5ad", "-o", "out.h5ad", *QUICK, "--epochs", 9, "--checkpoint", "c") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "scvae: warning: training was interrupted after 3 epochs; the best model so far is kept\n"
    assert np.isfinite(anndata.read_h5ad("out.h5ad").obsm["X_scvae"]).all()


def test_a_warning_is_one_line_and_the_fit_goes_on(folder, capsys):
    adata = make_adata()
    adata.obs["batch"] = ["alone"] + ["rest"] * (N_CELLS - 1)
    adata.write_h5ad("single.h5ad")
    assert run("fit", "single.h5ad", "-o", "out.h5ad", "--batch-key", "batch", *QUICK) == 0
    err = capsys.readouterr().err
    assert err.startswith("scvae: warning: some categories have a single cell")
    assert err.count("\n") == 1
    assert "X_scvae" in anndata.read_h5ad("out.h5ad").obsm


def test_fit_adds_the_embedding_and_leaves_the_rest_of_the_file_as_it_was_stored(example):
    with h5py.File(example / "in.h5ad") as old, h5py.File(example / "fitted.h5ad") as new:

        def compare(name, item):
            assert dict(new[name].attrs).keys() == dict(item.attrs).keys()
            if isinstance(item, h5py.Dataset):
                assert (new[name].dtype, new[name].compression) == (item.dtype, item.compression)
                np.testing.assert_array_equal(new[name][()], item[()])

        old.visititems(compare)
        names, added = [], []
        old.visit(names.append)
        new.visit(added.append)
    extra = {"/".join(name.split("/")[:2]) for name in set(added) - set(names)}
    assert extra == {"obsm/X_scvae", "obsm/X_scvae_var", "uns/scvae"}
    adata = anndata.read_h5ad(example / "fitted.h5ad")
    assert adata.obsm["X_scvae"].shape == (N_CELLS, 3)
    assert adata.obsm["X_scvae"].dtype == np.float32
    assert adata.uns["scvae"]["seed"] == 0


@pytest.mark.parametrize("query", ["in.h5ad", "other_batch.h5ad"], ids=["known batches", "a new batch"])
def test_map_writes_what_the_library_writes_with_the_reference_alone(folder, capsys, query):
    command = ("map", query, "--reference", "ref.safetensors", "-o", "out.h5ad", "--epochs", 2, "--n-neighbors", 4)
    assert run(*command, "--quiet", "--model", "mapped.safetensors") == 0
    assert capsys.readouterr() == ("", "")
    adata, model = anndata.read_h5ad(query), scvae.load("ref.safetensors")
    if query == "in.h5ad":
        scvae.tl.embed(adata, model)
    else:
        model = scvae.tl.map_query(adata, model, epochs=2, verbose=False)
    scvae.tl.transfer_labels(adata, model)
    scvae.tl.place(adata, model)
    scvae.tl.nearest_cells(adata, model, n_neighbors=4)
    written = anndata.read_h5ad("out.h5ad")
    assert set(written.obs) - set(anndata.read_h5ad(query).obs) == {
        "scvae_label", "scvae_label_uncertainty", "scvae_outlier",
    }  # fmt: skip
    pd.testing.assert_frame_equal(written.obs[list(adata.obs)], adata.obs, check_exact=True)
    for key in ("X_scvae", "X_scvae_umap", "scvae_nearest_distance"):
        np.testing.assert_array_equal(written.obsm[key], adata.obsm[key])
    pd.testing.assert_frame_equal(written.obsm["scvae_nearest"], adata.obsm["scvae_nearest"])
    assert scvae.load("mapped.safetensors").digest == model.digest


def test_map_says_where_its_results_are(folder, capsys):
    assert (
        run("map", "in.h5ad", "--reference", "ref.safetensors", "-o", "out.h5ad", "--new-batches", "--epochs", 1) == 0
    )
    out = capsys.readouterr().out
    for said in ("ref.safetensors, 60 cells", "obs['scvae_label']", "obsm['X_scvae_umap']", "obsm['scvae_nearest']"):
        assert said in out
    assert set(anndata.read_h5ad("out.h5ad").obs["batch"]) == {"a-query", "b-query"}


def test_fit_writes_what_the_library_writes(example):
    adata = make_adata()
    scvae.fit(adata, n_latent=3, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=2))
    stored = anndata.read_h5ad(example / "fitted.h5ad")
    np.testing.assert_array_equal(stored.obsm["X_scvae"], adata.obsm["X_scvae"])
    np.testing.assert_array_equal(stored.obsm["X_scvae_var"], adata.obsm["X_scvae_var"])


def test_the_seed_decides_the_embedding(folder, example):
    assert run("fit", "in.h5ad", "-o", "same.h5ad", *QUICK) == 0
    assert run("fit", "in.h5ad", "-o", "other.h5ad", *QUICK, "--seed", 1) == 0
    first = anndata.read_h5ad(example / "fitted.h5ad").obsm["X_scvae"]
    assert anndata.read_h5ad("same.h5ad").obsm["X_scvae"].tobytes() == first.tobytes()
    assert not np.allclose(anndata.read_h5ad("other.h5ad").obsm["X_scvae"], first)


def test_every_option_reaches_the_fit(folder):
    options = (
        "--layer counts --mask-var chosen --batch-key batch --covariate-keys age --size-factor-key depth "
        "--likelihood poisson --n-latent 4 --beta 0.5 --epochs 3 --seed 7 --device cpu --key-added mine --quiet"
    )
    assert run("fit", "in.h5ad", "-o", "out.h5ad", *options.split()) == 0
    adata = anndata.read_h5ad("out.h5ad")
    params = adata.uns["mine"]["params"]
    assert adata.obsm["X_mine"].shape == adata.obsm["X_mine_var"].shape == (N_CELLS, 4)
    assert [params[name] for name in ("layer", "batch_key", "size_factor_key")] == ["counts", "batch", "depth"]
    assert (params["likelihood"], params["beta"]) == ("poisson", 0.5)
    assert list(params["covariate_keys"]) == ["age"]
    assert params["n_genes"] <= 25
    assert params["training"]["epochs"] == 3
    assert adata.uns["mine"]["seed"] == 7


def test_a_model_of_many_betas_is_fitted_and_embeds_at_the_one_asked_for(folder):
    assert run("fit", "in.h5ad", "-o", "out.h5ad", *QUICK, "--beta", 0.5, 8, "--model", "new.safetensors") == 0
    assert scvae.load("new.safetensors").beta == (0.5, 8.0)
    for beta in (0.5, 8):
        words = ("--model", "new.safetensors", "-o", f"{beta}.h5ad", "--beta", beta)
        assert run("embed", "in.h5ad", *words) == 0
    low, high = (anndata.read_h5ad(f"{beta}.h5ad").obsm["X_scvae"] for beta in (0.5, 8))
    assert np.abs(low - high).max() > 1e-3


def test_the_number_of_dimensions_can_be_left_to_the_data(folder):
    assert run("fit", "in.h5ad", "-o", "out.h5ad", *QUICK, "--epochs", 60, "--n-latent", "auto") == 0
    adata = anndata.read_h5ad("out.h5ad")
    assert adata.uns["scvae"]["pruned_from"] == 20
    assert adata.obsm["X_scvae"].shape == (N_CELLS, adata.uns["scvae"]["params"]["n_latent"])
    assert adata.obsm["X_scvae"].shape[1] < 20


def test_loadings_of_an_earlier_fit_do_not_stay_beside_a_new_one(folder):
    adata = make_adata()
    adata.varm["scvae_loadings"] = adata.varm["other_loadings"] = np.ones((N_GENES, 2))
    adata.write_h5ad("with.h5ad")
    assert run("fit", "with.h5ad", "-o", "out.h5ad", *QUICK) == 0
    assert list(anndata.read_h5ad("out.h5ad").varm) == ["other_loadings"]


def test_force_replaces_the_outputs_and_even_the_input(folder):
    words = ("fit", "in.h5ad", "-o", "in.h5ad", "--model", "m.safetensors", "--force", *QUICK)
    assert run(*words, "--n-latent", 2) == 0
    assert run(*words, "--n-latent", 5) == 0
    adata = anndata.read_h5ad("in.h5ad")
    assert adata.obsm["X_scvae"].shape == (N_CELLS, 5)
    assert (adata.X != make_adata().X).nnz == 0
    assert scvae.load("m.safetensors").n_latent == 5


@pytest.mark.slow
def test_an_output_that_ends_in_zarr_is_a_store(folder, example):
    assert run("fit", "in.h5ad", *QUICK, "-o", "out.zarr") == 0
    made, expected = anndata.read_zarr("out.zarr"), anndata.read_h5ad(example / "fitted.h5ad")
    assert np.array_equal(made.obsm["X_scvae"], expected.obsm["X_scvae"])
    assert made.uns["nested"]["number"] == 3
    assert (made.layers["counts"] != expected.layers["counts"]).nnz == 0
    assert run("embed", "in.h5ad", "--model", example / "m.safetensors", "-o", "out.zarr") == 2
    assert run("embed", "in.h5ad", "--model", example / "m.safetensors", "-o", "out.zarr", "--force") == 0
    assert run("embed", "out.zarr", "--model", example / "m.safetensors", "-o", "small.zarr") == 0
    assert anndata.read_zarr("small.zarr").obsm["X_scvae"].shape == (N_CELLS, 3)


def test_a_link_as_output_is_followed(folder):
    Path("real").mkdir()
    Path("out.h5ad").symlink_to("real/o.h5ad")
    assert run("fit", "in.h5ad", *QUICK, "-o", "out.h5ad") == 0
    assert Path("out.h5ad").is_symlink()
    assert "X_scvae" in anndata.read_h5ad("real/o.h5ad").obsm


def test_a_checkpoint_that_exists_is_resumed(folder, monkeypatch):
    words = ("fit", "in.h5ad", *QUICK, "--checkpoint", "state.safetensors")
    assert run(*words, "-o", "first.h5ad") == 0
    monkeypatch.setattr("scvae.training.train.epoch_plan", lambda *_, **__: pytest.fail("an epoch was done again"))
    assert run(*words, "-o", "second.h5ad") == 0
    first, second = (anndata.read_h5ad(name).obsm["X_scvae"] for name in ("first.h5ad", "second.h5ad"))
    np.testing.assert_array_equal(first, second)


def test_a_saved_model_gives_the_cells_of_the_fit_their_embedding_in_any_order_of_genes(folder, example, capsys):
    adata = make_adata()[10:40, ::-1].copy()
    del adata.raw
    adata.write_h5ad("some.h5ad")
    capsys.readouterr()
    assert run("embed", "some.h5ad", "--model", "m.safetensors", "-o", "out.h5ad", "--key-added", "again") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "out.h5ad, obsm['X_again']" in out
    embedded, fitted = anndata.read_h5ad("out.h5ad"), anndata.read_h5ad(example / "fitted.h5ad")
    np.testing.assert_allclose(embedded.obsm["X_again"], fitted.obsm["X_scvae"][10:40], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(embedded.obsm["X_again_var"], fitted.obsm["X_scvae_var"][10:40], rtol=1e-4, atol=1e-5)


def test_diagnose_prints_the_report_and_writes_no_file_unless_asked(folder, capsys):
    before = contents(folder)
    assert run("diagnose", "in.h5ad", "--model", "m.safetensors", "--seed", 1) == 0
    out, err = capsys.readouterr()
    adata = anndata.read_h5ad("in.h5ad")
    expected = scvae.tl.diagnose(adata, scvae.load("m.safetensors"), rng=1)
    assert (out, err) == (f"{expected}\n", "")
    assert "not converged" in out.split("\n")[0]
    assert contents(folder) == before


def test_a_diagnosis_can_be_written_beside_the_record_of_the_fit(folder, example):
    words = ("diagnose", example / "fitted.h5ad", "--model", "m.safetensors", "-o", "out.h5ad", "--n-cells", 40)
    assert run(*words, "--condition-key", "type") == 2  # the model has no batches
    assert run(*words) == 0
    old, new = anndata.read_h5ad(example / "fitted.h5ad"), anndata.read_h5ad("out.h5ad")
    assert new.uns["scvae"]["diagnosis"]["n_cells"] == 40
    assert new.uns["scvae"].keys() - old.uns["scvae"].keys() == {"diagnosis"}
    np.testing.assert_array_equal(new.uns["scvae"]["history"]["train_elbo"], old.uns["scvae"]["history"]["train_elbo"])


def test_a_layer_can_be_fitted_without_x(folder):
    assert run("fit", "empty_x.h5ad", "-o", "out.h5ad", "--layer", "counts", *QUICK) == 0
    assert run("fit", "in.h5ad", "-o", "with_x.h5ad", "--layer", "counts", *QUICK) == 0
    without, with_x = (anndata.read_h5ad(name) for name in ("out.h5ad", "with_x.h5ad"))
    assert without.X is None
    np.testing.assert_array_equal(without.obsm["X_scvae"], with_x.obsm["X_scvae"])


def test_a_model_fitted_with_labels_names_cells(folder, capsys):
    words = ("--labels-key", "batch", "--label-weight", 5, "--model", "labels.safetensors")
    assert run("fit", "in.h5ad", "-o", "fitted.h5ad", *QUICK, *words) == 0
    assert scvae.load("labels.safetensors").schema.labels.weight == 5.0
    words = ("label", "fitted.h5ad", "--model", "labels.safetensors", "-o")
    assert run(*words, "out.h5ad", "--probabilities", "--unknown-above", 1) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["cells    60", "unknown  0"]
    found, before = anndata.read_h5ad("out.h5ad"), anndata.read_h5ad("fitted.h5ad")
    scvae.tl.predict_labels(before, scvae.load("labels.safetensors"), unknown_above=1.0)
    names = ["scvae_label", "scvae_label_uncertainty", "scvae_outlier"]
    pd.testing.assert_frame_equal(found.obs[names], before.obs[names])
    assert list(found.obsm["scvae_label_probability"].columns) == ["a", "b"]
    assert "history" in found.uns["scvae"]
    assert run(*words, "tree.h5ad", "--hierarchy", "learnt", "--max-error", 0.5) == 0
    assert anndata.read_h5ad("tree.h5ad").uns["scvae"]["label_confidence"]["max_error"] == 0.5


def test_labels_of_different_depth_are_told_apart_by_columns(folder):
    words = ("--labels-key", "type", "--label-hierarchy", "lineage", "type", "--model", "labels.safetensors")
    assert run("fit", "in.h5ad", "-o", "fitted.h5ad", *QUICK, *words) == 0
    labels = scvae.load("labels.safetensors").schema.labels
    assert (labels.names, labels.coarse) == (("B", "CD4", "CD8"), (("T", (1, 2)),))


def test_embed_reads_the_layer_it_is_told(folder, example):
    words = ("embed", "in.h5ad", "--model", "m.safetensors")
    assert run(*words, "-o", "x.h5ad", "--layer", "X") == 0
    assert run(*words, "-o", "counts.h5ad", "--layer", "counts") == 0
    fitted = anndata.read_h5ad(example / "fitted.h5ad").obsm["X_scvae"]
    np.testing.assert_array_equal(anndata.read_h5ad("x.h5ad").obsm["X_scvae"], fitted)
    assert not np.allclose(anndata.read_h5ad("counts.h5ad").obsm["X_scvae"], fitted, atol=1e-3)


def test_counts_in_raw_are_fitted_and_embedded(folder, capsys):
    adata = make_adata()
    expected = adata[:, :30].copy()
    scvae.fit(expected, n_latent=3, rng=0, training=scvae.TrainingConfig(epochs=2), verbose=False)
    beside = adata[:, :30].copy()
    beside.X = beside.layers["normalised"]
    beside.layers.clear()
    beside.write_h5ad("raw.h5ad")
    assert run("fit", "raw.h5ad", "-o", "out.h5ad") == 2
    assert "layer='raw' (adata.raw) looks like counts" in the_error(capsys)
    assert run("fit", "raw.h5ad", *QUICK, "--layer", "raw", "-o", "out.h5ad", "--model", "raw.safetensors") == 0
    found = anndata.read_h5ad("out.h5ad")
    np.testing.assert_allclose(found.obsm["X_scvae"], expected.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    assert run("embed", "raw.h5ad", "--model", "raw.safetensors", "-o", "again.h5ad") == 0
    np.testing.assert_array_equal(anndata.read_h5ad("again.h5ad").obsm["X_scvae"], found.obsm["X_scvae"])
    assert run("embed", "raw.h5ad", "--model", "raw.safetensors", "--layer", "raw") == 0
    np.testing.assert_array_equal(anndata.read_h5ad("raw.h5ad").obsm["X_scvae"], found.obsm["X_scvae"])


def test_a_summary_is_printed_unless_quiet(folder, capsys):
    words = ("fit", "in.h5ad", "-o", "out.h5ad", "--force", "--model", "new.safetensors", *QUICK)
    assert run(*words) == 0
    assert capsys.readouterr() == ("", "")
    assert run(*(word for word in words if word != "--quiet")) == 0
    out, err = capsys.readouterr()
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    assert rows["cells"].strip() == "60"
    assert rows["active dimensions"].strip().endswith(" of 3")
    assert "new.safetensors" in rows["model"]
    assert "Traceback" not in err
    assert "2/2" in err


def test_tune_beta_writes_the_table_the_embedding_the_model_and_the_picture(folder, capsys):
    words = "tune-beta in.h5ad -o out.h5ad --plot rd.png --model new.safetensors --betas 0.5 2 --labels-key batch"
    assert run(*words.split(), *(word for word in QUICK if word != "--quiet")) == 0
    out, _ = capsys.readouterr()
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    adata = anndata.read_h5ad("out.h5ad")
    table = adata.uns["scvae"]["beta_path"]
    assert table["beta"].tolist() == [0.5, 2.0]
    assert np.isfinite(table["ari"]).all()
    recommended = table.loc[table["recommended"], "beta"].item()
    assert float(rows["recommended β"]) == recommended
    model = scvae.load("new.safetensors")
    fresh = make_adata()
    scvae.tl.embed(fresh, model, beta=recommended)
    np.testing.assert_allclose(fresh.obsm["X_scvae"], adata.obsm["X_scvae"], atol=1e-6)
    assert Path("rd.png").read_bytes()[:4] == b"\x89PNG"
    assert list(adata.obsm) == ["X_pca", "X_scvae", "X_scvae_var"]


@pytest.mark.slow
def test_tune_beta_writes_the_explorer_and_what_it_shows(folder, capsys):
    words = "tune-beta in.h5ad -o out.h5ad --explorer e.html --betas 0.5 2 --labels-key batch"
    assert run(*words.split(), *QUICK) == 0
    assert capsys.readouterr() == ("", "")
    adata = anndata.read_h5ad("out.h5ad")
    record = adata.uns["scvae"]["beta_embeddings"]
    assert (record["beta"][0], record["beta"][-1]) == (0.5, 2.0)
    assert np.isfinite(adata.obsm["X_scvae_umap_betas"]).all()
    scvae.pl.beta_explorer(adata, color="batch", save="again.html")
    assert Path("again.html").read_text() == Path("e.html").read_text()


def test_a_sweep_can_be_asked_for_and_quiet_prints_nothing(folder, capsys):
    assert run("tune-beta", "in.h5ad", "-o", "out.h5ad", "--method", "sweep", "--betas", 0.5, 2, *QUICK) == 0
    assert capsys.readouterr() == ("", "")
    assert anndata.read_h5ad("out.h5ad").uns["scvae"]["params"]["beta"] in (0.5, 2.0)


def test_help_names_every_likelihood(capsys):
    assert run("fit", "--help") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in get_args(LikelihoodName))


def in_a_process(*words):
    return subprocess.run(
        [sys.executable, "-m", "scvae", *map(str, words)],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"PYTHONPATH": str(Path(scvae.__file__).parents[1])},
    )


@pytest.mark.slow
def test_python_m_scvae_tells_its_version():
    ended = in_a_process("--version")
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"scvae {scvae.__version__}\n", "")


@pytest.mark.slow
def test_a_process_fits(folder, example):
    ended = in_a_process("fit", "in.h5ad", "-o", "out.h5ad", *QUICK)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")
    ours = anndata.read_h5ad(example / "fitted.h5ad").obsm["X_scvae"]
    # to rounding: libraries below choose their code by what the process has done before
    np.testing.assert_allclose(anndata.read_h5ad("out.h5ad").obsm["X_scvae"], ours, atol=1e-5)


@pytest.mark.slow
def test_errors_of_a_process_have_exit_code_2(folder):
    ended = in_a_process("fit", "in.h5ad", "-o", "old.h5ad", *QUICK)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "scvae: error: the output old.h5ad exists; pass --force to replace it\n"


@pytest.fixture
def atlas(tmp_path, monkeypatch):
    """A folder with a file and a store of half the cells each."""
    adata = make_adata()
    del adata.raw
    (tmp_path / "atlas").mkdir()
    adata[:30].copy().write_h5ad(tmp_path / "atlas" / "one.h5ad")
    zarr = pytest.importorskip("zarr")
    version = {"zarr_format": 2} if int(zarr.__version__.partition(".")[0]) >= 3 else {}
    root = zarr.open_group(str(tmp_path / "atlas" / "two.zarr"), mode="w", **version)
    anndata.io.write_elem(root, "/", adata[30:].copy())
    monkeypatch.chdir(tmp_path)
    return adata


@pytest.mark.parametrize("inputs", [["atlas"], ["atlas/one.h5ad", "atlas/two.zarr"]])
def test_several_files_give_a_small_file_of_their_cells(atlas, inputs, tmp_path):
    before = contents(tmp_path / "atlas")
    assert run("fit", *inputs, "-o", "latent.h5ad", "--model", "m.safetensors", "--batch-key", "file", *QUICK) == 0
    found = anndata.read_h5ad("latent.h5ad")
    assert found.shape == (N_CELLS, 0)
    assert found.obsm["X_scvae"].shape == (N_CELLS, 3)
    assert found.obs["file"].tolist() == ["one"] * 30 + ["two"] * 30
    assert list(found.obs_names) == [f"cell{i}-{'one' if i < 30 else 'two'}" for i in range(N_CELLS)]
    assert found.obs["batch"].tolist() == atlas.obs["batch"].tolist()
    assert found.uns["scvae"]["params"]["batch_key"] == "file"
    assert contents(tmp_path / "atlas") == before
    assert run("embed", *inputs, "--model", "m.safetensors", "-o", "again.h5ad") == 0
    again = anndata.read_h5ad("again.h5ad")
    assert np.allclose(again.obsm["X_scvae"], found.obsm["X_scvae"], rtol=1e-5, atol=1e-6)


def test_without_an_output_each_input_gets_its_results(atlas, tmp_path, capsys):
    words = ("--epochs", 2, "--memory", 0, "--n-latent", 3, "--seed", 0, "--model", "m.safetensors")
    assert run("fit", "atlas", *words) == 0
    assert scvae.load("m.safetensors").training_config.memory == 0.0
    assert "embedding          2 files, obsm['X_scvae']" in capsys.readouterr().out
    one, two = anndata.read_h5ad("atlas/one.h5ad"), anndata.read_zarr("atlas/two.zarr")
    assert one.obsm["X_scvae"].shape == two.obsm["X_scvae"].shape == (30, 3)
    assert (one.X != atlas[:30].X).nnz == 0
    assert run("embed", "atlas/one.h5ad", "--model", "m.safetensors", "--key-added", "other") == 0
    assert np.allclose(anndata.read_h5ad("atlas/one.h5ad").obsm["X_other"], one.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["atlas", "m.safetensors"]


def test_outputs_are_not_written_over_inputs_among_several(atlas, capsys):
    assert run("fit", "atlas/one.h5ad", "atlas/two.zarr", "-o", "atlas/one.h5ad", "--force") == 2
    assert "is the input" in the_error(capsys)


def test_proteins_are_fitted_from_files_and_cells_embedded_by_rna_alone(tmp_path):
    adata = make_adata()
    proteins = np.random.default_rng(1).poisson(5.0, (N_CELLS, 4)).astype(np.float32)
    adata.obsm["adt"] = pd.DataFrame(proteins, adata.obs_names, [f"CD{i}" for i in range(4)])
    path, out, model = (tmp_path / name for name in ("in.h5ad", "out.h5ad", "m.safetensors"))
    adata.write_h5ad(path)
    options = ("--protein-key", "adt", "--protein-likelihood", "poisson", "--model", model)
    assert run("fit", path, *QUICK, *options, "-o", out) == 0
    assert scvae.load(model).schema.views[0].likelihood == "poisson"
    assert run("fit", path, *QUICK, *options, "--force") == 0  # into the file itself
    written, copied = anndata.read_h5ad(path), anndata.read_h5ad(out)
    np.testing.assert_array_equal(written.obsm["X_scvae"], copied.obsm["X_scvae"])
    shutil.copy(path, tmp_path / "other.h5ad")
    both = tmp_path / "both.h5ad"
    assert run("fit", path, tmp_path / "other.h5ad", *QUICK, *options[:2], "-o", both) == 0
    assert run("embed", path, "--model", model, "--views", "rna", "--key-added", "by_rna", "-o", both, "--force") == 0
    assert anndata.read_h5ad(both).uns["by_rna"]["cells_with"] == {"rna": N_CELLS, "protein": 0}
    assert run("tune-beta", path, *QUICK, *options[:4], "--betas", 0.5, 2, "-o", both, "--force") == 0
    record = anndata.read_h5ad(both).uns["scvae"]
    assert record["params"]["views"] == {"protein": "poisson"}
    assert len(record["beta_path"]) == 2


def test_views_that_do_not_exist_are_refused(example, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    assert run("fit", example / "in.h5ad", *QUICK, "--protein-key", "adt", "-o", out) == 2
    assert run("embed", example / "in.h5ad", "--model", example / "m.safetensors", "--views", "adt", "-o", out) == 2
    assert run("fit", example / "in.h5ad", *QUICK, "--protein-likelihood", "poisson", "-o", out) == 2
    lines = capsys.readouterr().err.splitlines()
    assert "'adt'" in lines[0]
    assert "'adt'" in lines[1]
    assert "protein_likelihood has no effect without protein_key" in lines[2]
    assert not out.exists()
