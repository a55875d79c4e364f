"""`tl.differential_abundance` and its plot: planted populations are found, donors who differ are not."""

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig

QUICK = {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=12), "n_latent": 5, "verbose": False}
OPTIONS = {"groupby": "condition", "sample_key": "donor"}


def of_donors(seed=0, *, n_donors=12, cells=100, fold=4.0, sd=0.2):
    """Four populations; the first is more frequent in treated donors."""
    rng = np.random.default_rng(seed)
    treated = np.arange(n_donors) % 2
    frequency = np.exp(sd * rng.normal(size=(n_donors, 4)) + np.log(fold) * np.outer(treated, [1, 0, 0, 0]))
    frequency *= [0.15, 0.25, 0.3, 0.3]
    donor = np.repeat(np.arange(n_donors), cells)
    kind = np.array([rng.choice(4, p=f / f.sum()) for f in frequency[donor]])
    rate = np.exp(rng.normal(0, 1, 80) + rng.normal(0, 1, (4, 80))[kind])
    counts = rng.poisson(rate / rate.sum(1, keepdims=True) * 800).astype(np.float32)
    obs = {
        "condition": np.array(["control", "treated"])[treated[donor]],
        "donor": [f"d{i}" for i in donor],
        "type": [f"t{i}" for i in kind],
    }
    return ad.AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(obs, index=[f"c{i}" for i in range(len(donor))]))


@pytest.fixture(scope="module")
def fitted():
    adata = of_donors()
    return adata, scvae.fit(adata, rng=0, **QUICK)


def test_the_population_that_grows_is_found_with_its_odds_and_the_record_survives_a_file(fitted, tmp_path):
    adata, model = fitted
    scvae.tl.differential_abundance(adata, model, **OPTIONS)
    grown = (adata.obs["type"] == "t0").to_numpy()
    share = pd.crosstab(adata.obs["condition"], grown, normalize="index")[True]
    expected = np.log(share["treated"] / share["control"])
    odds, se, fdr = (adata.obs[f"scvae_abundance{end}"].to_numpy() for end in ("", "_se", "_fdr"))
    assert odds[grown].mean() == pytest.approx(expected, abs=0.25)
    assert (fdr[grown] <= 0.05).mean() > 0.9
    assert (odds[~grown & (fdr <= 0.1)] < 0.5).mean() > 0.9
    assert (se > 0).all()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad").uns["scvae"]["abundance"]
    assert (again["group"], again["reference"], again["n_donors"]) == ("treated", "control", 6)
    turned = scvae.tl.differential_abundance(adata, model, group="control", reference="treated", copy=True, **OPTIONS)
    np.testing.assert_allclose(turned.obs["scvae_abundance"], -odds, atol=0.02)


def test_halves_of_donors_who_differ_are_not_called(fitted):
    adata, model = fitted
    some = adata[adata.obs["condition"] == "control"].copy()
    called = 0
    for split in ({"d0", "d2", "d4"}, {"d0", "d2", "d6"}, {"d0", "d4", "d8"}, {"d0", "d8", "d10"}):
        some.obs["half"] = np.where(some.obs["donor"].isin(split), "one", "two")
        scvae.tl.differential_abundance(some, model, groupby="half", sample_key="donor")
        called += (some.obs["scvae_abundance_fdr"] <= 0.05).any()
    assert called <= 1


def test_numbered_donors_some_of_them_missing_are_donors(fitted):
    adata, model = fitted
    some = adata.copy()
    some.obs["number"] = some.obs["donor"].str[1:].astype(float).where(np.arange(some.n_obs) > 99)
    some.obs["named"] = some.obs["donor"].where(np.arange(some.n_obs) > 99)
    for key in ("number", "named"):
        scvae.tl.differential_abundance(some, model, groupby="condition", sample_key=key, key_added=key)
    np.testing.assert_allclose(some.obs["number_abundance"], some.obs["named_abundance"], rtol=1e-6)


def test_cells_without_a_group_have_no_value_and_each_donor_can_be_on_both_sides(fitted):
    adata, model = fitted
    some = adata.copy()
    some.obs["half"] = (
        pd.Series(np.array(["a", "b"])[np.arange(some.n_obs) % 2]).where(np.arange(some.n_obs) > 99).to_numpy()
    )
    scvae.tl.differential_abundance(some, model, groupby="half", sample_key="donor")
    assert some.obs["scvae_abundance"].isna().sum() == 100
    assert some.uns["scvae"]["abundance"]["paired"]
    assert (some.obs["scvae_abundance_fdr"].dropna() > 0.1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_key": "doner"}, "did you mean 'donor'"),
        ({"sample_key": "condition"}, "both 'condition'"),
        ({"groupby": "type"}, "has 4 groups.*pass group= and reference="),
        ({"group": "t9"}, "group is 't9', not found.*'control', 'treated'"),
        ({"groupby": "type", "reference": "t9"}, "reference is 't9', not found"),
        ({"groupby": "none"}, r"adata\.obs\['none'\] has no values"),
        ({"group": "control"}, "group and reference are both 'control'"),
        ({"sample_key": "own"}, "the group has a cell of 1 donor"),
        ({"n_neighbors": 10_000}, "n_neighbors is 10000, but 1,200 cells are compared"),
        ({"n_neighbors": 1}, "n_neighbors"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(fitted, digest, options, message):
    adata, model = fitted
    some = adata.copy()
    some.obs["own"], some.obs["none"] = "of " + some.obs["condition"].astype(str), np.nan
    before = digest(some)
    with pytest.raises(ValueError, match=message):
        scvae.tl.differential_abundance(some, model, **(OPTIONS | options))
    assert digest(some) == before


def test_the_plot_colours_the_called_cells_and_no_others(fitted):
    mpl.use("agg")
    adata, model = fitted
    scvae.tl.differential_abundance(adata, model, **OPTIONS)
    axes = scvae.pl.abundance(adata, basis="X_scvae", max_fdr=0.05, show=False)
    called = adata.obs["scvae_abundance_fdr"].to_numpy() <= 0.05
    grey, coloured = axes.collections
    assert [len(grey.get_offsets()), len(coloured.get_offsets())] == [(~called).sum(), called.sum()]
    np.testing.assert_allclose(
        np.sort(coloured.get_array()), np.sort(adata.obs["scvae_abundance"].to_numpy()[called] / np.log(2))
    )
    assert coloured.colorbar.ax.get_ylabel() == "log2 odds, treated over control"
    with pytest.raises(ValueError, match=r"adata\.obsm has no 'X_umap'"):
        scvae.pl.abundance(adata, show=False)
    del adata.uns["scvae"]["abundance"]
    with pytest.raises(ValueError, match="differential_abundance"):
        scvae.pl.abundance(adata, basis="X_scvae", show=False)
    mpl.pyplot.close("all")
