"""Genes by name, covariates by key, and the schema that remembers both."""

import json

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

from scvae.common.checks import MissingKeyError
from scvae.data.covariates import widened
from scvae.data.intake import read_query
from scvae.data.schema import Categorical, Numeric, Schema
from tests.data.reading import read_fit

NONE = {
    "layer": None,
    "mask_var": None,
    "batch_key": None,
    "covariate_keys": (),
    "size_factor_key": None,
    "kind": "counts",
}


def cells_and_genes(n_cells=6, n_genes=8, **columns):
    counts = np.random.default_rng(0).poisson(3.0, (n_cells, n_genes)) + 1
    obs = pd.DataFrame(columns, index=[f"cell{i}" for i in range(n_cells)])
    return ad.AnnData(counts.astype(np.float32), obs=obs, var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]))


def fit(adata, **options):
    return read_fit(adata, **{**NONE, **options})


@pytest.mark.parametrize(
    ("values", "categories", "codes"),
    [
        (["b", "a", "b", "c", "a", "c"], ("a", "b", "c"), [1, 0, 1, 2, 0, 2]),
        (pd.Categorical(list("babcac"), categories=list("cxba")), ("c", "b", "a"), [1, 2, 1, 0, 2, 0]),
        ([True, False, True, False, False, True], ("False", "True"), [1, 0, 1, 0, 0, 1]),
        ([10, 9, 10, 2, 9, 2], ("2", "9", "10"), [2, 1, 2, 0, 1, 0]),
        (np.array([0.1, 0.2] * 3, dtype=np.float32), None, [0, 1, 0, 1, 0, 1]),
        (pd.array([3, 1, 3, 1, 3, 1], dtype="Int64"), ("1", "3"), [1, 0, 1, 0, 1, 0]),
        (pd.array(["y", "x"] * 3, dtype="string"), ("x", "y"), [1, 0, 1, 0, 1, 0]),
    ],
)
def test_a_batch_is_read_as_categories(values, categories, codes):
    adata = cells_and_genes()
    adata.obs["batch"] = values
    schema, cells = fit(adata, batch_key="batch")
    if categories is not None:
        assert schema.batch == Categorical("batch", categories)
    assert cells.codes.dtype == np.int64
    assert cells.codes[:, 0].tolist() == codes
    assert cells.batch(np.array([5, 0])).group.tolist() == [codes[5], codes[0]]
    assert read_query(adata, schema).codes.tolist() == cells.codes.tolist()


def test_covariates_are_sorted_into_categories_and_numbers():
    age = np.array([20.0, 30, 40, 50, 60, 70])
    adata = cells_and_genes(sex=list("mfmfmf"), age=age, lane=[1, 1, 2, 2, 3, 3], depth=[7] * 6, batch=list("aabbab"))
    schema, cells = fit(adata, batch_key="batch", covariate_keys=["age", "sex", "lane", "depth"])
    assert [column.key for column in schema.categoricals] == ["batch", "sex"]
    assert [column.key for column in schema.numeric] == ["age", "lane", "depth"]
    assert schema.n_conditions == 2 + 2 + 3
    assert cells.numeric.dtype == np.float32
    np.testing.assert_allclose(cells.numeric[:, 0], (age - 45) / np.sqrt(np.mean((age - 45) ** 2)), rtol=1e-6)
    np.testing.assert_array_equal(cells.numeric[:, 2], 0)  # a constant column
    assert schema.numeric[2] == Numeric("depth", 7.0, 1.0)


def test_a_query_is_standardised_with_the_numbers_of_the_fit():
    schema, _ = fit(cells_and_genes(age=np.arange(6.0)), covariate_keys="age")
    query = cells_and_genes(n_cells=2, age=[30.0, 2.5])
    np.testing.assert_allclose(read_query(query, schema).numeric[:, 0], [27.5 / np.sqrt(35 / 12), 0], rtol=1e-6)


def test_a_query_may_hold_one_category_in_another_type():
    schema, _ = fit(cells_and_genes(batch=pd.Categorical(list("aabbcc"))), batch_key="batch")
    assert read_query(cells_and_genes(n_cells=2, batch=["c", "b"]), schema).codes[:, 0].tolist() == [2, 1]


