"""`layer="raw"`: counts in `adata.raw`, whose genes are others than those of `adata`, and in another order."""

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import zarr

import scvae
from scvae import TrainingConfig
from scvae.common.checks import MissingKeyError

SHORT = {"n_latent": 2, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=2)}
N_CELLS, N_RAW, N_GENES = 80, 50, 30


def two_layouts(container=sp.csr_matrix):
    """The same counts twice: in `X`, and in a `raw` with more genes beside a normalised `X`."""
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 2.0, (N_CELLS, 1))
    counts = rng.poisson(depth * rng.gamma(1.0, 2.0, N_RAW)).astype(np.float32)
    obs = pd.DataFrame(
        {"batch": ["a", "b"] * (N_CELLS // 2), "type": [*"xxyy"] * (N_CELLS // 4)},
        index=[f"cell{i}" for i in range(N_CELLS)],
    )
    every = ad.AnnData(container(counts), obs, pd.DataFrame(index=[f"gene{i}" for i in range(N_RAW)]))
    order = rng.permutation(N_RAW)[:N_GENES]
    plain = ad.AnnData(sp.csr_matrix(counts[:, order]), obs, every.var.iloc[order])
    layered = plain.copy()
    chosen = counts[:, order]
    layered.X = np.log1p(1e4 * chosen / chosen.sum(axis=1, keepdims=True))
    layered.raw = every
    return plain, layered


def stored(adata, path):
    if path.suffix == ".h5ad":
        adata.write_h5ad(path)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on formats to come
            ad.io.write_elem(zarr.open_group(str(path), mode="w"), "/", adata)
    return path


def halves(adata, folder, ending):
    return [
        stored(adata[part].copy(), folder / f"{name}.{ending}")
        for name, part in (("a", slice(0, 40)), ("b", slice(40, None)))
    ]


PLACES = {
    "in memory": lambda adata, folder: adata,
    "view": lambda adata, folder: adata[np.arange(N_CELLS)],
    "backed": lambda adata, folder: ad.read_h5ad(stored(adata, folder / "x.h5ad"), backed="r"),
    "h5ad": lambda adata, folder: stored(adata, folder / "x.h5ad"),
    "zarr": lambda adata, folder: stored(adata, folder / "x.zarr"),
    "two h5ad files": lambda adata, folder: halves(adata, folder, "h5ad"),
    "two zarr stores": lambda adata, folder: halves(adata, folder, "zarr"),
}


def weights(model):
    return {name: tensor.numpy().tobytes() for name, tensor in model.network.state_dict().items()}


@pytest.mark.parametrize("place", PLACES)
def test_a_fit_of_raw_is_that_of_the_same_counts_in_x(place, tmp_path):
    plain, layered = two_layouts()
    expected = scvae.fit(plain, **SHORT)
    where = PLACES[place](layered, tmp_path)
    model = scvae.fit(where, layer="raw", **SHORT)
    assert model.genes.equals(plain.var_names)
    assert model.schema.layer == "raw"
    assert weights(model) == weights(expected)
    again = scvae.tl.embed(where, model, copy=True)
    np.testing.assert_allclose(again.obsm["X_scvae"], plain.obsm["X_scvae"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("container", [sp.csc_matrix, sp.csr_matrix, np.asarray])
@pytest.mark.parametrize("memory", [0.0, 1.0], ids=["streamed", "held"])
def test_every_kind_of_raw_is_read_from_a_file(container, memory, tmp_path):
    plain, layered = two_layouts(container)
    path = stored(layered, tmp_path / "x.h5ad")
    options = SHORT | {"training": TrainingConfig(epochs=1, memory=memory)}
    model = scvae.fit(path, layer="raw", mask_var=np.arange(N_GENES) % 2 == 0, **options)
    assert model.genes.equals(plain.var_names[::2])
    expected = scvae.tl.embed(plain, model, layer="X", copy=True)
    np.testing.assert_allclose(ad.read_h5ad(path).obsm["X_scvae"], expected.obsm["X_scvae"], rtol=1e-5, atol=1e-6)


def test_the_mask_is_that_of_adata_and_the_loadings_fit_its_genes():
    plain, layered = two_layouts()
    linear = SHORT | {"network": scvae.NetworkConfig(decoder="linear")}
    for adata in (plain, layered):
        adata.var["highly_variable"] = np.arange(N_GENES) < 20
    scvae.fit(plain, **linear)
    model = scvae.fit(layered, layer="raw", **linear)
    assert model.genes.equals(layered.var_names[:20])
    np.testing.assert_array_equal(layered.varm["scvae_loadings"], plain.varm["scvae_loadings"])


@pytest.mark.parametrize("place", ["in memory", "h5ad", "two zarr stores"])
def test_later_cells_have_the_genes_of_their_raw(place, tmp_path):
    plain, layered = two_layouts()
    model = scvae.fit(layered, layer="raw", **SHORT)
    cut = layered[:, :3].copy()  # raw keeps all genes
    found = scvae.tl.embed(PLACES[place](cut, tmp_path), model, copy=True)
    np.testing.assert_allclose(found.obsm["X_scvae"], layered.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    with pytest.raises(MissingKeyError, match=r"adata.raw is None, and adata.layers has no 'raw'; it has none"):
        scvae.tl.embed(plain, model)
    scvae.tl.embed(plain, model, layer="X")
    np.testing.assert_array_equal(plain.obsm["X_scvae"], layered.obsm["X_scvae"])


def test_messages_about_genes_speak_of_raw():
    plain, layered = two_layouts()
    model = scvae.fit(plain, **SHORT)
    other = layered.raw.to_adata()
    other.var_names = ["changed", *other.var_names[1:]]
    few = layered.copy()
    few.raw = other[:, plain.var_names[:29].intersection(other.var_names)].copy()
    with pytest.warns(UserWarning, match=r"^adata.raw has 29 of the 30 modelled genes"):
        scvae.tl.embed(few, model, layer="raw")
    few.raw = other[:, :1].copy()
    with pytest.raises(ValueError, match=r"^adata.raw has none of the 30 modelled genes: its genes are 'changed'"):
        scvae.tl.embed(few, model, layer="raw")


def test_genes_that_raw_lacks_or_has_twice_are_refused_unless_masked():
    _, layered = two_layouts()
    every = layered.raw.to_adata()
    first, second = layered.var_names[:2]
    layered.raw = every[:, every.var_names != first].copy()
    with pytest.raises(ValueError, match=f"adata.raw lacks 1 of the 30 genes to read from it .'{first}'.; leave them"):
        scvae.fit(layered, layer="raw", **SHORT)
    with pytest.raises(ValueError, match=f"adata.raw lacks 1 of the 30 genes to read from it .'{first}'"):
        scvae.tl.highly_variable_genes(layered, layer="raw", n_top_genes=5)
    assert len(scvae.fit(layered, layer="raw", mask_var=np.arange(N_GENES) > 0, **SHORT).genes) == 29
    every.var_names = [first if name == second else name for name in every.var_names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of anndata on names that are not unique
        layered.raw = every
        with pytest.raises(ValueError, match=f"1 names occur more than once in adata.raw.var_names .'{first}'."):
            scvae.fit(layered, layer="raw", **SHORT)


def test_values_of_raw_are_checked_and_named_by_its_genes():
    _, layered = two_layouts()
    every = layered.raw.to_adata()
    every.X[7, 11] = -1
    layered.raw = every
    with pytest.raises(ValueError, match=r"layer 'raw' has negative values.* at cell 'cell7', gene 'gene11'"):
        scvae.fit(layered, layer="raw", **SHORT)


@pytest.mark.parametrize("place", PLACES)
def test_a_refusal_tells_that_raw_has_counts(place, tmp_path):
    plain, layered = two_layouts()
    where = PLACES[place](layered, tmp_path)
    with pytest.raises(
        ValueError, match=r"looks log-normalised.*pass raw counts: layer='raw' \(adata.raw\) looks like"
    ):
        scvae.fit(where, **SHORT)
    model = scvae.fit(plain, **SHORT)
    with pytest.raises(
        ValueError, match=r"looks log-normalised.*pass raw counts: layer='raw' \(adata.raw\) looks like"
    ):
        scvae.tl.embed(where, model)


def test_a_refusal_of_several_files_tells_which_layer_has_counts(tmp_path):
    plain, layered = two_layouts()
    layered.raw = None
    layered.layers["counts"] = plain.X
    with pytest.raises(ValueError, match=r"pass raw counts: layer='counts' looks like counts"):
        scvae.fit(halves(layered, tmp_path, "h5ad"), **SHORT)


def test_without_x_the_message_names_raw(tmp_path):
    _, layered = two_layouts()
    layered.X = None
    for where in (layered, stored(layered, tmp_path / "x.h5ad")):
        with pytest.raises(ValueError, match="adata has no X; pass layer=, one of 'raw'"):
            scvae.fit(where, **SHORT)
        assert len(scvae.fit(where, layer="raw", **SHORT).genes) == N_GENES


def test_a_layer_of_that_name_comes_first(tmp_path):
    plain, layered = two_layouts()
    layered.layers["raw"] = plain.X * 2
    twice = plain.copy()
    twice.X = plain.X * 2
    expected = weights(scvae.fit(twice, **SHORT))
    for where in (layered, halves(layered, tmp_path, "h5ad")):
        assert weights(scvae.fit(where, layer="raw", **SHORT)) == expected


@pytest.mark.parametrize("place", ["in memory", "h5ad", "two zarr stores"])
def test_variable_genes_of_raw_are_those_of_the_same_counts_in_x(place, tmp_path):
    plain, layered = two_layouts()
    scvae.tl.highly_variable_genes(plain, n_top_genes=10)
    where = PLACES[place](layered, tmp_path)
    scvae.tl.highly_variable_genes(where, layer="raw", n_top_genes=10)
    found = {"in memory": lambda: layered, "h5ad": lambda: ad.read_h5ad(where)}.get(
        place, lambda: ad.read_zarr(where[0])
    )()
    pd.testing.assert_frame_equal(found.var[plain.var.columns], plain.var)


TOOLS = {
    "denoise": lambda adata, model, **of: scvae.tl.denoise(adata, model, copy=True, **of).layers["scvae_denoised"],
    "generate": lambda adata, model, **of: scvae.tl.generate(model, n=9, like=adata, rng=0, **of).X.toarray(),
    "latent_genes": lambda adata, model, **of: scvae.tl.latent_genes(adata, model, **of).to_numpy(),
    "log_likelihood": lambda adata, model, **of: scvae.tl.log_likelihood(adata, model, n_samples=5, **of).to_numpy(),
    "map_query": lambda adata, model, **of: weights(scvae.tl.map_query(adata, model, epochs=2, verbose=False, **of)),
    "rank_genes": lambda adata, model, **of: scvae.tl.rank_genes(adata, model, groupby="type", copy=True, **of).uns[
        "rank_genes_groups"
    ]["scores"],
    "sample": lambda adata, model, **of: scvae.tl.sample(adata, model, rng=0, **of).X.toarray(),
}


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("of_fit", ["X", "raw"])
def test_tools_read_raw_if_told_or_if_the_fit_did(tool, of_fit):
    plain, layered = two_layouts()
    layer = None if of_fit == "X" else "raw"
    model = scvae.fit(layered if layer else plain, layer=layer, batch_key="batch", **SHORT)
    if tool == "map_query":
        for adata in (plain, layered):
            adata.obs["batch"] = "new"
    expected = TOOLS[tool](plain, model, layer="X")
    found = TOOLS[tool](layered, model, layer=None if layer else "raw")
    np.testing.assert_equal(found, expected)


def test_the_reference_of_labels_may_be_read_from_raw():
    plain, layered = two_layouts()
    model = scvae.fit(plain, **SHORT)
    options = {"labels_key": "batch", "copy": True}
    expected = scvae.tl.transfer_labels(plain, model, reference=plain, **options)
    found = scvae.tl.transfer_labels(plain, model, reference=layered, reference_layer="raw", **options)
    pd.testing.assert_frame_equal(found.obs, expected.obs)
    with pytest.raises(
        ValueError, match=r"reference: X looks log-normalised.*reference_layer='raw' .reference.raw. look"
    ):
        scvae.tl.transfer_labels(plain, model, reference=layered, **options)
