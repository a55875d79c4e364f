"""Labels of a fit: which cells have one, and columns that cannot be one."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvae.common.checks import MissingKeyError
from scvae.data.labels import Labels, learn_labels


def adata_with(values):
    obs = pd.DataFrame({"type": values}, index=[f"cell {i}" for i in range(len(values))], dtype=object)
    return ad.AnnData(np.ones((len(values), 2), np.float32), obs=obs)


def test_missing_values_and_the_value_for_unlabelled_are_cells_without_a_label():
    adata = adata_with(["b", "a", np.nan, "?", "a", None])
    labels = learn_labels(adata, "type", "?", 2.0)
    assert labels == Labels("type", ("a", "b"), "?", 2.0)
    assert labels.codes(adata).tolist() == [1, 0, -1, -1, 0, -1]


def test_text_of_numbers_is_one_label_however_it_is_stored():
    adata = adata_with(["1", 1, 1.0, "2"])
    labels = learn_labels(adata, "type", None, 1.0)
    assert labels.names == ("1", "2")
    assert labels.codes(adata).tolist() == [0, 0, 0, 1]


def test_new_labels_come_after_those_that_are_known():
    known = learn_labels(adata_with(["b", "c"]), "type", None, 1.0)
    assert learn_labels(adata_with(["a", "c"]), "type", None, 1.0, known).names == ("b", "c", "a")


@pytest.mark.parametrize(
    ("values", "unlabelled", "message"),
    [
        (["a", "b"], "none", "unlabelled is 'none', which no cell of adata.obs\\['type'\\] has"),
        (["a", "b", "unknown"], None, "pass unlabelled='unknown'"),
        (["a", "a"], None, "at least two labels"),
        ([np.nan, np.nan], None, "has no label: all values are missing"),
        ([f"cell {i}" for i in range(60)], None, "60 different values in 60 cells"),
    ],
)
def test_a_column_that_cannot_be_one_of_labels_gets_one_line(values, unlabelled, message):
    with pytest.raises(ValueError, match=message) as error:
        learn_labels(adata_with(values), "type", unlabelled, 1.0)
    assert "\n" not in str(error.value)


def test_numbers_are_refused_and_a_missing_column_is_named():
    adata = adata_with(["a", "b"])
    adata.obs["score"] = [0.5, 2.0]
    with pytest.raises(ValueError, match="has numbers"):
        learn_labels(adata, "score", None, 1.0)
    adata.obs["nothing"] = np.nan  # not numbers
    with pytest.raises(ValueError, match="has no label"):
        learn_labels(adata, "nothing", None, 1.0)
    with pytest.raises(MissingKeyError, match="cell_type"):
        learn_labels(adata, "cell_type", None, 1.0)


def test_a_type_without_cells_is_named_and_left_out():
    adata = adata_with(["a", "b", "a"])
    adata.obs["type"] = pd.Categorical(adata.obs["type"], categories=["a", "b", "ghost"])
    with pytest.warns(UserWarning, match="'ghost'"):
        labels = learn_labels(adata, "type", None, 1.0)
    assert labels.names == ("a", "b")


def test_labels_that_the_model_does_not_know_are_named():
    labels = Labels("type", ("a", "b"), None, 1.0)
    with pytest.raises(ValueError, match="'c', unknown to the model"):
        labels.codes(adata_with(["a", "c"]))


def test_a_record_of_labels_can_be_read_back():
    labels = Labels("type", ("a", "b"), "?", 3.0)
    assert Labels.from_json(labels.to_json()) == labels
    assert Labels.from_json(None) is None