def test_an_unknown_category_is_refused_with_the_possible_ones():
    schema, _ = fit(cells_and_genes(batch=list("aabbcc")), batch_key="batch")
    with pytest.raises(ValueError, match=r"obs\['batch'\] has 'z' in 2 of 6 cells.*it knows 'a', 'b', 'c'"):
        read_query(cells_and_genes(batch=list("zabzcc")), schema)
    with pytest.raises(MissingKeyError, match=r"adata.obs has no 'batch'; it has 'bach'; did you mean 'bach'\?"):
        read_query(cells_and_genes(bach=list("aabbcc")), schema)


@pytest.mark.parametrize("values", [["a", None, "b", "a", "b", None], [1.0, np.nan, 2, 1, 2, np.nan]])
@pytest.mark.parametrize("option", ["batch_key", "covariate_keys"])
def test_missing_values_are_counted_and_placed(values, option):
    with pytest.raises(ValueError, match=r"adata.obs\['c'\] has 2 missing values \(the first at cell 'cell1'\)"):
        fit(cells_and_genes(c=values), **{option: "c"})


def test_an_infinite_covariate_is_refused():
    with pytest.raises(ValueError, match=r"adata.obs\['c'\] is infinite at cell 'cell2'"):
        fit(cells_and_genes(c=[0, 1, np.inf, 2, 3, 4]), covariate_keys="c")


def test_dates_are_refused():
    with pytest.raises(ValueError, match="pass a column of categories or numbers"):
        fit(cells_and_genes(c=pd.date_range("2020-01-01", periods=6)), covariate_keys="c")


def test_a_key_named_twice_is_refused():
    adata = cells_and_genes(a=list("aabbab"))
    with pytest.raises(ValueError, match="'a' is the batch_key and in covariate_keys"):
        fit(adata, batch_key="a", covariate_keys=["a"])
    with pytest.raises(ValueError, match="covariate_keys names 'a' twice"):
        fit(adata, covariate_keys=["a", "a"])


def test_categories_of_one_cell_warn_once():
    adata = cells_and_genes(batch=list("aaabbc"), sex=list("mmmmmf"))
    with pytest.warns(UserWarning, match=r"single cell.*obs\['batch'\]: 'c'; adata.obs\['sex'\]: 'f'") as seen:
        schema, _ = fit(adata, batch_key="batch", covariate_keys=["sex"])
    assert len(seen) == 1
    assert schema.n_conditions == 5


def test_size_factors_replace_the_library():
    adata = cells_and_genes()
    totals = np.asarray(adata.X.sum(1)).ravel()
    adata.obs["size"] = totals[::-1]
    schema, cells = fit(adata, size_factor_key="size")
    assert schema.size_factor_scale == 1.0
    assert cells.library.tolist() == totals[::-1].tolist()
    assert read_query(adata[3:].copy(), schema).library.tolist() == totals[::-1][3:].tolist()
    assert torch.equal(cells.batch(np.array([2])).library, torch.tensor([totals[::-1][2]]))


def test_size_factors_of_any_scale_are_brought_to_that_of_the_counts():
    adata = cells_and_genes(size=[1, 2, 3, 4, 5, 6])
    total = adata.X.sum()
    schema, cells = fit(adata, size_factor_key="size")
    np.testing.assert_allclose(cells.library, total * np.arange(1, 7) / 21, rtol=1e-6)
    # few of the cells, and those that a saved model reads, are scaled as all were
    again = Schema.from_json(schema.to_json())
    np.testing.assert_allclose(read_query(adata[4:].copy(), again).library, total * np.array([5, 6]) / 21, rtol=1e-6)


