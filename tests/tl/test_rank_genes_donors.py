"""`tl.rank_genes(sample_key=)`: donors are the sample."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig

QUICK = {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=8), "n_latent": 4, "verbose": False}
N_GENES = 250


def of_donors(seed=0, *, n_donors=8, cells=60, paired=False, changed=0.1, sd=0.3):
    """Donors who differ in all genes, of two types of cells; a tenth of the genes change threefold in one of them."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(n_donors), cells)
    treated = (rng.random(len(donor)) < 0.5) if paired else donor % 2 == 0
    kind = rng.integers(2, size=len(donor))
    change = np.where(rng.random(N_GENES) < changed, np.log(3.0) * rng.choice([-1, 1], N_GENES), 0.0)
    unit = donor + n_donors * treated if paired else donor
    eta = rng.normal(0, 1, N_GENES) + np.where(kind[:, None], rng.normal(0, 0.7, N_GENES), 0.0)
    eta = eta + sd * rng.normal(size=(2 * n_donors, N_GENES))[unit] + (treated & (kind == 0))[:, None] * change
    if paired:
        eta = eta + rng.normal(size=(n_donors, N_GENES))[donor]
    mean = np.exp(eta) / np.exp(eta).sum(1, keepdims=True) * rng.lognormal(6.5, 0.4, len(donor))[:, None]
    counts = rng.poisson(mean * rng.gamma(3.0, 1 / 3.0, mean.shape)).astype(np.float32)
    obs = pd.DataFrame(
        {
            "condition": np.array(["control", "treated"])[treated.astype(int)],
            "donor": [f"d{i}" for i in donor],
            "type": np.array(["T/NK", "B"])[kind],
        },
        index=[f"cell_{i}" for i in range(len(donor))],
    ).astype("category")
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs)
    adata.var["change"] = change / np.log(2.0)
    return adata


@pytest.fixture(scope="module")
def fitted():
    adata = of_donors()
    return adata, scvae.fit(adata, rng=0, **QUICK)


OPTIONS = {"groupby": "condition", "reference": "control", "sample_key": "donor"}


def table_of(adata, group="treated"):
    record = adata.uns["rank_genes_groups"]
    names = [name for name in record if name not in ("params", "pts", "pts_rest")]
    return pd.DataFrame({name: record[name][group] for name in names}).set_index("names")


def test_planted_changes_are_found_in_the_type_that_has_them_and_nothing_is_called_elsewhere(fitted, tmp_path):
    adata, model = fitted
    scvae.tl.rank_genes(adata, model, within="type", **OPTIONS)
    found = table_of(adata, "T/NK, treated").loc[model.genes]
    truth = adata.var.loc[model.genes, "change"].to_numpy()
    called = (found["pvals_adj"] <= 0.1).to_numpy()
    assert called[truth != 0].mean() > 0.6
    assert (truth[called] == 0).mean() < 0.2
    hits = called & (truth != 0)
    assert (np.sign(found["logfoldchanges"]) == np.sign(truth))[hits].all()
    assert np.abs(found["logfoldchanges"] - truth)[hits].mean() < 0.5
    assert found["lfsr"][hits].mean() < 0.2
    assert found["lfsr"][truth == 0].mean() > 0.5
    assert found["donor_sd"].median() == pytest.approx(0.3 / np.log(2), rel=0.3)
    assert (table_of(adata, "B, treated")["pvals_adj"] > 0.1).all()
    # zarr's compressor takes no ":" in names
    assert adata.uns["rank_genes_groups"]["names"].dtype.names == ("B, treated", "T/NK, treated")
    params = adata.uns["rank_genes_groups"]["params"]
    assert params["n_donors"].tolist() == params["n_donors_reference"].tolist() == [4, 4]
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(sc.get.rank_genes_groups_df(again, None), sc.get.rank_genes_groups_df(adata, None))


def test_halves_of_donors_are_called_by_cells_and_not_by_donors(fitted):
    adata, model = fitted
    some = adata[adata.obs["condition"] == "control"].copy()
    some.obs["half"] = np.where(some.obs["donor"].isin(["d1", "d3"]), "one", "two")
    scvae.tl.rank_genes(some, model, groupby="half", sample_key="donor")
    assert (table_of(some, "one")["pvals_adj"] > 0.1).all()
    with pytest.warns(UserWarning, match=r"adata.obs\['donor'\] looks like donors.*pass sample_key='donor'"):
        scvae.tl.rank_genes(some, model, groupby="half")
    assert (table_of(some, "one")["pvals_adj"] < 0.05).sum() > 20


