"""Sparse rows, and their product with a weight."""

import numpy as np
import pytest
import torch
from scipy import sparse

from scvae.kernels import autograd, reference
from scvae.kernels.csr import CSR
from tests.kernels.problems import csr, tensor


def counts(n_cells, n_genes, mean=0.4):
    dense = np.random.default_rng(0).poisson(mean, (n_cells, n_genes)).astype(np.float32)
    dense[n_cells // 2] = 0
    return dense


@pytest.mark.parametrize("mean", [0.05, 0.4], ids=["sparse product", "dense block"])
@pytest.mark.parametrize(("n_cells", "n_genes", "width"), [(1, 1, 1), (41, 401, 33), (7, 13, 128), (3, 5, 31)])
def test_product_and_its_gradient_are_those_of_the_dense_matrix(n_cells, n_genes, width, mean):
    dense = counts(n_cells, n_genes, mean)
    rng = np.random.default_rng(1)
    weight = tensor(rng.normal(size=(n_genes, width))).requires_grad_()
    upstream = rng.normal(size=(n_cells, width))
    assert autograd.cpu_kernels() is not None
    start = tensor(rng.normal(size=width if n_cells == 41 else (n_cells, width))).requires_grad_()
    sums = autograd.csr_matmul(csr(dense), weight, start)
    (sums * tensor(upstream)).sum().backward()
    product = sums.detach().double() - start.detach().double()
    exact = weight.detach().double().numpy()
    np.testing.assert_allclose(product, dense @ exact, rtol=0, atol=1e-6 * (4 + (dense @ np.abs(exact)).max()))
    expected = upstream.sum(0) if n_cells == 41 else upstream
    np.testing.assert_allclose(start.grad, expected, rtol=0, atol=1e-6 * np.abs(upstream).sum(0).max())
    scale = 1e-6 * (dense.T @ np.abs(upstream)).max()
    np.testing.assert_allclose(weight.grad, dense.T @ upstream, rtol=0, atol=scale)


@pytest.mark.parametrize("mean", [0.05, 0.4], ids=["sparse product", "dense block"])
def test_plain_product_equals_the_fused_one(mean):
    dense = counts(19, 31, mean)
    weight = tensor(np.random.default_rng(2).normal(size=(31, 8)))
    fused = autograd.csr_matmul(csr(dense), weight, torch.zeros(8))
    plain = reference.csr_matmul(csr(dense), weight.double())
    np.testing.assert_allclose(fused, plain, rtol=0, atol=1e-5)
    assert plain.dtype == torch.float64
    assert autograd.csr_matmul(csr(dense), weight.double(), torch.zeros(8)).dtype == torch.float64


def test_crowded_rows_take_the_dense_block_and_others_do_not(monkeypatch):
    taken = []
    kernels = autograd.cpu_kernels()
    assert kernels is not None
    fill = kernels.sparse.csr_to_dense
    monkeypatch.setattr(kernels.sparse, "csr_to_dense", lambda *arguments: taken.append(True) or fill(*arguments))
    weight = torch.ones(50, 3)
    autograd.csr_matmul(csr(counts(20, 50, 0.05)), weight, torch.zeros(3))
    assert not taken
    autograd.csr_matmul(csr(counts(20, 50, 1.0)), weight, torch.zeros(3))
    assert taken


def test_rows_are_those_of_scipy():
    dense = counts(9, 14)
    rows = csr(dense)
    matrix = sparse.csr_matrix(dense)
    assert len(rows) == 9
    assert rows.n_columns == 14
    np.testing.assert_array_equal(rows.to_dense(), dense)
    np.testing.assert_array_equal(rows.row_of_stored(), matrix.tocoo().row)
    for start, stop in ((0, 9), (3, 5), (4, 4), (8, 9)):
        np.testing.assert_array_equal(rows.rows(start, stop).to_dense(), dense[start:stop])
    np.testing.assert_array_equal(rows.with_values(2 * rows.values).to_dense(), 2 * dense)


def test_types_are_converted_so_that_an_atlas_fits():
    rows = CSR.from_numpy(np.array([0, 1], np.int32), np.array([2], np.int64), np.array([7], np.int16), 3)
    assert (rows.indptr.dtype, rows.indices.dtype, rows.values.dtype) == (torch.int64, torch.int32, torch.float32)
    assert rows.to_dense().tolist() == [[0, 0, 7]]