def test_numbers_far_from_those_of_the_fit_are_warned_of():
    adata = cells_and_genes(age=[30.0, 40, 50, 60, 70, 80])
    schema, _ = fit(adata, covariate_keys=["age"])
    read_query(adata, schema)
    adata.obs["age"] = [30.0, 40, 50, 60 * 365.25, 70 * 365.25, 80]
    message = r"'age'\] is more than 20 .* \(17\.08\) .* \(55\) in 2 cells \(25567\.5 at cell 'cell4'\).*check the unit"
    with pytest.warns(UserWarning, match=message):
        read_query(adata, schema)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1, 2, 0, 4, -5, 6], r"2 size factors that are not above 0 \(0 at cell 'cell2'\)"),
        ([1, 2, np.nan, 4, 5, 6], "1 missing values"),
        ([1, 2, np.inf, 4, 5, 6], "infinite at cell 'cell2'"),
        (list("abcdef"), "the model needs numbers"),
    ],
)
def test_size_factors_must_be_positive_numbers(values, message):
    with pytest.raises(ValueError, match=message):
        fit(cells_and_genes(size=values), size_factor_key="size")


def test_size_factors_of_real_values_are_refused():
    with pytest.raises(ValueError, match="size_factor_key has no meaning for real values"):
        fit(cells_and_genes(size=[1.0] * 6), size_factor_key="size", kind="real")


CHOSEN = np.array([0, 1, 1, 0, 0, 0, 1, 0], dtype=bool)


@pytest.mark.parametrize(
    "mask",
    [
        CHOSEN,
        CHOSEN.tolist(),
        CHOSEN.astype(object),
        pd.array(CHOSEN, dtype="boolean"),
        pd.Series(CHOSEN, index=[f"gene{i}" for i in range(8)]),
        "chosen",
    ],
)
def test_every_form_of_mask_chooses_the_same_genes(mask):
    adata = cells_and_genes()
    adata.var["chosen"] = CHOSEN
    assert fit(adata, mask_var=mask)[0].genes == ("gene1", "gene2", "gene6")


def test_highly_variable_is_the_default_mask_if_present():
    adata = cells_and_genes()
    assert len(fit(adata)[0].genes) == 8
    adata.var["highly_variable"] = CHOSEN
    assert fit(adata)[0].genes == ("gene1", "gene2", "gene6")


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (CHOSEN[:5], "mask_var has 5 values for 8 genes"),
        (CHOSEN.astype(int), "mask_var has type int64; pass True or False"),
        (np.array([True, None] * 4, dtype=object), "mask_var has 4 missing values"),
        (pd.array([True, None] * 4, dtype="boolean"), "mask_var has 4 missing values"),
        (~CHOSEN & CHOSEN, "selects none of the 8 genes"),
        (pd.Series(CHOSEN), "index is not adata.var_names"),
        ("hvg", r"adata.var has no 'hvg'; it has 'chosen'"),
    ],
)
def test_a_mask_that_cannot_be_one_is_refused(mask, message):
    adata = cells_and_genes()
    adata.var["chosen"] = CHOSEN
    with pytest.raises(ValueError, match=message):
        fit(adata, mask_var=mask)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_duplicate_names_matter_only_among_the_genes_in_use():
    adata = cells_and_genes()
    adata.var_names = ["a", "b", "c", "d", "a", "e", "f", "g"]
    with pytest.raises(
        ValueError, match=r"1 names of genes to model occur more than once .*\('a'\); call adata.var_names_make_unique"
    ):
        fit(adata)
    # the twin is not modelled, but which of the two is meant could not be told later
    adata.X[:, 4] = 0
    for mask in (None, np.arange(8) != 4):
        with pytest.raises(ValueError, match=r"1 names of genes to model occur more than once .*\('a'\)"):
            fit(adata, mask_var=mask)
    schema, _ = fit(adata, mask_var=np.arange(8) % 4 > 0)
    assert schema.genes == ("b", "c", "d", "e", "f", "g")
    assert len(read_query(adata, schema)) == 6
    adata.var_names = ["b", "b", "c", "d", "e", "f", "g", "h"]
    with pytest.raises(ValueError, match=r"1 names of genes to model occur more than once .*\('b'\)"):
        read_query(adata, schema)


