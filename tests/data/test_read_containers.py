"""Whatever holds the matrix, the same numbers arrive, and the matrix stays as it was."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from scvae.data import rows as rows_module
from scvae.data.intake import read_query
from scvae.data.rows import DenseRows, SparseRows
from scvae.kernels.block import Dense
from tests.data.reading import read_fit

NONE = {
    "layer": None,
    "mask_var": None,
    "batch_key": None,
    "covariate_keys": (),
    "size_factor_key": None,
    "kind": "counts",
}
CONTAINERS = {
    "csr_matrix": sp.csr_matrix,
    "csc_matrix": sp.csc_matrix,
    "csr_array": sp.csr_array,
    "csc_array": sp.csc_array,
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
}
TYPES = ["bool", *[f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)], "float32", "float64"]


def truth(dtype="int64", n_cells=12, n_genes=7, seed=0):
    """Counts with an empty cell (3), a gene never seen (2) and another seen once (5)."""
    counts = np.random.default_rng(seed).poisson(1.0, (n_cells, n_genes))
    counts[3], counts[:, 2], counts[:, 5] = 0, 0, 0
    counts[1, 5] = 4
    return counts.astype(dtype)


def annotate(matrix, **layers):
    n_cells, n_genes = matrix.shape
    return ad.AnnData(
        matrix,
        obs=pd.DataFrame(index=[f"cell{i}" for i in range(n_cells)]),
        var=pd.DataFrame(index=[f"gene{i}" for i in range(n_genes)]),
        layers=layers,
    )


def freeze(matrix):
    for array in (matrix.data, matrix.indices, matrix.indptr) if sp.issparse(matrix) else (matrix,):
        array.flags.writeable = False
    return matrix


def taken(rows, positions):
    x = rows.take(np.array(positions, dtype=np.int64))
    if isinstance(x, Dense):
        assert x.values.dtype == torch.float32
        return x.values.numpy()
    assert (x.indptr.dtype, x.indices.dtype, x.values.dtype) == (torch.int64, torch.int32, torch.float32)
    row = np.repeat(np.arange(len(positions)), np.diff(x.indptr.numpy()))
    key = row * x.n_columns + x.indices.numpy()
    assert np.all(np.diff(key) > 0)  # rising columns, none twice
    dense = np.zeros((len(positions), x.n_columns), dtype=np.float32)
    dense[row, x.indices.numpy()] = x.values.numpy()
    return dense


def values_of(kind):
    """Counts, or half of them where real values are expected, so that they look like none."""
    return truth("float32") if kind == "counts" else truth("float32") / 2


def assert_reads(adata, expected, **options):
    """`expected`: all cells x all genes."""
    mask = options.get("mask_var")
    schema, cells = read_fit(adata, **{**NONE, **options})
    chosen = np.ones(adata.n_vars, dtype=bool) if mask is None else np.asarray(mask)
    if options.get("kind") != "real":
        chosen = chosen & (expected != 0).any(axis=0)
    expected = expected[:, chosen].astype(np.float64)
    assert schema.genes == tuple(adata.var_names[chosen])
    assert (cells.rows.n_cells, cells.rows.n_genes) == expected.shape == (len(cells), len(schema.genes))
    for positions in ([0], [3], [7, 3, 3, 0], range(2, 9), range(len(cells)), []):
        np.testing.assert_array_equal(taken(cells.rows, list(positions)), expected[list(positions)])
    library = np.ones(len(cells)) if options.get("kind") == "real" else expected.sum(axis=1)
    np.testing.assert_array_equal(cells.library, library.astype(np.float32))
    assert cells.library.dtype == np.float32
    assert list(cells.names) == list(adata.obs_names)
    return schema, cells


MASKS = {"all": None, "most": [1, 1, 1, 0, 1, 0, 1], "one": [0, 0, 0, 1, 0, 0, 0]}
# each container with each type, and each of both in both places and with every mask
PAIRS = [
    (container, dtype, ("X", "layer")[(i + j) % 2], list(MASKS)[(i + j) % 3])
    for i, container in enumerate(CONTAINERS)
    for j, dtype in enumerate(TYPES)
]


@pytest.mark.parametrize(("container", "dtype", "place", "mask"), PAIRS)
def test_every_container_and_type_gives_the_same_numbers(container, dtype, place, mask):
    counts = truth(dtype)
    matrix = freeze(CONTAINERS[container](counts))
    adata = annotate(matrix) if place == "X" else annotate(np.zeros(counts.shape), counts=matrix)
    layer = None if place == "X" else "counts"
    mask = MASKS[mask] and np.array(MASKS[mask], dtype=bool)
    assert_reads(adata, counts, layer=layer, mask_var=mask)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32"])
@pytest.mark.parametrize("container", CONTAINERS)
def test_real_values_of_any_sign_arrive(container, dtype):
    values = np.random.default_rng(1).normal(0, 3, (12, 7)).astype(dtype).astype(np.float32).astype(dtype)
    matrix = freeze(CONTAINERS[container](values))
    _, cells = assert_reads(annotate(matrix), values, kind="real")
    assert isinstance(cells.rows, SparseRows if sp.issparse(matrix) else DenseRows)
    assert_reads(annotate(matrix), values, kind="real", mask_var=np.arange(7) % 2 == 0)


def test_binary_values_arrive():
    values = truth() > 0
    assert_reads(annotate(sp.csr_matrix(values)), values, kind="binary")
    assert_reads(annotate(values.astype(np.float32)), values, kind="binary")


@pytest.mark.parametrize("block", [1, 5, 30])
@pytest.mark.parametrize("container", CONTAINERS)
def test_the_size_of_the_blocks_makes_no_difference(container, block, monkeypatch):
    shrink(monkeypatch, block)
    assert_reads(annotate(CONTAINERS[container](truth("float32"))), truth())


def shrink(monkeypatch, block):
    monkeypatch.setattr("scvae.data.containers.BLOCK", block)
    monkeypatch.setattr(rows_module.row_ranges, "__defaults__", (block,))


def test_int64_indices_are_read():
    matrix = sp.csr_matrix(truth("float32"))
    matrix.indices, matrix.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    assert_reads(annotate(freeze(matrix)), truth())


def test_rows_beyond_two_to_the_31_are_found():
    # 3 x 10^9 stored values, of which only a few exist in memory: broadcasting gives the rest one address
    n_stored = 3_000_000_000
    indptr = np.array([0, n_stored - 2, n_stored])
    rows = SparseRows(
        indptr, np.broadcast_to(np.int64(1), n_stored), np.broadcast_to(np.uint8(7), n_stored), 2, is_sorted=True
    )
    taken_rows = rows.take(np.array([1]))
    assert taken_rows.indptr.tolist() == [0, 2]
    assert taken_rows.values.tolist() == [7.0, 7.0]


def test_stored_zeros_are_zeros():
    matrix = sp.csr_matrix(truth("float32"))
    matrix.data[::3] = 0
    assert_reads(annotate(freeze(matrix)), matrix.toarray())


@pytest.mark.parametrize("mask", [None, [0, 1, 0, 0, 1, 0, 0]], ids=["all", "few"])
def test_unsorted_columns_are_read_and_left_unsorted(mask):
    matrix = sp.csr_matrix(truth("float32"))
    for row in range(matrix.shape[0]):
        part = slice(matrix.indptr[row], matrix.indptr[row + 1])
        matrix.indices[part], matrix.data[part] = matrix.indices[part][::-1].copy(), matrix.data[part][::-1].copy()
    matrix.has_sorted_indices = False
    freeze(matrix)
    before = matrix.indices.copy()
    assert_reads(annotate(matrix), truth(), mask_var=None if mask is None else np.array(mask, dtype=bool))
    np.testing.assert_array_equal(matrix.indices, before)


def assert_same_batches(found, expected):
    positions = np.array([4, 0, 11, 3])
    a, b = found.rows.take(positions), expected.rows.take(positions)
    for part in ("indptr", "indices", "values"):
        assert torch.equal(getattr(a, part), getattr(b, part)), part


@pytest.mark.parametrize("mask", [[1, 1, 0, 1, 1, 1, 1], [0, 1, 0, 0, 1, 0, 0]], ids=["most", "few"])
def test_rows_are_sorted_when_they_are_read_and_not_in_every_batch(mask, monkeypatch):
    shrink(monkeypatch, 9)
    adata, order = annotate(sp.csr_matrix(truth("float32"))), np.array([4, 6, 0, 2, 5, 3, 1])
    shuffled = adata[:, order].copy()
    assert not shuffled.X.has_sorted_indices
    mask = np.array(mask, dtype=bool)
    schema, cells = read_fit(adata, **NONE | {"mask_var": mask})
    by_name = read_query(shuffled, schema)
    found, expected = (
        read_fit(annotate(matrix), **NONE | {"mask_var": mask[order]})[1]
        for matrix in (shuffled.X, shuffled.X.sorted_indices())
    )
    monkeypatch.setattr(sp.csr_array, "sort_indices", None)
    assert_same_batches(found, expected)
    assert_same_batches(by_name, cells)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32"])
def test_duplicates_are_summed_in_a_copy(dtype):
    values, columns = np.array([200, 100, 3, 1], dtype=dtype), np.array([1, 1, 0, 2])
    matrix = freeze(sp.csr_matrix((values, columns, np.array([0, 3, 4])), shape=(2, 3)))
    adata = annotate(matrix)
    _, cells = read_fit(adata, **NONE)
    np.testing.assert_array_equal(taken(cells.rows, [0, 1]), [[3, 300, 0], [0, 0, 1]])
    assert adata.X.nnz == 4


def test_a_csr_in_memory_is_not_copied_when_only_unseen_genes_are_dropped():
    matrix = sp.csr_matrix(truth("float32"))
    adata = annotate(matrix)
    _, cells = read_fit(adata, **NONE)
    assert cells.rows.n_genes == 6
    assert np.shares_memory(cells.rows.values, adata.X.data)
    assert np.shares_memory(cells.rows.indices, adata.X.indices)


def test_a_small_mask_leaves_a_small_copy():
    adata = annotate(sp.csr_matrix(np.ones((30, 40), dtype=np.float32) * 2))
    _, cells = read_fit(adata, **{**NONE, "mask_var": np.arange(40) < 4})
    assert len(cells.rows.values) == 30 * 4


def test_batches_never_alias_the_matrix():
    counts, values = annotate(sp.csr_matrix(truth("float32"))), annotate(values_of("real"))
    for adata, kind in ((counts, "counts"), (values, "real")):
        _, cells = read_fit(adata, **{**NONE, "kind": kind})
        x = cells.batch(np.arange(12)).x
        (x if isinstance(x, torch.Tensor) else x.values).fill_(99.0)
        assert adata.X.max() < 99


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_view_is_read_and_stays_a_view(container):
    parent = annotate(CONTAINERS[container](truth("float32")))
    view = parent[::2, [6, 1, 0]]
    schema, cells = read_fit(view, **NONE)
    assert view.is_view
    assert schema.genes == ("gene6", "gene1", "gene0")
    np.testing.assert_array_equal(taken(cells.rows, range(6)), truth()[::2][:, [6, 1, 0]])


@pytest.mark.parametrize("container", ["csr_matrix", "csc_matrix", "C"])
@pytest.mark.parametrize("mask", [None, [1, 0, 1, 0, 0, 1, 0]], ids=["all", "some"])
@pytest.mark.parametrize("kind", ["counts", "real"])
@pytest.mark.parametrize("block", [4, 2**21])
def test_a_backed_file_is_read_in_pieces(container, mask, kind, block, tmp_path, monkeypatch):
    shrink(monkeypatch, block)
    values = values_of(kind)
    annotate(CONTAINERS[container](values)).write_h5ad(tmp_path / "a.h5ad")
    adata = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    try:
        options = {"mask_var": None if mask is None else np.array(mask, dtype=bool), "kind": kind}
        _, cells = assert_reads(adata, values, **options)
        with pytest.raises(ValueError, match=r"view of a backed file; call adata\.to_memory"):
            read_fit(adata[:5], **NONE)
        if mask is not None and kind == "counts":
            assert len(cells.rows.values) == np.count_nonzero(truth()[:, np.array(mask, dtype=bool)])
    finally:
        adata.file.close()


def test_one_cell_and_one_gene_are_enough():
    for shape in ((1, 5), (5, 1), (1, 1)):
        for matrix in (np.full(shape, 3), sp.csr_matrix(np.full(shape, 3))):
            _, cells = read_fit(annotate(matrix), **NONE)
            assert taken(cells.rows, range(shape[0])).sum() == 3 * shape[0] * shape[1]


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_an_empty_adata_is_refused(shape):
    with pytest.raises(ValueError, match=r"adata has no (cells|genes) \(shape"):
        read_fit(ad.AnnData(np.zeros(shape, dtype=np.float32)), **NONE)


def test_a_missing_x_names_the_layers():
    adata = ad.AnnData(obs=pd.DataFrame(index=["a"]), var=pd.DataFrame(index=["g"]), layers={"counts": np.ones((1, 1))})
    with pytest.raises(ValueError, match=r"adata has no X; pass layer=, one of 'counts'"):
        read_fit(adata, **NONE)


@pytest.mark.parametrize("kind", ["counts", "real"])
def test_a_dask_array_is_read_as_the_array_it_stands_for(kind):
    dask = pytest.importorskip("dask.array", reason="dask is not installed")
    adata = annotate(dask.from_array(values_of(kind), chunks=(4, 7)))
    schema, found = read_fit(adata, **{**NONE, "kind": kind})
    expected_schema, expected = read_fit(annotate(values_of(kind)), **{**NONE, "kind": kind})
    assert schema == expected_schema
    everything = np.arange(len(expected))
    assert torch.equal(found.rows.take(everything).to_dense(), expected.rows.take(everything).to_dense())


def test_types_that_are_no_numbers_are_refused():
    with pytest.raises(TypeError, match="values of type complex"):
        read_fit(annotate(np.ones((3, 2)), c=np.ones((3, 2), dtype=complex)), **{**NONE, "layer": "c"})


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("kind", ["counts", "real"])
def test_a_query_is_aligned_by_name_whatever_the_order(container, kind):
    values = values_of(kind)
    schema, fitted = read_fit(annotate(CONTAINERS[container](values)), **{**NONE, "kind": kind})
    order = np.array([4, 0, 6, 2, 1, 5, 3])
    shuffled = annotate(CONTAINERS[container](values))[:, order].copy()
    cells = read_query(shuffled, schema)
    first, second = fitted.batch(np.arange(12)), cells.batch(np.arange(12))
    for name in ("library", "codes", "numeric"):
        assert torch.equal(getattr(first, name), getattr(second, name))
    expected = values if kind == "real" else values[:, values.any(axis=0)]
    np.testing.assert_array_equal(taken(cells.rows, range(12)), expected)
    if kind == "counts":  # to the bit, in the order of storage
        assert torch.equal(first.x.indices, second.x.indices)
        assert torch.equal(first.x.values, second.x.values)


def test_a_query_may_name_another_layer():
    counts = truth("float32")
    adata = annotate(np.zeros_like(counts), counts=sp.csr_matrix(counts))
    schema, _ = read_fit(adata, **{**NONE, "layer": "counts"})
    expected = counts[:, counts.any(axis=0)]
    np.testing.assert_array_equal(taken(read_query(adata, schema).rows, range(12)), expected)
    np.testing.assert_array_equal(taken(read_query(annotate(counts), schema, layer=None).rows, range(12)), expected)