@pytest.mark.parametrize("batch_key", [None, "donor"])
def test_both_conditions_in_each_donor_are_paired_so_that_donors_may_differ_widely(batch_key):
    adata = of_donors(1, n_donors=4, paired=True, cells=100, sd=0.1)
    model = scvae.fit(adata, rng=0, batch_key=batch_key, **QUICK)
    kept = adata[adata.obs["type"] == "T/NK"].copy()
    scvae.tl.rank_genes(kept, model, **OPTIONS)
    truth = adata.var.loc[table_of(kept).index, "change"].to_numpy()
    called = (table_of(kept)["pvals_adj"] <= 0.1).to_numpy()
    assert kept.uns["rank_genes_groups"]["params"]["paired"].tolist() == [True]
    assert called[truth != 0].mean() > 0.5
    assert (truth[called] == 0).mean() < 0.25


def test_a_batch_of_each_donor_is_taken_and_a_condition_that_is_a_batch_is_refused(fitted, digest):
    adata, _ = fitted
    some = adata.copy()
    some.obs["run"] = some.obs["condition"].map({"control": "r1", "treated": "r2"}).astype("category")
    confounded = scvae.fit(some, rng=0, batch_key="run", **QUICK)
    before = digest(some)
    with pytest.raises(
        ValueError, match="'treated' left out: group and batch are confounded: no batch has donors of both"
    ):
        scvae.tl.rank_genes(some, confounded, **OPTIONS)
    assert digest(some) == before
    own = scvae.fit(some, rng=0, batch_key="donor", **QUICK)
    scvae.tl.rank_genes(some, own, **OPTIONS)
    assert some.uns["rank_genes_groups"]["params"]["n_donors"].tolist() == [4]


def test_types_that_too_few_donors_have_and_donors_on_one_side_are_named(fitted):
    adata, model = fitted
    some = adata[(adata.obs["type"] == "B") | adata.obs["donor"].isin(["d0", "d1", "d2"])].copy()
    with pytest.warns(
        UserWarning, match="'T/NK, treated' left out: the reference has at least 2 cells of 1 donor.*'d1'"
    ):
        scvae.tl.rank_genes(some, model, within="type", **OPTIONS)
    assert adata.obs["type"].cat.categories.tolist() == ["B", "T/NK"]
    assert some.uns["rank_genes_groups"]["names"].dtype.names == ("B, treated",)


def test_a_threshold_a_few_genes_and_cells_without_a_donor(fitted):
    adata, model = fitted
    some = adata.copy()
    some.obs["donor"] = some.obs["donor"].where(np.arange(some.n_obs) % 5 > 0)
    tables = []
    for threshold in (0.0, 1.0):
        scvae.tl.rank_genes(some, model, lfc_threshold=threshold, **OPTIONS)
        tables.append(table_of(some).loc[model.genes, "pvals"])
    assert (tables[1] >= tables[0] - 1e-9).all()
    assert some.uns["rank_genes_groups"]["params"]["n_cells"][0] < 0.85 * (adata.obs["condition"] == "treated").sum()
    scvae.tl.rank_genes(some, model, n_genes=3, min_counts=1e9, **OPTIONS)
    assert (table_of(some)[["pvals", "pvals_adj", "lfsr"]] == 1).all(axis=None)
    assert len(table_of(some)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sample_key": "doner"}, "no 'doner'.*did you mean 'donor'"),
        ({"sample_key": "condition"}, "groupby and sample_key are both 'condition'"),
        ({"within": "donor"}, "sample_key and within are both 'donor'"),
        ({"sample_key": "number"}, "float64; pass a column of categories"),
        ({"sample_key": "one"}, r"adata.obs\['one'\] has 1 donor\(s\), 'x'"),
        ({"sample_key": "condition_donor"}, "has at least 2 cells of 1 donor"),
    ],
)
def test_wrong_columns_are_refused_and_nothing_is_written(fitted, digest, options, message):
    adata, model = fitted
    some = adata.copy()
    some.obs["number"], some.obs["one"] = 0.5, "x"
    some.obs["condition_donor"] = "all " + some.obs["condition"].astype(str)
    before = digest(some)
    with pytest.raises(ValueError, match=message):
        scvae.tl.rank_genes(some, model, **(OPTIONS | options))
    assert digest(some) == before


@pytest.mark.parametrize(
    ("name", "values", "warns"),
    [
        ("PatientID", 4, True), ("sample", 4, True), ("mouse.id", 4, True), ("Subject", 4, True),
        ("resample_weight", 4, False), ("batch", 4, False), ("sample_barcode", 480, False),
        ("donor_of_group", 2, False),
    ],
)  # fmt: skip
def test_only_columns_of_several_donors_in_each_group_are_taken_for_donors(fitted, recwarn, name, values, warns):
    adata, model = fitted
    some = adata.copy()
    del some.obs["donor"]
    some.obs[name] = [f"v{i % values}" for i in range(some.n_obs)]
    if values == 2:
        some.obs[name] = some.obs["condition"].astype(str)
    scvae.tl.rank_genes(some, model, groupby="condition", n_genes=5)
    assert [f"adata.obs[{name!r}] looks like donors" in str(w.message) for w in recwarn] == [True] * warns