def test_missing_genes_are_zero_and_reported():
    schema, _ = fit(cells_and_genes())
    query = cells_and_genes()[:, [7, 6, 5, 3, 2, 1, 0]].copy()
    with pytest.warns(UserWarning, match=r"7 of the 8 modelled genes \(87.5 %\); the 1 others .* 'gene4'") as seen:
        cells = read_query(query, schema)
    assert len(seen) == 1
    expected = cells_and_genes().X.copy()
    expected[:, 4] = 0
    np.testing.assert_array_equal(cells.batch(np.arange(6)).x.to_dense().numpy(), expected)
    np.testing.assert_array_equal(cells.library, expected.sum(axis=1))


def test_too_little_coverage_is_refused():
    adata = cells_and_genes()
    schema, _ = fit(adata)
    with pytest.raises(ValueError, match=r"3 of the 8 modelled genes \(37.5 %\), but at least half are needed"):
        read_query(adata[:, :3].copy(), schema)
    other = adata.copy()
    other.var_names = [f"ENSG{i}" for i in range(8)]
    with pytest.raises(
        ValueError, match=r"none of the 8 modelled genes: its genes are 'ENSG0'.* those of the model 'gene0'"
    ):
        read_query(other, schema)


def test_real_values_cannot_be_filled_in():
    adata = cells_and_genes()
    adata.X = adata.X / 2
    schema, _ = fit(adata, kind="real")
    with pytest.raises(ValueError, match="but real values need all of them"):
        read_query(adata[:, :7].copy(), schema)


def test_further_genes_of_a_query_make_no_difference():
    adata = cells_and_genes()
    schema, cells = fit(adata[:, 2:].copy())
    again = read_query(adata, schema)
    np.testing.assert_array_equal(again.library, cells.library)
    assert torch.equal(again.batch(np.arange(6)).x.to_dense(), cells.batch(np.arange(6)).x.to_dense())


def test_a_missing_layer_names_those_that_exist():
    adata = cells_and_genes()
    adata.layers["counts"] = adata.X
    with pytest.raises(MissingKeyError, match=r"adata.layers has no 'count'; it has 'counts'; did you mean 'counts'\?"):
        fit(adata, layer="count")


def test_a_schema_survives_json():
    schema = Schema(
        genes=("a", "β"),
        kind="binary",
        layer="counts",
        batch=Categorical("batch", ("1", "2")),
        categorical=(Categorical("sex", ("f", "m")),),
        numeric=(Numeric("age", 1 / 3, 2.5),),
        size_factor_key=None,
    )
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema
    bare = Schema(("a",), "counts", None, None, (), (), "size")
    assert Schema.from_json(json.loads(json.dumps(bare.to_json()))) == bare
    assert bare.n_conditions == 0


def test_the_schema_of_a_fit_is_plain_enough_for_json():
    adata = cells_and_genes(batch=[1, 1, 2, 2, 3, 3], age=np.arange(6, dtype=np.float32))
    schema, _ = fit(adata, batch_key="batch", covariate_keys=["age"])
    assert Schema.from_json(json.loads(json.dumps(schema.to_json()))) == schema


@pytest.mark.parametrize(("fitted", "later"), [(int, float), (float, int)])
def test_whole_numbers_name_the_same_categories_as_integers_and_as_floats(fitted, later):
    adata = ad.AnnData(np.ones((6, 2), np.float32), obs=pd.DataFrame({"b": [0, 1, 2, 0, 1, 2]}, index=list("abcdef")))
    adata.obs["b"] = adata.obs["b"].astype(fitted)
    schema, _ = read_fit(
        adata, layer=None, mask_var=None, batch_key="b", covariate_keys=(), size_factor_key=None, kind="counts"
    )
    adata.obs["b"] = adata.obs["b"].astype(later)
    assert read_query(adata, schema).codes[:, 0].tolist() == [0, 1, 2, 0, 1, 2]
    assert widened(adata, schema, mapped=True) == schema
    adata.obs["b"] = np.array([0, 1, 2, 0, 1, 7], dtype=later)
    with pytest.warns(UserWarning, match="single cell"):
        assert widened(adata, schema, mapped=True).batch.mapped == (str(later(7)),)
