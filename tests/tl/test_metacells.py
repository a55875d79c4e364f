"""`metacells`: sums of counts, labels and means, against pandas."""

import functools

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig

SHORT = {"n_latent": 3, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=5)}


@functools.cache
def _fitted(latent="normal"):
    adata = scvae.datasets.simulate(n_cells=150, n_genes=40, n_types=3, truth=False, rng=0)
    adata.var["used"] = np.arange(40) < 30
    adata.layers["counts"] = adata.X.copy()
    return adata, scvae.fit(
        adata, layer="counts", mask_var="used", network=NetworkConfig(width=16, latent=latent), **SHORT
    )


def fitted(latent="normal"):
    adata, model = _fitted(latent)
    return adata.copy(), model


def test_counts_of_all_genes_are_summed_by_code():
    adata, model = fitted("quantized")
    found = scvae.tl.metacells(adata, model, labels_keys="cell_type")
    code = adata.obs["scvae_code"].astype(int).to_numpy()
    expected = pd.DataFrame(adata.X.toarray(), columns=adata.var_names).groupby(code).sum()
    expected.index = "code_" + expected.index.astype(str)
    pd.testing.assert_frame_equal(found.to_df(), expected, check_names=False)
    assert (found.layers["counts"] != found.X).nnz == 0
    np.testing.assert_array_equal(found.obs["n_cells"], np.unique(code, return_counts=True)[1])
    means = pd.DataFrame(adata.obsm["X_scvae"]).groupby(code).mean()
    np.testing.assert_allclose(found.obsm["X_scvae"], means, atol=1e-5)
    table = pd.crosstab(code, adata.obs["cell_type"].to_numpy())
    np.testing.assert_array_equal(found.obs["cell_type"].astype(str), table.idxmax(axis=1))
    np.testing.assert_allclose(found.obs["cell_type_purity"], table.max(axis=1) / table.sum(axis=1))
    assert (adata.obs["scvae_metacell"].astype(str) == "code_" + adata.obs["scvae_code"].astype(str)).all()


def test_other_models_have_clusters_of_the_embedding():
    adata, model = fitted()
    found = scvae.tl.metacells(adata, model, n_metacells=12)
    assert found.shape == (12, 40)
    assert list(found.obs) == ["n_cells"]
    assert found.X.sum() == adata.X.sum()
    again = scvae.tl.metacells(adata.copy(), model, n_metacells=12)
    assert (found.X != again.X).nnz == 0
    centres = found.obsm["X_scvae"]
    nearest = np.linalg.norm(adata.obsm["X_scvae"][:, None] - centres, axis=-1).argmin(1)
    assert (adata.obs["scvae_metacell"].cat.codes.to_numpy() == nearest).mean() > 0.95
    assert scvae.tl.metacells(adata, model).n_obs == 2  # 75 cells each
    scvae.tl.embed(found, model)  # counts in the layer that the model reads
    assert np.isfinite(found.obsm["X_scvae"]).all()


def test_a_number_of_metacells_makes_clusters_of_a_model_of_codes_too():
    adata, model = fitted("quantized")
    assert list(scvae.tl.metacells(adata, model, n_metacells=2).obs_names) == ["metacell_0", "metacell_1"]


def test_cells_without_a_label_take_no_part_in_its_share():
    adata, model = fitted()
    adata.obs["partly"] = pd.Series(["a", "b", "b"] + [None] * 147, index=adata.obs_names, dtype="category")
    found = scvae.tl.metacells(adata, model, n_metacells=1, labels_keys=["partly"])
    assert found.obs["partly"].iloc[0] == "b"
    assert found.obs["partly_purity"].iloc[0] == pytest.approx(2 / 3)
    apart = scvae.tl.metacells(adata, model, n_metacells=20, labels_keys=["partly"])
    assert apart.obs["partly"].isna().sum() == apart.obs["partly_purity"].isna().sum() >= 17


def test_only_the_names_of_metacells_are_written(digest):
    adata, model = fitted()
    before = digest(adata)
    scvae.tl.metacells(adata, model, n_metacells=5)
    after = digest(adata)
    assert {slot for slot in after if after[slot] != before.get(slot)} == {"obs"}
    assert list(adata.obs)[-1] == "scvae_metacell"


def test_dense_counts_give_the_same():
    adata, model = fitted()
    dense = adata.copy()
    dense.layers["counts"] = adata.X.toarray()
    found, same = (scvae.tl.metacells(each, model, n_metacells=5) for each in (adata, dense))
    assert sparse.issparse(same.X)
    np.testing.assert_array_equal(found.X.toarray(), same.X.toarray())


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"n_metacells": 151}, ValueError, "n_metacells is 151, but there are 150 cells"),
        ({"n_metacells": 0}, ValueError, "n_metacells"),
        ({"labels_keys": "tissue"}, KeyError, "tissue"),
    ],
)
def test_what_cannot_be_done_is_refused(arguments, error, said, digest):
    adata, model = fitted()
    before = digest(adata)
    with pytest.raises(error, match=said):
        scvae.tl.metacells(adata, model, **arguments)
    assert digest(adata) == before


def test_real_values_have_no_sum():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, likelihood="gaussian", rng=0)
    model = scvae.fit(adata, likelihood="gaussian", **SHORT)
    with pytest.raises(ValueError, match="only counts and 0/1 data can be summed"):
        scvae.tl.metacells(adata, model)
