"""What is refused, what passes with a warning, and what passes in silence."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvae.data.containers import readable
from scvae.data.intake import read_query
from tests.data.reading import read_fit

NONE = {
    "layer": None,
    "mask_var": None,
    "batch_key": None,
    "covariate_keys": (),
    "size_factor_key": None,
    "kind": "counts",
}
CONTAINERS = [sp.csr_matrix, sp.csc_matrix, sp.csr_array, sp.csc_array, np.asarray]


def counts(n_cells=60, n_genes=80, seed=0):
    """Sparse counts of cells whose depths differ by a factor of about four."""
    rng = np.random.default_rng(seed)
    depth = rng.uniform(0.4, 1.6, (n_cells, 1))
    return rng.poisson(depth * rng.gamma(0.5, 2.0, n_genes)).astype(np.float64)


def normalised(values):
    return values / values.sum(axis=1, keepdims=True) * 1e4


def annotate(matrix, **layers):
    n_cells, n_genes = matrix.shape
    names = {
        "obs": pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]),
        "var": pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
    }
    return ad.AnnData(matrix, layers=layers, **names)


def fit(adata, **options):
    return read_fit(adata, **{**NONE, **options})


def with_one(value, dtype="float64"):
    values = counts().astype(dtype)
    values[7, 11] = value
    return values


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("place", ["X", "layers['a']"])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, r"has missing or infinite values \(nan at cell 'cell7', gene 'gene11'\); remove or fill"),
        (np.inf, r"has missing or infinite values \(inf at cell 'cell7', gene 'gene11'\); remove or fill"),
        (-2.5, r"has negative values, so it looks scaled \(-2.5 at cell 'cell7', gene 'gene11'\)"),
    ],
)
def test_values_that_no_count_can_have_are_refused_by_place(container, place, value, message):
    matrix = container(with_one(value))
    adata = annotate(matrix) if place == "X" else annotate(np.ones(matrix.shape), a=matrix)
    with pytest.raises(ValueError, match=f"{place.replace('[', chr(92) + '[')} {message}"):
        fit(adata, layer=None if place == "X" else "a")


def test_a_wrong_value_outside_the_mask_is_seen():
    with pytest.raises(ValueError, match="gene 'gene11'"):
        fit(annotate(with_one(-1.0)), mask_var=np.arange(80) < 5)


def test_negative_integers_are_refused():
    with pytest.raises(ValueError, match="negative values"):
        fit(annotate(with_one(-1, "int8")))


TRANSFORMED = {
    "normalised": normalised,
    "log-normalised": lambda values: np.log1p(normalised(values)),
    "log2-normalised": lambda values: np.log2(1.0 + normalised(values)),
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_sums_give_normalisation_away(name, container, dtype):
    values = TRANSFORMED[name](counts()).astype(dtype)
    with pytest.raises(ValueError, match=rf"X looks {name}: .* sum to about 10000 in every cell .* at cell 'cell0'"):
        fit(annotate(container(values)), mask_var=np.arange(80) < 20)


def test_half_precision_does_not_hide_normalisation():
    with pytest.raises(ValueError, match="looks log-normalised"):
        fit(annotate(np.zeros((60, 80)), a=np.log1p(normalised(counts())).astype("float16")), layer="a")


@pytest.mark.parametrize("name", TRANSFORMED)
def test_whole_multiples_give_normalisation_away_after_a_cut_to_some_genes(name):
    values = TRANSFORMED[name](counts())[:, 10:50].astype(np.float32)
    with pytest.raises(ValueError, match=rf"X looks {name}: in each cell, .* whole multiples"):
        fit(annotate(sp.csr_matrix(values)))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(counts() * 0.9, id="one unit for all cells"),
        pytest.param(counts() * 0.5, id="halves"),
        pytest.param(np.maximum(counts() - np.random.default_rng(1).uniform(0, 0.4, (60, 80)), 0), id="ambient"),
        pytest.param(counts()[:, :10] * np.linspace(0.3, 0.7, 10), id="one unit for each gene"),
        pytest.param(normalised(counts())[:10, :40], id="too few cells for evidence"),
        pytest.param(with_one(1.5), id="one fraction"),
        pytest.param(
            np.hstack([counts() + 0.01 * (counts() > 0), np.linspace(500.5, 900.5, 60)[:, None]]), id="hundreds"
        ),
        pytest.param(
            np.hstack([counts() + 0.01 * (counts() > 0), np.full((60, 1), 25.5), np.full((60, 1), 40.5)]),
            id="beyond any logarithm",
        ),
        pytest.param(np.hstack([counts() + 0.01 * (counts() > 0), np.linspace(1e4, 5e4, 60)[:, None]]), id="thousands"),
    ],
)
def test_other_fractions_pass_with_one_warning(values):
    with pytest.warns(
        UserWarning, match=r"% of the non-zero values in X are not integers \(e.g. .* ambient RNA"
    ) as seen:
        _, cells = fit(annotate(sp.csr_matrix(values)))
    assert len(seen) == 1
    np.testing.assert_allclose(cells.library, values.sum(axis=1), rtol=1e-6)


def test_the_warning_states_share_and_example():
    values = np.array([[1.0, 2.0, 0.0, 1.0], [3.0, 0.25, 4.0, 5.0], [9.0, 0.0, 1.0, 1.0]])
    with pytest.warns(UserWarning, match=r"^10 % of .* \(e.g. 0.25 at cell 'cell1', gene 'gene1'\)"):
        fit(annotate(values))


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(np.array([[1.0, 2, 3], [3, 2, 1], [2, 2, 2], [4, 1, 1]]), id="constant sums"),
        pytest.param(np.array([[1e5, 0.0, 3e7]] * 4), id="large"),
        pytest.param(counts() * 3, id="multiples"),
    ],
)
def test_integers_are_never_taken_for_normalised(values):
    _, cells = fit(annotate(values))
    np.testing.assert_allclose(cells.library, values.sum(axis=1))


def test_the_error_names_where_counts_are():
    raw = counts()
    logged = np.log1p(normalised(raw))
    with pytest.raises(ValueError, match=r"layer='counts' looks like counts"):
        fit(annotate(logged, counts=sp.csc_matrix(raw), scaled=logged - 1))
    with pytest.raises(ValueError, match=r"layers\['logged'\] looks .* layer=None \(adata.X\) looks like counts"):
        fit(annotate(raw, logged=logged), layer="logged")
    with pytest.raises(ValueError, match=r"neither X, another layer nor adata.raw looks like counts"):
        fit(annotate(logged, scaled=logged - 1))


def test_a_backed_normalised_file_is_refused(tmp_path):
    annotate(sp.csr_matrix(np.log1p(normalised(counts()))), counts=counts()).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        with pytest.raises(ValueError, match=r"X looks log-normalised.* layer='counts' looks like counts"):
            fit(adata, mask_var=np.arange(80) < 3)
    finally:
        adata.file.close()


def test_a_normalised_query_is_refused():
    raw = counts()
    schema, _ = fit(annotate(raw))
    with pytest.raises(ValueError, match="looks log-normalised"):
        read_query(annotate(np.log1p(normalised(raw))), schema)


@pytest.mark.parametrize("value", [2.0, 0.5])
@pytest.mark.parametrize("container", CONTAINERS)
def test_binary_data_must_be_binary(container, value):
    values = (counts() > 0).astype(np.float64)
    values[7, 11] = value
    with pytest.raises(ValueError, match=rf"other than 0 and 1 \({value:g} at cell 'cell7'.*adata.X > 0.*'nb'"):
        fit(annotate(container(values)), kind="binary")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("value", [np.nan, -np.inf])
def test_real_values_must_be_finite(container, value):
    with pytest.raises(ValueError, match=r"missing or infinite values .* cell 'cell7', gene 'gene11'"):
        fit(annotate(container(with_one(value))), kind="real")


def test_a_real_value_beyond_single_precision_is_refused():
    with pytest.raises(ValueError, match="inf at cell 'cell7', gene 'gene11'"):
        fit(annotate(with_one(1e300)), kind="real")


def test_nothing_but_zeros_is_refused():
    with pytest.raises(ValueError, match=r"X is 0 in all modelled genes \(5\)"):
        fit(annotate(sp.csr_matrix((4, 5))))


def test_reading_changes_no_array_of_the_user():
    adata = annotate(sp.csr_matrix(counts()), other=counts())
    before = adata.copy()
    fit(adata)
    for name in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(adata.X, name), getattr(before.X, name))
    np.testing.assert_array_equal(adata.layers["other"], before.layers["other"])
    pd.testing.assert_frame_equal(adata.obs, before.obs)
    pd.testing.assert_frame_equal(adata.var, before.var)


def test_a_masked_array_is_refused_with_the_remedy():
    with pytest.raises(TypeError, match=r"X is a masked array"):
        readable(np.ma.masked_array(np.ones((2, 2)), mask=np.eye(2)), "X")
    with pytest.raises(TypeError, match=r"X is a list"):
        readable([[1]], "X")


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix_and_data_frame_become_arrays():
    for matrix in (np.matrix([[1, 2]]), pd.DataFrame([[1, 2]])):
        assert type(readable(matrix, "X")) is np.ndarray
