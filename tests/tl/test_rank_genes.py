"""`tl.rank_genes`: planted changes are found, nothing else is called, and scanpy reads the result."""

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import scanpy as sc
from scipy import sparse

import scvae
from scvae import NetworkConfig, TrainingConfig

QUICK = {"network": NetworkConfig(width=16), "training": TrainingConfig(epochs=8), "n_latent": 4, "verbose": False}


def planted(seed=0, *, n_cells=200, changed=0.1, shares=(0.5, 0.5), n_genes=300):
    """Two groups with a tenth of the genes changed threefold, over two batches in which all genes differ."""
    rng = np.random.default_rng(seed)
    group = np.arange(2 * n_cells) % 2
    batch = (rng.random(2 * n_cells) < np.asarray(shares)[group]).astype(int)
    is_changed = rng.random(n_genes) < changed
    change = np.where(is_changed, np.log(3.0) * rng.choice([-1, 1], n_genes), 0.0)
    rate = rng.normal(0, 1, n_genes) + group[:, None] * change + batch[:, None] * rng.normal(0, 0.5, n_genes)
    mean = np.exp(rate) / np.exp(rate).sum(1, keepdims=True) * rng.lognormal(6.5, 0.4, 2 * n_cells)[:, None]
    counts = rng.poisson(mean * rng.gamma(3.0, 1 / 3.0, mean.shape)).astype(np.float32)
    obs = {"group": np.array(["b", "a"])[group], "batch": np.array(["x", "y"])[batch]}
    names = [f"cell_{i}" for i in range(2 * n_cells)]
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=pd.DataFrame(obs, index=names).astype("category"))
    adata.var["change"] = change / np.log(2.0)
    return adata


@pytest.fixture(scope="module")
def fitted():
    adata = planted()
    return adata, scvae.fit(adata, rng=0, **QUICK)


def table_of(adata, group="a"):
    return sc.get.rank_genes_groups_df(adata, group).set_index("names")


def test_planted_changes_are_found_with_their_sign_and_size_and_few_others_are_called(fitted):
    adata, model = fitted
    scvae.tl.rank_genes(adata, model, groupby="group", reference="b")
    table = table_of(adata).loc[model.genes]
    truth = adata.var.loc[model.genes, "change"].to_numpy()
    called = (table["pvals_adj"] <= 0.05).to_numpy()
    assert called[truth != 0].mean() > 0.8
    assert (truth[called] == 0).mean() < 0.15
    hits = called & (truth != 0)
    assert (np.sign(table["logfoldchanges"]) == np.sign(truth))[hits].all()
    assert np.abs(table["logfoldchanges"] - truth)[hits].mean() < 0.4
    assert table_of(adata).index[0] in set(adata.var_names[adata.var["change"] > 0])


def test_a_batch_effect_confounded_in_proportion_is_not_called():
    adata = planted(1, changed=0.0, shares=(0.8, 0.2))
    model = scvae.fit(adata, rng=0, batch_key="batch", **QUICK)
    scvae.tl.rank_genes(adata, model, groupby="group", reference="b")
    assert (table_of(adata)["pvals_adj"] <= 0.1).sum() == 0
    blind = scvae.fit(adata, rng=0, **QUICK)
    scvae.tl.rank_genes(adata, blind, groupby="group", reference="b")
    assert (table_of(adata)["pvals_adj"] <= 0.1).sum() > 50  # it is large enough to be seen


def test_five_cells_a_gene_without_counts_and_cells_without_a_group_are_no_trouble(fitted):
    adata, model = fitted
    some = adata.copy()
    some.obs["few"] = pd.Categorical(["few"] * 5 + ["many"] * 300 + [None] * 95)
    counts = some.X.toarray()
    counts[:305, :3] = 0
    some.X = sparse.csr_matrix(counts)
    scvae.tl.rank_genes(some, model, groupby="few")
    table = table_of(some, "few")
    assert np.isfinite(table.to_numpy(dtype=float)).all()
    assert (table.loc[some.var_names[:3], ["pvals", "pvals_adj"]] == 1).all(axis=None)
    assert (table["pvals_adj"] <= 0.05).sum() <= 3


def test_scanpy_reads_writes_and_draws_the_result(fitted, tmp_path):
    adata, model = fitted
    scvae.tl.rank_genes(adata, model, groupby="group")
    record = adata.uns["rank_genes_groups"]
    assert list(record["names"].dtype.names) == ["a", "b"]
    assert record["params"]["reference"] == "rest"
    assert (np.diff(record["scores"]["a"]) <= 0).all()
    adata.write_h5ad(tmp_path / "cells.h5ad")
    again = ad.read_h5ad(tmp_path / "cells.h5ad")
    pd.testing.assert_frame_equal(sc.get.rank_genes_groups_df(again, None), sc.get.rank_genes_groups_df(adata, None))
    mpl.use("agg")
    sc.pl.rank_genes_groups(adata, n_genes=5, show=False)
    mpl.pyplot.close("all")


