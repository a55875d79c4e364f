"""Taking rows out of compressed sparse arrays, against scipy's own indexing."""

import numpy as np
import pytest
from scipy import sparse

from scvae.kernels.backends import cpu_kernels
from scvae.kernels.rows import COMPILED, take_rows

POSITIONS = np.array([5, 0, 5, 11, 3, 4])


def matrix(index_type, value_type):
    dense = np.random.default_rng(0).poisson(0.6, (12, 9))
    dense[[3, 11]] = 0
    found = sparse.csr_array(dense.astype(value_type))
    found.indices = found.indices.astype(index_type)
    return found


@pytest.mark.parametrize("value_type", ["float32", "float64", "int64", "uint8", "bool"])
@pytest.mark.parametrize("index_type", ["int32", "int64"])
@pytest.mark.parametrize("renamed", [False, True], ids=["as stored", "mapped"])
@pytest.mark.parametrize("strided", [False, True], ids=["contiguous", "strided"])
def test_rows_are_those_that_scipy_takes(index_type, value_type, renamed, strided):
    stored = matrix(index_type, value_type)
    column_map = np.array([3, -1, 0, -1, -1, 4, 1, 2, -1], np.int32) if renamed else None
    order = np.argsort(column_map)[-5:] if renamed else np.arange(9)
    values = np.repeat(stored.data, 2)[::2] if strided else stored.data
    for positions in (POSITIONS, POSITIONS[:0], np.array([3])):
        indptr, indices, data = take_rows(
            stored.indptr.astype(np.int64), stored.indices, values, positions.astype(np.int64), column_map
        )
        taken = sparse.csr_array((data, indices, indptr), shape=(len(positions), len(order)))
        np.testing.assert_array_equal(taken.toarray(), stored.toarray()[positions][:, order])
        assert (indptr.dtype, indices.dtype, data.dtype) == (np.int64, np.int32, np.float32)
        assert not np.shares_memory(data, stored.data)


def test_common_types_are_compiled():
    assert cpu_kernels() is not None
    assert {np.dtype("int32"), np.dtype("float32")} <= COMPILED
