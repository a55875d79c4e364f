"""One rule for the names of categories: in one AnnData, in several files, and in later cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import scvae
from scvae import TrainingConfig
from scvae.data.covariates import widened
from scvae.data.intake import read_query
from scvae.data.schema import Categorical, Schema
from tests.data.reading import read_fit

SHORT = {"n_latent": 2, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=2)}
KEYS = {"layer": None, "mask_var": None, "batch_key": "donor", "covariate_keys": (), "size_factor_key": None}


def cells(donor, seed=0):
    counts = np.random.default_rng(seed).poisson(2.0, (len(donor), 5)).astype(np.float32) + 1
    names = [f"cell{i}" for i in range(len(donor))]
    return ad.AnnData(counts, obs=pd.DataFrame({"donor": donor}, index=names))


def mixed(*values):
    """An object column, in which each value keeps its type."""
    return pd.array(np.array(values, dtype=object), dtype=object)


def fitted(donor):
    return read_fit(cells(donor), kind="counts", **KEYS)


@pytest.mark.parametrize(
    ("of_fit", "later"),
    [
        ([7, 7], [7.0, 7.0]),
        ([7.0, 7.0], ["7", "7"]),
        (["7.0", "7.0"], [7, 7]),
        (["7", "7"], pd.Categorical([7.0, 7.0])),
        ([-3, -3], pd.array([-3, -3], dtype="Int64").astype("Float64")),
        ([0.0, 0.0], [-0.0, -0.0]),
        ([10**16] * 2, [1e16] * 2),
        (np.array([0.1, 0.1], np.float32), ["0.1", "0.1"]),
        ([0.1, 0.1], np.array([0.1, 0.1], np.float32)),
        ([True, True], ["True", "True"]),
    ],
)
def test_a_number_is_one_category_however_it_is_stored(of_fit, later):
    schema, _ = fitted(of_fit)
    again = Schema.from_json(schema.to_json())
    assert read_query(cells(later), again).codes[:, 0].tolist() == [0, 0]
    assert widened(cells(later), again, mapped=True) == schema


@pytest.mark.parametrize(
    ("of_fit", "later"),
    [
        ("S7.0", "S7"),
        ("run 3", "run 3.0"),
        ("10.1-2", "10.1-2.0"),
        ("007", "7"),
        ("7", "007"),
        ("1e3", "1000"),
        ("1E3", "1000.0"),
        ("7.00", "7"),
        ("1_0", "10"),
        (" S7", "S7"),
        ("s7", "S7"),
        ("+7", "7"),
        ("True", "1"),
        (" 7", "7"),
    ],
)
def test_other_text_is_a_name_that_must_agree_to_the_letter(of_fit, later):
    schema, _ = fitted([of_fit] * 2)
    with pytest.raises(ValueError, match=f"'donor'.* has '{later}' in 2 of 2 cells, unknown to the model"):
        read_query(cells([later] * 2), schema)
    if of_fit != "True":
        assert widened(cells([later] * 2), schema, mapped=True).batch.mapped == (later,)


def test_a_column_of_several_types_is_read_by_the_model_made_of_it():
    adata = cells(mixed(2.0, "10", 2, "2", "P", 10.0, "P", np.int64(10)))
    model = scvae.fit(adata, batch_key="donor", **SHORT)
    assert model.schema.batch.categories == ("10", "2", "P")
    assert read_query(adata, model.schema).codes[:, 0].tolist() == [1, 0, 1, 1, 2, 0, 2, 0]
    assert scvae.tl.embed(adata, model, copy=True).obsm["X_scvae"].tobytes() == adata.obsm["X_scvae"].tobytes()


@pytest.mark.parametrize(
    "donor", [mixed(True, 1, True, 1), mixed(0, False, 0, False), ["False", "1.0", "False", "1.0"]]
)
def test_truth_values_next_to_numbers_are_refused(donor):
    with pytest.raises(ValueError, match=r"adata.obs\['donor'\] mixes types: '\w+' and '[01.]+' may mean the same"):
        fitted(donor)


def test_truth_values_are_not_learnt_as_new_batches_next_to_numbers():
    schema, _ = fitted([0, 1, 0, 1])
    with pytest.raises(ValueError, match=r"mixes types: 'False', 'True' and '0', '1' may mean the same"):
        widened(cells([True, False, True, False]), schema, mapped=True)


def test_the_text_of_a_missing_value_is_told_where_it_is_learnt():
    with pytest.warns(UserWarning, match=r"'donor'\] has the category 'nan', which is how pandas writes missing"):
        schema, _ = fitted(["nan", "a", "nan", "a"])
    assert len(read_query(cells(["nan", "a"]), schema)) == 2
    with pytest.raises(ValueError, match="1 missing values"):
        read_query(cells([np.nan, "a"]), schema)


def test_a_model_that_tells_numbers_by_their_type_still_does():
    adata = cells(["1", "1.0", "2"])
    schema = Schema(tuple(adata.var_names), "counts", None, Categorical("donor", ("1", "1.0", "2.0")), (), (), None)
    assert read_query(adata, schema).codes[:, 0].tolist() == [0, 1, 2]
    assert read_query(cells(mixed(1, 1.0, 2)), schema).codes[:, 0].tolist() == [0, 1, 2]


def test_categories_named_in_arguments_follow_the_rule():
    adata = cells([1.0, 2.0] * 10)
    model = scvae.fit(adata, batch_key="donor", **SHORT)
    for name in ("2", "2.0", 2):
        scvae.tl.denoise(adata, model, transform_batch=name, key_added=f"as {name!r}")
    one, *others = (adata.layers[key] for key in adata.layers)
    assert len(others) == 2
    for other in others:
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=r"names '1', '1\.0'; name one or several batches, each once"):
        scvae.tl.denoise(adata, model, transform_batch=["1", "1.0"])
    with pytest.raises(ValueError, match="transform_batch has '3', unknown to the model"):
        scvae.tl.denoise(adata, model, transform_batch=3)


@pytest.fixture
def files(tmp_path):
    """Writes one file for each column of donors, and gives their paths."""

    def written(*donors):
        paths = [tmp_path / f"{name}.h5ad" for name in "abc"[: len(donors)]]
        for seed, (path, donor) in enumerate(zip(paths, donors, strict=True)):
            cells(donor, seed).write_h5ad(path)
        return paths

    return written


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        ([1.0, 2.0] * 5, ["2", "1"] * 5, ("1", "2")),
        (["1", "2"] * 5, pd.Categorical([2.0, 1.0] * 5), ("1", "2")),
        ([1, 2] * 5, [2.0, 1.0] * 5, ("1.0", "2.0")),
        (["1.0", "2.0"] * 5, ["2", "1"] * 5, ("1", "2")),
        ([1.0, 2.0] * 5, ["P", "1"] * 5, ("1", "2", "P")),
        (pd.Categorical([2, 10] * 5), pd.Categorical([10, 3] * 5), ("2", "3", "10")),
    ],
)
def test_a_donor_is_one_batch_whatever_its_type_in_each_file(files, tmp_path, first, second, names):
    paths = files(first, second)
    model = scvae.fit(paths, batch_key="donor", **SHORT)
    assert model.schema.batch.categories == names
    for path in paths:
        fitted_to = ad.read_h5ad(path)
        scvae.tl.embed(fitted_to, model, key_added="again")
        np.testing.assert_allclose(fitted_to.obsm["X_again"], fitted_to.obsm["X_scvae"], rtol=1e-5, atol=1e-6)
    together = scvae.tl.embed(paths, model, copy=True)
    together.write_h5ad(tmp_path / "together.h5ad")  # a column of several types could not be written


def test_truth_values_in_one_file_and_numbers_in_another_are_refused(files):
    paths = files([True, False] * 5, [1, 0] * 5)
    with pytest.raises(ValueError, match=r"'donor'\] mixes types: 'False', 'True' and '0', '1' may mean the same"):
        scvae.fit(paths, batch_key="donor", **SHORT)


def test_categories_that_are_numbers_stay_categories_where_they_differ_between_files(files):
    paths = files(pd.Categorical([1, 2] * 5), pd.Categorical([2, 3] * 5))
    model = scvae.fit(paths, covariate_keys="donor", **SHORT)
    assert model.schema.categorical == (Categorical("donor", ("1", "2", "3")),)


def test_missing_values_in_a_file_stay_missing(files):
    paths = files([1.0, np.nan] * 5, ["1", "2"] * 5)
    with pytest.raises(ValueError, match=r"'donor'\] has 5 missing values \(the first at cell 'cell1-a'\)"):
        scvae.fit(paths, batch_key="donor", **SHORT)
    with pytest.raises(ValueError, match=r"'donor'\] has 5 missing values"):
        scvae.tl.highly_variable_genes(paths, batch_key="donor", n_top_genes=2)
