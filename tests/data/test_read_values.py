"""What is refused, what passes with a warning, and what passes in silence."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

from scvae.data import intake
from scvae.data.containers import Block, readable
from scvae.data.intake import read_query
from scvae.data.sources import opened
from scvae.data.value_check import ValueCheck
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


@pytest.mark.parametrize("layer", [None, "a"])
def test_a_negative_rounding_error_is_not_called_scaled(layer):
    matrix = sp.csr_matrix(with_one(-1e-12))
    adata = annotate(matrix) if layer is None else annotate(np.ones(matrix.shape), a=matrix)
    with pytest.raises(ValueError, match=r"negative values \(-1e-12 at cell 'cell7'.*set them to 0: adata\.") as error:
        fit(adata, layer=layer)
    assert "scaled" not in str(error.value)
    exec(str(error.value).rpartition("set them to 0: ")[2], {"adata": adata})
    fit(adata, layer=layer)


ELEMENTWISE = {
    "log": np.log1p,
    "log2": lambda values: np.log2(1.0 + values),
    "log10": lambda values: np.log10(1.0 + values),
    "square-root": np.sqrt,
    "arcsinh": np.arcsinh,
    "twice-log": lambda values: np.log1p(np.log1p(values)),
}
TRANSFORMED = {"normalised": normalised} | {
    f"{name}-normalised": lambda values, transform=transform: transform(normalised(values))
    for name, transform in ELEMENTWISE.items()
}


@pytest.mark.parametrize("name", TRANSFORMED)
@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_constant_sums_give_normalisation_away(name, container, dtype):
    values = TRANSFORMED[name](counts()).astype(dtype)
    with pytest.raises(ValueError, match=rf"X looks {name}: .* sum to about 10000 in every cell .* at cell 'cell0'"):
        fit(annotate(container(values)), mask_var=np.arange(80) < 20)


@pytest.mark.parametrize("name", TRANSFORMED)
def test_three_cells_are_enough_for_constant_sums(name):
    with pytest.raises(ValueError, match=f"X looks {name}"):
        fit(annotate(TRANSFORMED[name](counts()[:3]).astype("float32")))


@pytest.mark.parametrize("transform", [np.log1p, np.sqrt])
def test_half_precision_does_not_hide_normalisation(transform):
    with pytest.raises(ValueError, match="-normalised: "):
        fit(annotate(np.zeros((60, 80)), a=transform(normalised(counts())).astype("float16")), layer="a")


@pytest.mark.parametrize("name", TRANSFORMED)
def test_whole_multiples_give_normalisation_away_after_a_cut_to_some_genes(name):
    values = TRANSFORMED[name](counts())[:, 10:50].astype(np.float32)
    with pytest.raises(ValueError, match=rf"X looks {name}: in each cell, .* whole multiples"):
        fit(annotate(sp.csr_matrix(values)))


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csc_array, np.asarray])
@pytest.mark.parametrize("digits", [None, 4])
def test_transforms_of_raw_counts_are_told_by_the_integers_behind_them(name, container, digits):
    values = ELEMENTWISE[name](counts()[:4])
    values = values.astype(np.float32) if digits is None else np.round(values, digits)
    with pytest.raises(ValueError, match=rf"X looks {name}-transformed: .* is an integer for each value, the count"):
        fit(annotate(container(values)))


def test_a_cofactor_does_not_hide_a_transform():
    with pytest.raises(ValueError, match=r"X looks arcsinh-transformed: sinh\(value\) is, .* whole multiple of 0.2 "):
        fit(annotate(np.arcsinh(counts()[:4] / 5).astype(np.float32)))


def deep_counts():
    """Counts without 1, so that few cells have whole multiples of their smallest one."""
    return counts() * 3 + np.random.default_rng(1).integers(0, 3, (60, 80)) * (counts() > 0)


def test_files_normalised_each_to_its_own_depth_are_refused():
    targets = np.repeat([0.009, 0.02], 30)[:, None]
    values = np.log1p(normalised(deep_counts()) * targets).astype(np.float32)
    with pytest.raises(ValueError, match=r"X looks log-normalised: exp\(value\) - 1 sum to one of a few numbers"):
        fit(annotate(values))


def test_one_part_that_is_transformed_is_found_among_counts():
    values = np.vstack([counts(200), np.log2(1.0 + normalised(deep_counts()))])
    with pytest.raises(ValueError, match=r"X looks log2-normalised: .* at cell 'cell200"):
        fit(annotate(sp.csr_matrix(values.astype(np.float32))))


def test_blocks_of_genes_are_put_together_before_cells_are_examined():
    values = np.log1p(normalised(counts()))
    adata = annotate(values)
    check = ValueCheck("counts", None, adata, np.ones(80, dtype=bool), kind_is_open=True)
    for first in (40, 0):
        part = sp.csr_array(values[:, first : first + 40])
        check.add(Block(0, part.indptr.astype(np.int64), part.indices + first, part.data))
    with pytest.raises(ValueError, match=r"X looks log-normalised: exp\(value\) - 1 sum to about 10000"):
        check.finish()


def test_one_file_that_is_transformed_is_found_among_counts(tmp_path):
    paths = [tmp_path / "a.h5ad", tmp_path / "b.h5ad"]
    for path, values in zip(paths, (counts(), np.sqrt(counts())), strict=True):
        annotate(sp.csr_matrix(values.astype(np.float32))).write_h5ad(path)
    with opened(paths, None) as source, pytest.raises(ValueError, match=r"square-root-transformed.* cell 'cell\d+-b'"):
        intake.read_fit(source.adata, intake.DataKeys(), kind="counts", matrix=source.matrix)


@pytest.mark.parametrize(("axis", "what"), [(0, "gene"), (1, "cell")])
def test_values_scaled_to_a_largest_of_one_are_refused(axis, what):
    raw = counts()[:, counts().sum(0) > 0] + 7.0 * (counts()[:, counts().sum(0) > 0] > 0)
    with pytest.raises(ValueError, match=f"X looks scaled: the largest value of each {what} is 1"):
        fit(annotate(sp.csr_matrix(raw / raw.max(axis=axis, keepdims=True))))


def fraction_of_each(shape, low=0.6):
    return np.random.default_rng(1).uniform(low, 1.0, shape)


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(counts() * 0.9, id="one unit for all cells"),
        pytest.param(counts() * 0.5, id="halves"),
        pytest.param(np.maximum(counts() - np.random.default_rng(1).uniform(0, 0.4, (60, 80)), 0), id="ambient"),
        pytest.param(counts() * fraction_of_each((60, 80)), id="a fraction of each value"),
        pytest.param(counts() * fraction_of_each((60, 1)), id="a fraction of each cell"),
        pytest.param(counts() * fraction_of_each((1, 80)), id="a fraction of each gene"),
        pytest.param((counts() > 0) * fraction_of_each((60, 80)), id="binary data, a fraction of each"),
        pytest.param(counts()[:, :10] * np.linspace(0.3, 0.7, 10), id="one unit for each gene"),
        pytest.param(np.maximum((counts() > 0), 2 * np.eye(60, 80)) * 0.5, id="halves that reach 1 in every gene"),
        pytest.param(np.eye(60) * 0.9, id="one count in each cell"),
        pytest.param(normalised(counts())[:10, :40], id="too few cells for evidence"),
        pytest.param(np.sqrt([[1.0, 2.3, 5.2], [3.1, 1.0, 0.0]]), id="squares that are no integers"),
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
def test_other_fractions_pass_with_one_warning_that_does_not_guess(values):
    found = r"% of the non-zero values in X are not integers \(e.g. .*; the values lie between .*\); they are taken as"
    with pytest.warns(UserWarning, match=found) as seen:
        _, cells = fit(annotate(sp.csr_matrix(values)))
    assert len(seen) == 1
    n_integers, n_filled = ((values == np.rint(values)) & (values > 0)).sum(), (values > 0).sum()
    assert ("ambient" in str(seen[0].message)) == (n_integers > 0.01 * n_filled)
    np.testing.assert_allclose(cells.library, values.sum(axis=1), rtol=1e-6)


def shared_reads():
    """Counts as RSEM and salmon expect them: some reads are shared out among genes."""
    values, rng = counts(), np.random.default_rng(1)
    return values + (rng.random(values.shape) < 0.2) * (values > 0) * rng.choice([-0.5, 0.25, 1 / 3], values.shape)


@pytest.mark.parametrize(
    "values", [with_one(1.5), np.minimum(with_one(1.1), 9), shared_reads()]
)  # exp(1.1) - 1 is 2.004
def test_fractions_among_integers_are_what_corrections_leave(values):
    with pytest.warns(UserWarning, match="they are taken as counts, which suits counts corrected for ambient RNA"):
        fit(annotate(sp.csr_matrix(values)))


def test_the_warning_states_share_example_and_range():
    values = np.array([[1.0, 2.0, 0.0, 1.0], [3.0, 0.25, 4.0, 5.0], [9.0, 0.0, 1.0, 1.0]])
    at = r"^10 % of .* \(e.g. 0.25 at cell 'cell1', gene 'gene1'; the values lie between 0.25 and 9\)"
    with pytest.warns(UserWarning, match=at):
        fit(annotate(values))


def test_the_warning_names_where_counts_are():
    values = counts() * fraction_of_each((60, 80))
    with pytest.warns(UserWarning, match="taken as counts, but layer='counts' looks like raw counts"):
        fit(annotate(values, counts=counts()))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rounding_errors_are_shown_with_all_their_digits(dtype):
    with pytest.warns(UserWarning, match=r"X holds integers with rounding errors \(e.g. 0.9999999 at cell 'cell7'"):
        fit(annotate(sp.csr_matrix(with_one(0.9999999, dtype))))


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


@pytest.mark.parametrize("container", CONTAINERS)
def test_raw_counts_for_a_gaussian_head_are_named(container):
    raw = annotate(container(counts().astype(np.float32)))
    with pytest.warns(
        UserWarning, match=r"X holds only whole numbers, up to \d+, as raw counts do, .* pass likelihood='nb'"
    ):
        schema, _ = fit(raw, kind="real")
    with pytest.warns(UserWarning, match="X holds only whole numbers.* transform them as the values of the fit were"):
        read_query(raw, schema)
    for values in (np.log1p(counts()), counts() > 0, counts() - 1.0):
        fit(annotate(container(np.asarray(values, np.float32))), kind="real")  # no warning
