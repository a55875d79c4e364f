"""Shared argument checks."""

from inspect import signature

import numpy as np
import pytest
import torch

import scvae
from scvae.common.checks import (
    MissingKeyError,
    check_adata,
    check_not_negative,
    check_positive,
    check_positive_int,
    check_probability,
    listing,
    missing_key,
)

OF_A_MODEL = {name for name in scvae.tl.__all__ if "model" in signature(getattr(scvae.tl, name)).parameters}


def test_a_missing_key_reads_as_plain_text_and_is_both_errors():
    error = missing_key("adata.obs", "bacth", ["batch", "sex"])
    assert str(error) == "adata.obs has no 'bacth'; it has 'batch', 'sex'; did you mean 'batch'?"
    assert isinstance(error, KeyError)
    assert isinstance(error, ValueError)
    assert type(error) is MissingKeyError


def test_a_long_list_is_cut():
    assert listing(range(1200), 2) == "'0', '1' and 1,198 more"
    assert listing([]) == "none"


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (check_positive_int, [1, np.int32(7), np.array(7), torch.tensor(7)], [0, -1, np.array(0)]),
        (check_not_negative, [0, 0.5, np.float32(2), torch.tensor(0.5)], [-1e-9, float("nan"), float("inf")]),
        (check_positive, [1e-9, 3], [0, -1.0, float("nan"), float("inf")]),
        (check_probability, [0, 1, 0.5], [-0.1, 1.1, float("nan")]),
    ],
)
def test_numbers_are_checked_against_their_range(check, good, bad):
    for value in good:
        assert check(value, "beta") == value
    for value in bad:
        with pytest.raises(ValueError, match="beta is"):
            check(value, "beta")
    for value in ("1", None, True, [1], np.array([1]), np.array(True)):
        with pytest.raises(TypeError, match="beta is"):
            check(value, "beta")


def test_a_fraction_is_no_whole_number():
    with pytest.raises(TypeError, match=r"n is 2\.0; pass an integer"):
        check_positive_int(2.0, "n")


def test_something_else_than_an_anndata_is_refused():
    with pytest.raises(TypeError, match=r"adata is a ndarray; pass an anndata.AnnData"):
        check_adata(np.ones((3, 3)))


@pytest.mark.parametrize(
    "name", ["", "a/b", 3, ".", "..", " ", "a\\b", "a\n", ".zattrs", "__a", "zarr.json", "\x00", "a" * 300]
)
def test_a_name_that_files_cannot_hold_is_refused_before_the_fit(name):
    adata = scvae.datasets.simulate(n_cells=20, n_genes=10)
    with pytest.raises(ValueError, match=r"key_added is .*; pass a short name without '/'"):
        scvae.fit(adata, key_added=name, verbose=False)
    assert set(adata.obsm) == {"z"}


def test_results_of_scanpy_are_not_replaced(digest):
    adata = scvae.datasets.simulate(n_cells=20, n_genes=10)
    adata.uns["pca"], adata.obsm["X_pca"] = {"variance": np.ones(2)}, np.ones((20, 2))
    before = digest(adata)
    with pytest.raises(ValueError, match="key_added is 'pca', where scanpy keeps its own results"):
        scvae.fit(adata, key_added="pca", verbose=False)
    assert digest(adata) == before


@pytest.mark.parametrize(
    "name", [name for name in scvae.tl.__all__ if "model" in signature(getattr(scvae.tl, name)).parameters]
)
def test_every_tool_refuses_what_is_no_model(name, digest):
    tool, adata = getattr(scvae.tl, name), scvae.datasets.simulate(n_cells=20, n_genes=10)
    needed = {"groupby": "cell_type", "n": 5, "reference": adata, "labels_key": "cell_type", "sample_key": "cell_type"}
    given = {key: value for key, value in needed.items() if key in signature(tool).parameters}
    before = digest(adata)
    cells = [adata] if "adata" in signature(tool).parameters else []
    with pytest.raises(TypeError, match="model is a str; pass a FittedModel"):
        tool(*cells, "model.safetensors", **given)
    assert digest(adata) == before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training": {"epochs": 2}}, r"training is a dict; pass scvae\.TrainingConfig\(epochs=2\)"),
        ({"network": {"width": 64, "norm": "none"}}, r"pass scvae\.NetworkConfig\(width=64, norm='none'\)"),
        ({"network": scvae.TrainingConfig()}, r"network is a TrainingConfig; pass scvae\.NetworkConfig\(\.\.\.\)"),
    ],
)
def test_settings_of_another_type_are_refused_with_what_to_write(settings, message, digest):
    adata = scvae.datasets.simulate(n_cells=20, n_genes=10)
    before = digest(adata)
    for fit in (scvae.fit, scvae.tune_beta):
        with pytest.raises(TypeError, match=message):
            fit(adata, **settings)
    assert digest(adata) == before


def test_a_fit_refuses_to_go_on_from_what_is_no_model():
    with pytest.raises(TypeError, match="init is a str; pass a FittedModel"):
        scvae.fit(scvae.datasets.simulate(n_cells=20, n_genes=10), init="model.safetensors")
