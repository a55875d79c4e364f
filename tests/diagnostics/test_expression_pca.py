"""Expression without a model: principal components against numpy's, and the cells that are most alike."""

import numpy as np
import pandas as pd
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from scvae.data.cells import Cells
from scvae.data.rows import DenseRows, SparseRows
from scvae.diagnostics import expression_pca as expression
from scvae.diagnostics.expression_pca import expression_space, most_alike


def cells_of(values, *, batch=None, library=None):
    values = sp.csr_array(values) if sp.issparse(values) else np.asarray(values, dtype=np.float32)
    n = values.shape[0]
    if sp.issparse(values):
        rows = SparseRows(values.indptr, values.indices, values.data, values.shape[1])
    else:
        rows = DenseRows(values)
    codes = np.zeros((n, 0), dtype=np.int64) if batch is None else np.asarray(batch, dtype=np.int64)[:, None]
    return Cells(
        rows=rows,
        library=np.ones(n, dtype=np.float32) if library is None else np.asarray(library, dtype=np.float32),
        codes=codes,
        numeric=np.zeros((n, 0), dtype=np.float32),
        names=pd.Index([str(i) for i in range(n)]),
        has_batch=batch is not None,
    )


def test_expression_space_is_the_pca_of_log_normalised_counts():
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.5, 4.0, size=(40, 1)) * rng.gamma(1.0, 1.0, size=(1, 12)) + 0.1).astype(np.float32)
    library = np.maximum(counts.sum(1), 1)
    positions = np.arange(5, 40)
    found = expression_space(cells_of(sp.csr_array(counts), library=library), positions, kind="counts")
    logs = np.log1p(counts[positions] / library[positions, None] * np.median(library[positions]))
    centred = logs - logs.mean(0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    assert found.shape == (35, 12)
    np.testing.assert_allclose(cdist(found, found), cdist(u * s, u * s), atol=1e-4)


def test_expression_space_leaves_real_values_as_they_are_and_batches_out():
    rng = np.random.default_rng(1)
    values = rng.normal(size=(60, 6)).astype(np.float32)
    batch = np.arange(60) % 2
    everyone = np.arange(60)
    shifted = values + np.array([0.0, 50.0], dtype=np.float32)[batch][:, None]
    with_batch = expression_space(cells_of(shifted, batch=batch), everyone, kind="real")
    centred = np.concatenate([values[batch == b] - values[batch == b].mean(0) for b in (0, 1)])
    order = np.concatenate([np.flatnonzero(batch == b) for b in (0, 1)])
    np.testing.assert_allclose(cdist(with_batch[order], with_batch[order]), cdist(centred, centred), atol=1e-3)
    without = expression_space(cells_of(shifted), everyone, kind="real")
    np.testing.assert_allclose(cdist(without, without), cdist(shifted, shifted), atol=1e-3)


def test_the_order_of_the_cells_does_not_matter():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(600, 3)) @ rng.normal(size=(3, 900)) + rng.normal(size=(600, 900))
    cells, order = cells_of(values), rng.permutation(600)
    first = expression_space(cells, np.arange(600), kind="real")
    assert first.shape[1] < 600  # fewer than all directions: which ones is what a random solver would leave open
    again = expression_space(cells, order, kind="real")
    expected = cdist(first[order[:50]], first[order])
    np.testing.assert_allclose(cdist(again[:50], again), expected, rtol=1e-4, atol=1e-3)


def test_cells_that_do_not_differ_are_in_one_place():
    values = np.array([[1.0, 2.0], [4.0, 8.0]])
    assert (expression_space(cells_of(values, batch=[0, 1]), np.arange(2), kind="real") == 0).all()


def test_most_alike_are_the_nearest_in_the_expression_space_the_cell_itself_first():
    rng = np.random.default_rng(3)
    cells = cells_of(rng.normal(size=(50, 8)))
    found = most_alike(cells, 6, kind="real", seed=0)
    space = expression_space(cells, np.arange(50), kind="real")
    distance = cdist(space, space)
    np.fill_diagonal(distance, -1.0)
    np.testing.assert_array_equal(found, distance.argsort(1)[:, :6])
    assert (most_alike(cells_of(np.zeros((7, 3))), 4, kind="real", seed=0)[:, 0] == np.arange(7)).all()
    assert most_alike(cells, 80, kind="real", seed=0).shape == (50, 50)
    assert most_alike(cells_of(rng.normal(size=(1, 8))), 6, kind="real", seed=0).tolist() == [[0]]


def test_many_cells_are_compared_in_groups_of_a_sample_each(monkeypatch):
    rng = np.random.default_rng(4)
    kind = np.arange(120) % 3
    cells = cells_of(10.0 * np.eye(3)[kind] + rng.normal(size=(120, 3)))
    whole = most_alike(cells, 5, kind="real", seed=1)
    monkeypatch.setattr(expression, "COMPARED_AT_ONCE", 50)
    parts = most_alike(cells, 5, kind="real", seed=1)
    assert (parts[:, 0] == np.arange(120)).all()
    assert (parts != whole).any()
    assert (kind[parts] == kind[:, None]).all()
    linked = np.zeros((120, 120), dtype=bool)
    linked[np.arange(120)[:, None], parts] = True
    group = np.linalg.matrix_power((linked | linked.T).astype(float), 60) > 0
    assert len({tuple(row) for row in group}) >= 3  # no edge leads from one group to another
    np.testing.assert_array_equal(parts, most_alike(cells, 5, kind="real", seed=1))
    assert (parts != most_alike(cells, 5, kind="real", seed=2)).any()