def test_a_threshold_calls_no_gene_that_none_would_not(fitted):
    adata, model = fitted
    tables = []
    for threshold in (0.0, 3.0):
        scvae.tl.rank_genes(adata, model, groupby="group", reference="b", lfc_threshold=threshold)
        tables.append(table_of(adata).loc[model.genes, "pvals"])
    assert (tables[1] >= tables[0] - 1e-9).all()
    assert (tables[1] > tables[0] + 0.5).any()


def test_groups_of_a_subset_are_those_of_the_whole(fitted):
    adata, model = fitted
    types = adata.copy()
    types.obs["three"] = np.array(["p", "q", "r"])[np.arange(types.n_obs) % 3]
    scvae.tl.rank_genes(types, model, groupby="three", key_added="all")
    scvae.tl.rank_genes(types, model, groupby="three", groups=["q"], n_genes=7, key_added="one")
    np.testing.assert_array_equal(types.uns["all"]["names"]["q"][:7], types.uns["one"]["names"]["q"])
    np.testing.assert_allclose(types.uns["all"]["pvals"]["q"][:7], types.uns["one"]["pvals"]["q"])


def test_a_copy_leaves_the_data_alone_and_genes_are_found_by_name(fitted, digest):
    adata, model = fitted
    before = digest(adata)
    there = scvae.tl.rank_genes(adata, model, groupby="group", key_added="new", copy=True)
    assert digest(adata) == before
    back = scvae.tl.rank_genes(adata[:, ::-1].copy(), model, groupby="group", key_added="new", copy=True)
    np.testing.assert_array_equal(there.uns["new"]["scores"]["a"], back.uns["new"]["scores"]["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groupby": "grup"}, "adata.obs has no 'grup'.*did you mean 'group'"),
        ({"groups": ["c"]}, "groups has 'c'.*it has 'a', 'b'"),
        ({"groups": "a"}, "pass 'all' or a list"),
        ({"groups": []}, "at least one group"),
        ({"reference": "c"}, "reference is 'c'"),
        ({"groups": ["a"], "reference": "a"}, "'a' is both the reference and in groups"),
        ({"groupby": "lonely"}, "group 'one' of adata.obs\\['lonely'\\] has 1 cell"),
        ({"groupby": "same"}, "at least two are needed"),
        ({"groupby": "number"}, "float64; pass a column of categories"),
        ({"lfc_threshold": -1.0}, "lfc_threshold"),
        ({"n_genes": 0}, "n_genes"),
        ({"beta": 3.0}, "trained at β = 1 alone"),
        ({"key_added": "a/b"}, "key_added"),
        ({"key_added": "taken"}, r"adata.uns\['taken'\] is not a ranking of genes; pass another key_added"),
        ({"groupby": "twice"}, r"adata.obs\['twice'\] has several values with the same text '1'; rename all but one"),
    ],
)
def test_wrong_input_is_refused_and_nothing_is_written(fitted, digest, options, message):
    adata, model = fitted
    some = adata.copy()
    some.obs["lonely"] = pd.Categorical(["one"] + ["other"] * (some.n_obs - 1))
    some.obs["same"], some.obs["number"] = "s", 0.5
    some.obs["twice"] = pd.Categorical([1, "1"] * (some.n_obs // 2))
    some.uns["taken"] = {"params": {}}
    before = digest(some)
    with pytest.raises(ValueError, match=message):
        scvae.tl.rank_genes(some, model, **{"groupby": "group"} | options)
    assert digest(some) == before


def test_a_head_without_proportions_is_refused():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=10, likelihood="gaussian", truth=False)
    model = scvae.fit(adata, likelihood="gaussian", rng=0, **QUICK)
    with pytest.raises(ValueError, match=r"rank_genes is for counts.*'gaussian'"):
        scvae.tl.rank_genes(adata, model, groupby="cell_type")


def test_the_cells_compared_are_those_of_batches_that_hold_both_sides():
    """Of three batches the last has one group only: its cells say nothing of a difference, and count nowhere."""
    adata = planted(2, n_genes=30)
    adata.obs["batch"] = adata.obs["batch"].astype(str)
    is_b = (adata.obs["group"] == "b").to_numpy()
    adata.obs.loc[adata.obs_names[np.flatnonzero(is_b)[:50]], "batch"] = "alone"
    model = scvae.fit(adata, rng=0, batch_key="batch", **QUICK)
    scvae.tl.rank_genes(adata, model, groupby="group")
    found = adata.uns["rank_genes_groups"]
    shared = (adata.obs["batch"] != "alone").to_numpy()
    assert found["params"]["n_cells"].tolist() == [(~is_b).sum(), (is_b & shared).sum()]
    assert found["params"]["n_cells_reference"].tolist() == found["params"]["n_cells"][::-1].tolist()
    share = np.asarray((adata[is_b & shared].X > 0).mean(0)).ravel()
    np.testing.assert_allclose(found["pts_rest"]["a"], pd.Series(share, adata.var_names)[found["pts_rest"].index])


def test_conditions_that_share_no_donor_are_refused_with_a_pointer_to_donors_as_the_sample():
    adata = planted(2, shares=(0.0, 1.0), n_genes=30)
    model = scvae.fit(adata, rng=0, batch_key="batch", **QUICK)
    for options in ({}, {"groups": ["a"], "reference": "b"}):
        with pytest.raises(ValueError, match=r"no batch .*'batch'.* has two cells of .*they are the sample") as error:
            scvae.tl.rank_genes(adata, model, groupby="group", **options)
        assert "pass sample_key='batch'" in str(error.value)
        assert "without batch_key" not in str(error.value)  # which would count donors' differences as changes
    assert "rank_genes_groups" not in adata.uns


def test_groups_that_cannot_be_compared_are_left_out_by_name_and_the_others_are_as_without_them():
    adata = planted(3, n_genes=30)
    model = scvae.fit(adata, rng=0, batch_key="batch", **QUICK)
    adata.obs["type"] = np.array(["p", "q"])[np.arange(adata.n_obs) // 2 % 2]
    first = adata.obs["batch"].drop_duplicates().index  # a cell of each batch
    adata.obs.loc[first, "type"] = "pair"
    adata.obs.loc[adata.obs_names[-1], "type"] = "alone"
    with pytest.warns(UserWarning, match=r"'alone', 'pair' left out: group 'alone' of .*'type'.* has 1 cell; no batch"):
        scvae.tl.rank_genes(adata, model, groupby="type")
    found = adata.uns["rank_genes_groups"]
    assert found["names"].dtype.names == ("p", "q")
    assert len(found["params"]["n_cells"]) == 2
    scvae.tl.rank_genes(adata, model, groupby="type", groups=["p", "q"], key_added="named")
    tables = [sc.get.rank_genes_groups_df(adata, None, key=key) for key in ("rank_genes_groups", "named")]
    pd.testing.assert_frame_equal(*tables)
    for options, message in (  # what is named is not left out
        ({"groups": ["p", "alone"]}, "group 'alone' of .* has 1 cell"),
        ({"groups": ["p", "pair"]}, "two cells of 'pair' and two of 'rest'"),
        ({"reference": "alone"}, "group 'alone' of .* has 1 cell"),
        ({"reference": "pair"}, "and two of 'pair'"),
    ):
        with pytest.raises(ValueError, match=message):
            scvae.tl.rank_genes(adata, model, groupby="type", **options)


def test_genes_that_nobody_measured_are_not_ranked(fitted):
    adata, model = fitted
    order = np.argsort(-np.asarray(adata.X.sum(0)).ravel())
    some = adata[:, np.sort(order[20:])].copy()
    for least in (0, 10):
        with pytest.warns(UserWarning, match="280 of the 300"):
            scvae.tl.rank_genes(some, model, groupby="group", min_counts=least)
        table = table_of(some)
        assert sorted(table.index) == sorted(some.var_names)
        assert set(some.uns["rank_genes_groups"]["pts"].index) == set(some.var_names)
    called = set(table.index[table["pvals_adj"] < 0.05])
    changed = set(some.var_names[some.var["change"] != 0])
    assert len(called - changed) <= 0.1 * len(called)
    assert len(called & changed) > 0.3 * len(changed)


def test_a_column_of_numbers_names_its_reference_by_number(fitted):
    adata, model = fitted
    adata = adata.copy()
    adata.obs["number"] = adata.obs["group"].cat.codes.astype(int)
    scvae.tl.rank_genes(adata, model, groupby="number", groups=[0], reference=1)
    assert adata.uns["rank_genes_groups"]["params"]["reference"] == "1"


def test_what_names_no_group_or_column_is_refused_by_its_name(fitted):
    adata, model = fitted
    adata = adata.copy()
    adata.uns.pop("rank_genes_groups", None)
    adata.obs["unnamed"] = adata.obs["group"].astype(str).replace("a", "")
    for options, error, message in (
        ({"groupby": "group", "groups": None}, ValueError, "groups is None; pass 'all' or a list"),
        ({"groupby": ["group"]}, TypeError, r"adata\.obs: \['group'\] is a list; pass the name of one column"),
        ({"groupby": "unnamed"}, ValueError, "a group without a name"),
    ):
        with pytest.raises(error, match=message):
            scvae.tl.rank_genes(adata, model, **options)
    assert "rank_genes_groups" not in adata.uns
