"""`tl.denoise`: where the values go, what that costs, and what is refused."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

mpl.use("Agg")

from matplotlib import pyplot as plt

import scvae
import scvae.common.files
import scvae.data.destinations
from scvae.common.checks import MissingKeyError
from tests.tl.hardly_trained import case, fit

SLOTS = ["scvae_denoised", "scvae_denoised_lower", "scvae_denoised_upper"]


def test_genes_just_those_of_adata_make_a_layer_and_any_others_a_table_in_obsm():
    adata, model = case()
    scvae.tl.denoise(adata, model, n_samples=20, interval=0.9)
    assert set(SLOTS) <= set(adata.layers)
    assert not set(SLOTS) & set(adata.obsm)
    others = ad.AnnData(sparse.csr_matrix((50, 3)), adata.obs[[]], pd.DataFrame(index=list("xyz")))
    wider = ad.concat([adata, others], axis=1, merge="first")
    scvae.tl.denoise(wider, model, n_samples=20, interval=0.9)
    assert not set(SLOTS) & set(wider.layers)
    assert list(wider.obsm["scvae_denoised"].columns) == list(model.genes)
    np.testing.assert_allclose(wider.obsm[SLOTS[2]], adata.layers[SLOTS[2]], rtol=1e-5)
    scvae.tl.denoise(adata, model, genes=["gene_1"])
    assert not set(SLOTS) & set(adata.layers)
    assert [slot for slot in SLOTS if slot in adata.obsm] == SLOTS[:1]  # the interval of the earlier call is gone
    scvae.tl.denoise(adata, model)
    assert [slot for slot in SLOTS if slot in adata.layers] == SLOTS[:1]
    assert not set(SLOTS) & set(adata.obsm)


def test_only_the_named_slots_change_and_a_copy_leaves_adata_alone(digest):
    adata, model = case()
    adata.uns["scvae"]["diagnosis"] = {"verdict": "healthy"}
    before = digest(adata)
    copied = scvae.tl.denoise(adata, model, copy=True)
    assert digest(adata) == before
    assert scvae.tl.denoise(adata, model) is None
    after = digest(adata)
    assert {slot for slot in after if after[slot] != before.get(slot)} == {"layers[scvae_denoised]"}
    assert adata.uns["scvae"]["diagnosis"] == {"verdict": "healthy"}
    assert digest(copied) == after


@pytest.mark.parametrize("genes", [None, ["gene_3", "gene_1"]])
@pytest.mark.parametrize("threshold", [None, 5.0])
def test_what_is_written_survives_an_h5ad_file(tmp_path, genes, threshold):
    adata, model = case()
    scvae.tl.denoise(adata, model, genes=genes, threshold=threshold, library_size=80, interval=0.9)
    adata.write_h5ad(tmp_path / "a.h5ad")
    again = ad.read_h5ad(tmp_path / "a.h5ad")
    slots = (adata.layers, again.layers) if genes is None else (adata.obsm, again.obsm)
    for slot in SLOTS:
        first, second = (table[slot] for table in slots)
        assert type(first) is type(second)
        np.testing.assert_array_equal(*(t.toarray() if sparse.issparse(t) else np.asarray(t) for t in (first, second)))
    record = again.uns["scvae"]["denoised"]
    assert record["library_size"] == 80
    assert record["interval"] == 0.9
    assert list(record["genes"]) == (genes or list(model.genes))


def test_a_threshold_keeps_what_is_above_it_and_its_interval():
    adata, model = case()
    options = {"library_size": 80.0, "interval": 0.9, "n_samples": 20}
    scvae.tl.denoise(adata, model, **options)
    dense = {slot: adata.layers[slot] for slot in SLOTS}
    scvae.tl.denoise(adata, model, threshold=5.0, **options)
    kept = dense["scvae_denoised"] > 5.0
    assert 0.05 < kept.mean() < 0.95
    for slot in SLOTS:
        found = adata.layers[slot]
        assert sparse.issparse(found)
        assert found.format == "csr"
        assert found.nnz == kept.sum()
        np.testing.assert_allclose(found.toarray(), np.where(kept, dense[slot], 0.0), rtol=1e-6)


@pytest.mark.parametrize("threshold", [None, 5.0])
def test_a_store_holds_what_a_layer_would(tmp_path, monkeypatch, digest, threshold):
    pytest.importorskip("zarr")
    monkeypatch.setattr(scvae.inference.decoding, "TABLE", 16 * 12)  # several chunks
    monkeypatch.setattr(scvae.data.destinations, "STORE_CHUNK", 20 * 12)
    adata, model = case()
    options = {"library_size": 80.0, "interval": 0.9, "n_samples": 20, "threshold": threshold}
    before = digest(adata)
    scvae.tl.denoise(adata, model, path=tmp_path / "d.zarr", genes=list(adata.var_names[::-1]), **options)
    assert digest(adata) == before
    stored = ad.read_zarr(tmp_path / "d.zarr")
    scvae.tl.denoise(adata, model, **options)
    assert list(stored.obs_names) == list(adata.obs_names)
    assert list(stored.var_names) == list(adata.var_names[::-1])
    for slot, found in zip(SLOTS, (stored.X, stored.layers["lower"], stored.layers["upper"]), strict=True):
        expected = adata.layers[slot]
        assert sparse.issparse(found) == (threshold is not None)
        np.testing.assert_allclose(
            *(t.toarray() if sparse.issparse(t) else t for t in (found, expected[:, ::-1])), rtol=1e-5
        )


@pytest.mark.parametrize("threshold", [None, 0.02])
@pytest.mark.slow
def test_cells_in_files_are_denoised_into_a_store_and_their_values_stay_on_disk(tmp_path, threshold):
    adata, model = case()
    paths = [tmp_path / "a.h5ad", tmp_path / "b.zarr"]
    adata[:20].copy().write_h5ad(paths[0], compression="gzip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata, on the zarr format it writes
        adata[20:].copy().write_zarr(paths[1])
    before = paths[0].read_bytes()
    scvae.tl.denoise(paths, model, path=tmp_path / "out.zarr", threshold=threshold, n_samples=3)
    found = ad.read_zarr(tmp_path / "out.zarr")
    expected = scvae.tl.denoise(adata, model, threshold=threshold, n_samples=3, copy=True).layers["scvae_denoised"]
    dense = [x.toarray() if sparse.issparse(x) else x for x in (found.X, expected)]
    np.testing.assert_allclose(*dense, rtol=1e-5)
    assert sparse.issparse(found.X) == (threshold is not None)
    assert [name.rpartition("-")[0] for name in found.obs_names] == list(adata.obs_names)
    assert list(found.var_names) == list(adata.var_names)
    assert paths[0].read_bytes() == before


def test_denoised_values_of_files_need_a_store_to_go_to(tmp_path):
    adata, model = case()
    adata.write_h5ad(tmp_path / "a.h5ad")
    with pytest.raises(ValueError, match=r"not written into the files; pass path='denoised\.zarr'"):
        scvae.tl.denoise(tmp_path / "a.h5ad", model)
    with pytest.raises(FileNotFoundError, match=r"b\.h5ad"):
        scvae.tl.denoise(tmp_path / "b.h5ad", model, path=tmp_path / "out.zarr")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad"]


def test_a_store_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    pytest.importorskip("zarr")
    adata, model = case()
    place = tmp_path / "d.zarr"
    scvae.tl.denoise(adata, model, path=place, n_samples=1)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        scvae.tl.denoise(adata, model, path=place)
    content = ad.read_zarr(place).X
    original, calls = scvae.data.destinations.Store.add, []

    def fails_later(self, positions, tables):
        calls.append(positions)
        if len(calls) > 2:
            raise KeyboardInterrupt
        original(self, positions, tables)

    monkeypatch.setattr(scvae.inference.decoding, "TABLE", 16 * 12)
    with monkeypatch.context() as patched:
        patched.setattr(scvae.data.destinations.Store, "add", fails_later)
        for target, options in ((tmp_path / "new.zarr", {}), (place, {"overwrite": True})):
            calls.clear()
            with pytest.raises(KeyboardInterrupt):
                scvae.tl.denoise(adata, model, path=target, library_size=9.0, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["d.zarr"]
    np.testing.assert_array_equal(ad.read_zarr(place).X, content)
    scvae.tl.denoise(adata, model, path=place, library_size=9.0, overwrite=True)
    np.testing.assert_allclose(ad.read_zarr(place).X.sum(1), 9.0, rtol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["d.zarr"]


def test_a_folder_that_is_no_store_is_never_replaced(tmp_path):
    pytest.importorskip("zarr")
    adata, model = case()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("dear")
    with pytest.raises(FileExistsError, match="is not a zarr store"):
        scvae.tl.denoise(adata, model, path=tmp_path / "mine", overwrite=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        scvae.tl.denoise(adata, model, path=tmp_path / "nowhere" / "d.zarr")
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "dear"


# all genes of adata, modelled or not


def masked_case(likelihood="nb"):
    """Cells with 12 genes of which the odd ones are modelled, and their model."""
    adata, _ = case(likelihood)
    adata.var["mask"] = np.arange(12) % 2 == 1
    return adata, fit(adata, likelihood=likelihood, mask_var="mask", batch_key="batch")


@pytest.mark.parametrize("library_size", [None, 1e4, "observed"])
@pytest.mark.parametrize("as_sparse", [True, False])
def test_a_layer_of_all_genes_has_the_others_as_measured_on_the_same_scale(library_size, as_sparse):
    adata, model = masked_case()
    counts = adata.X.toarray() * (np.arange(50) != 3)[:, None]  # a cell has none
    adata.X = sparse.csr_matrix(counts) if as_sparse else counts
    scvae.tl.denoise(adata, model, library_size=library_size)
    assert "scvae_denoised" not in adata.layers
    alone = adata.obsm["scvae_denoised"]
    scvae.tl.denoise(adata, model, library_size=library_size, all_genes=True)
    assert "scvae_denoised" not in adata.obsm
    layer = pd.DataFrame(adata.layers["scvae_denoised"], adata.obs_names, adata.var_names)
    assert (layer.dtypes == np.float32).all()
    pd.testing.assert_frame_equal(layer[model.genes], alone, rtol=1e-5)
    counts = adata.to_df()
    library = counts[model.genes].sum(axis=1)
    scale = 1 if library_size == "observed" else (library_size or 1) / library.where(library > 0, np.inf)
    others = adata.var_names[~adata.var["mask"]]
    np.testing.assert_allclose(layer[others], counts[others].mul(scale, axis=0), rtol=1e-5)
    assert list(adata.uns["scvae"]["denoised"]["genes"]) == list(model.genes)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_binary_and_real_values_that_are_not_modelled_stay_as_they_are(likelihood):
    adata, model = masked_case(likelihood=likelihood)
    scvae.tl.denoise(adata, model, all_genes=True)
    found = np.asarray(adata.layers["scvae_denoised"])
    np.testing.assert_allclose(found[:, ::2], adata.to_df().to_numpy()[:, ::2], rtol=1e-6)


def test_a_layer_of_all_genes_is_sparse_where_that_is_smaller_or_a_threshold_is_given():
    adata, model = case()
    rare = sparse.csr_matrix(np.random.default_rng(0).poisson(0.05, (50, 60)).astype(np.float32))
    wide = ad.concat([adata, ad.AnnData(rare, adata.obs[[]])], axis=1, merge="first")
    wide = wide[:, np.random.default_rng(0).permutation(72)].copy()
    for threshold in (None, 0.02):
        scvae.tl.denoise(adata, model, threshold=threshold)
        scvae.tl.denoise(wide, model, threshold=threshold, all_genes=True)
        found = wide.layers["scvae_denoised"]
        assert found.format == "csr"
        assert found.dtype == np.float32
        expected = adata.layers["scvae_denoised"]
        expected = expected.toarray() if threshold else expected
        np.testing.assert_allclose(found[:, wide.var_names.get_indexer(model.genes)].toarray(), expected, rtol=1e-5)
    scvae.tl.denoise(adata, model, all_genes=True)  # all are modelled
    assert isinstance(adata.layers["scvae_denoised"], np.ndarray)


@pytest.mark.parametrize("where", ["backed", "raw", "counts"])
def test_measured_values_are_read_wherever_the_counts_are(where, tmp_path):
    adata, model = masked_case()
    expected = scvae.tl.denoise(adata, model, all_genes=True, copy=True).layers["scvae_denoised"]
    if where == "backed":
        adata.write_h5ad(tmp_path / "a.h5ad")
        adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    elif where == "raw":
        adata.raw = adata[:, ::-1].copy()
        adata.X = np.log1p(adata.X)
    else:
        adata.layers["counts"] = adata.X.copy()
        adata.X = np.log1p(adata.X)
    scvae.tl.denoise(adata, model, all_genes=True, layer={"backed": None}.get(where, where))
    np.testing.assert_allclose(adata.layers["scvae_denoised"], expected, rtol=1e-5)
    if where == "backed":
        adata.file.close()


@pytest.mark.filterwarnings("ignore:The set_bad function:PendingDeprecationWarning")  # in scanpy
@pytest.mark.parametrize("gene", ["gene_1", "gene_2"])
def test_scanpy_draws_any_gene_of_that_layer(gene):
    import scanpy

    adata, model = masked_case()
    adata.raw = adata.copy()
    adata.obsm["X_umap"] = adata.obsm["X_scvae"]
    scvae.tl.denoise(adata, model, all_genes=True)
    panel = scanpy.pl.umap(adata, color=gene, layer="scvae_denoised", show=False, sort_order=False)
    layer = pd.DataFrame(adata.layers["scvae_denoised"], columns=adata.var_names)
    np.testing.assert_allclose(panel.collections[0].get_array(), layer[gene])
    plt.close("all")


# what is refused


def test_a_gene_outside_the_mask_is_told_from_one_that_nothing_has(digest):
    adata, model = masked_case()
    before = digest(adata)
    with pytest.raises(
        ValueError, match=r"genes has 'gene_2', in adata but not modelled: .* mask_var .*all_genes=True"
    ):
        scvae.tl.denoise(adata, model, genes=["gene_1", "gene_2"])
    with pytest.raises(ValueError, match="genes has 'CD3E', unknown to the model"):
        scvae.tl.denoise(adata, model, genes=["gene_2", "CD3E"])
    assert digest(adata) == before


@pytest.mark.parametrize(
    ("likelihood", "options", "error", "message"),
    [
        ("nb", {"genes": ["gene_1", "CD3E"]}, ValueError, "genes has 'CD3E', unknown to the model"),
        ("nb", {"genes": "gene_1"}, TypeError, "pass a list"),
        ("nb", {"transform_batch": "new"}, ValueError, "transform_batch has 'new', unknown to the model"),
        ("nb", {"library_size": "latent"}, ValueError, "library_size is 'latent'; pass a number, 'observed'"),
        ("nb", {"library_size": 0}, ValueError, "library_size is 0"),
        ("nb", {"n_samples": -1}, ValueError, "n_samples is -1"),
        ("nb", {"n_samples": 2.5}, TypeError, "n_samples is 2.5"),
        (
            "nb",
            {"interval": 0.9, "n_samples": 19},
            ValueError,
            "too few for the bounds of a 0.9 .* at least 20",
        ),
        ("nb", {"interval": 1.0}, ValueError, "interval is 1.0; pass a probability"),
        ("nb", {"threshold": -0.1}, ValueError, "threshold is -0.1"),
        ("nb", {"overwrite": True}, ValueError, "overwrite=True has no effect without path"),
        ("nb", {"path": "d.zarr", "copy": True}, ValueError, "copy=True has no effect with path"),
        ("nb", {"all_genes": True, "path": "d.zarr"}, ValueError, "leave out path, or all_genes"),
        ("nb", {"all_genes": True, "genes": ["gene_1"], "interval": 0.9}, ValueError, "leave out genes and interval"),
        ("nb", {"beta": 2.0}, ValueError, "trained at β = 1 alone"),
        ("nb", {"layer": "nothing"}, MissingKeyError, "nothing"),
        ("nb", {"rng": "seed"}, TypeError, "rng must be"),
        ("gaussian", {"library_size": 1.0}, ValueError, "library_size has no effect on real values"),
        ("gaussian", {"threshold": 0.0}, ValueError, "threshold is for counts and binary data"),
    ],
)
def test_what_makes_no_sense_is_refused(likelihood, options, error, message, digest, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata, model = case(likelihood)
    before = digest(adata)
    with pytest.raises(error, match=message):
        scvae.tl.denoise(adata, model, **options)
    assert digest(adata) == before
    assert not list(tmp_path.iterdir())


def test_batches_are_refused_by_a_model_without_and_data_by_a_model_of_others():
    adata, model = case(batch_key=None)
    with pytest.raises(ValueError, match="transform_batch has no effect"):
        scvae.tl.denoise(adata, model, transform_batch="batch_0")
    adata.X = np.log1p(adata.X.multiply(1e4 / adata.X.sum(1))).tocsr().astype(np.float32)
    with pytest.raises(ValueError, match="X looks log-normalised"):
        scvae.tl.denoise(adata, model)
    assert "scvae_denoised" not in adata.layers


# how much memory it takes

SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
import scvae
from anndata import AnnData
from scipy import sparse

N_CELLS, N_GENES = 12_000, 6_000


def mb(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


rng = np.random.default_rng(0)
n = 50 * N_CELLS
parts = np.ones(n, np.float32), rng.integers(N_GENES, size=n), np.arange(0, n + 1, 50)
x = sparse.csr_matrix(parts, (N_CELLS, N_GENES))
x.sum_duplicates()
adata = AnnData(x)
few = adata[:300].copy()
few.X[0] = 1
settings = {"network": scvae.NetworkConfig(width=8), "training": scvae.TrainingConfig(epochs=1)}
model = scvae.fit(few, rng=0, verbose=False, **settings)
scvae.tl.denoise(few, model, n_samples=0, threshold=0.1)
before, grown = mb("VmHWM"), {}
for name, options in {
    "sparse": {"threshold": 0.01},
    "genes": {"genes": list(model.genes[:20])},
    "interval": {"genes": list(model.genes[:20]), "interval": 0.9, "n_samples": 20},
    **({"store": {"path": sys.argv[1]}} if len(sys.argv) > 1 else {}),
    "layer": {},
}.items():
    scvae.tl.denoise(adata, model, **({"n_samples": 0} | options))
    grown[name] = mb("VmHWM") - before
print(json.dumps(grown))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_memory_grows_with_cells_times_genes_only_where_a_dense_layer_is_asked_for(tmp_path):
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    try:
        import zarr  # noqa: F401

        arguments = [str(tmp_path / "d.zarr")]
    except ImportError:
        arguments = []
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    grown = json.loads(run.stdout)
    table = 12_000 * 6_000 * 4 / 1e6  # MB of a dense layer
    assert grown.pop("layer") > 0.9 * table  # what is measured is there to be seen
    assert max(grown.values()) < 0.4 * table, grown
