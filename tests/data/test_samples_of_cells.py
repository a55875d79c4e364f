"""A sample of cells is a copy with the very values of its cells."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from tests.data.reading import read_fit


def read(matrix, kind):
    n = matrix.shape[0]
    obs = pd.DataFrame({"batch": ["a", "b"] * (n // 2), "age": np.arange(n, dtype=float)}, index=map(str, range(n)))
    options = {"layer": None, "mask_var": None, "size_factor_key": None, "kind": kind}
    return read_fit(ad.AnnData(matrix, obs=obs), batch_key="batch", covariate_keys=["age"], **options)[1]


def dense(x):
    return x.to_dense().numpy()


COUNTS = np.random.default_rng(0).poisson(1.0, (20, 6)).astype(np.float32)
POSITIONS = np.array([17, 3, 4])


@pytest.mark.parametrize(
    ("matrix", "kind"),
    [(sparse.csr_matrix(COUNTS), "counts"), (COUNTS - 0.5, "real"), (sparse.csr_matrix(COUNTS / 2), "real")],
    ids=["counts", "dense real", "sparse real"],
)
def test_a_sample_has_the_values_of_its_cells(matrix, kind):
    cells = read(matrix, kind)
    sample = cells.taken(POSITIONS)
    assert len(sample) == 3
    assert list(sample.names) == ["17", "3", "4"]
    got, expected = sample.batch(np.arange(3)), cells.batch(POSITIONS)
    np.testing.assert_array_equal(dense(got.x), dense(expected.x))
    for name in ("library", "codes", "numeric"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    assert got.has_batch


def test_a_fingerprint_tells_names_order_and_depth_apart():
    cells = read(sparse.csr_matrix(COUNTS), "counts")
    everyone = np.arange(20)
    same = cells.taken(everyone)
    assert same.fingerprint() == cells.fingerprint()
    deeper = read(sparse.csr_matrix(COUNTS + np.eye(20, 6, dtype=np.float32)), "counts")
    others = [cells.taken(everyone[::-1]), cells.taken(everyone[:-1]), deeper]
    assert len({other.fingerprint() for other in others} | {cells.fingerprint()}) == 4
