"""The Triton kernels against their plain definitions. Run by test_cuda.py: in triton's interpreter, or on a device."""

from __future__ import annotations

import os
from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from scvae.kernels import autograd, cuda, fused_cuda
from scvae.kernels.csr import CSR
from tests import references
from tests.kernels.problems import NAMES, Problem, assert_agrees, csr, make, tensor, with_counts

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
WHERE = torch.device("cpu" if INTERPRETED else "cuda")
SHAPES = [(1, 1, 1, 1), (7, 201, 1, 1), (1, 257, 2, 1), (6, 1, 2, 2), (5, 67, 3, 3), (2, 2100, 1, 3)]


@pytest.fixture(autouse=True)
def _triton_is_used(monkeypatch):
    for module in (autograd, fused_cuda):
        monkeypatch.setattr(module, "kernels_for", lambda _: cuda)
    # the interpreter computes by numpy, which warns where an empty cell has log(0)
    with np.errstate(all="ignore"):
        yield


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request, monkeypatch):
    """Rows that fit into one tile each, and rows cut into many, several to a program."""
    if request.param == "many tiles":
        for name, value in {"COLUMNS": 128, "STORED": 16, "PROGRAMS": 3}.items():
            monkeypatch.setattr(cuda, name, value)


def there(problem: Problem) -> Problem:
    parts = {f.name: getattr(problem, f.name) for f in fields(problem)}
    moved = {n: p.to(WHERE) if isinstance(p, torch.Tensor) else p.map(lambda t: t.to(WHERE)) for n, p in parts.items()}
    return Problem(**moved)


def narrow(problem: Problem) -> Problem:
    """The same counts in the types of a store on the device, as rows picked from a larger matrix."""
    rows = problem.counts.selected()
    every = replace(rows, indices=rows.indices.to(torch.int16), values=rows.values.to(torch.uint8))
    order = torch.arange(len(rows), device=WHERE).flip(0)
    return replace(problem, counts=every.select(order).select(order))


@pytest.mark.parametrize(("n_cells", "n_genes", "draws", "groups"), SHAPES)
@pytest.mark.usefixtures("tiles")
def test_value_and_gradients_are_those_of_the_definition(n_cells, n_genes, draws, groups):
    assert_agrees(there(make(n_cells, n_genes, draws=draws, groups=groups)))


@pytest.mark.parametrize("upstream", [-3.0, 0.25])
def test_gradients_are_scaled_by_the_upstream_gradient(upstream):
    assert_agrees(there(make(7, 29, draws=2, groups=2)), upstream=upstream)


@pytest.mark.parametrize("wanted", [("features",), ("weight",), ("bias", "log_theta")])
def test_what_is_frozen_gets_no_gradient_and_the_rest_keeps_its_own(wanted):
    problem = there(make(7, 29, draws=2, groups=2))
    *_, every = problem.fused(upstream=-0.5)
    *_, some = problem.fused(upstream=-0.5, wanted=wanted)
    for name, found, expected in zip(NAMES, some, every, strict=True):
        assert (found is None) == (name not in wanted)
        assert found is None or torch.equal(found, expected), name


@pytest.mark.usefixtures("tiles")
def test_narrow_types_and_selected_rows_give_the_same_bits():
    problem = there(make(5, 150, draws=2, groups=2))
    for wide, slim in zip(problem.fused(), narrow(problem).fused(), strict=True):
        torch.testing.assert_close(slim, wide, rtol=0, atol=0)


def test_a_cell_without_counts_gives_zero_and_no_gradient():
    problem = make(9, 31)
    empty = 9 // 2
    assert problem.library[empty] == 0
    for alone in (problem, with_counts(problem, np.zeros((9, 31), np.float32))):
        _, per_row, (features, *_) = there(alone).fused()
        assert per_row[empty] == 0
        assert not features[empty].any()
    assert all(not gradient.any() for gradient in there(alone).fused()[2])


def test_a_row_of_weight_zero_has_a_value_and_no_gradient():
    problem = make(9, 31)
    assert problem.row_weight[1] == 0
    _, per_row, (features, *_) = there(problem).fused()
    assert per_row[1] < -1
    assert not features[1].any()


def test_a_broken_row_leaves_its_neighbours_alone(monkeypatch):
    monkeypatch.setattr(cuda, "PROGRAMS", 1)
    problem = there(with_counts(make(4, 20), np.array([[1] * 20, [0] * 20, [2] * 20, [1] * 20], np.float32)))
    broken = problem.features.clone()
    broken[0] = float("nan")
    _, per_row, (features, *_) = replace(problem, features=broken).fused()
    assert torch.isnan(per_row).tolist() == [True, False, False, False]
    assert per_row[1] == 0
    assert torch.isfinite(features[1:]).all()


def test_a_nan_in_a_parameter_reaches_the_total():
    problem = there(make(5, 600))
    for name in NAMES:
        broken = getattr(problem, name).clone()
        broken.view(-1)[3] = float("nan")
        assert torch.isnan(replace(problem, **{name: broken}).fused()[0])


@pytest.mark.parametrize("budget", [1, 3 * 33, 7 * 33])
def test_parts_of_the_rows_give_what_one_pass_gives(monkeypatch, budget):
    problem = there(make(5, 33, draws=2, groups=2))
    _, whole, _ = problem.fused()
    monkeypatch.setattr(fused_cuda, "LOGITS_BUDGET", budget)
    assert_agrees(problem)
    torch.testing.assert_close(problem.fused()[1], whole, rtol=1e-6, atol=0)


def test_counts_may_be_fractions_large_or_stored_zeros():
    problem = make(12, 40, seed=3)
    dense = problem.counts.to_dense().numpy() * np.float32(0.37)
    dense[3, :20] = np.arange(25, 45)
    dense[4, 5] = 1e5
    assert_agrees(there(with_counts(problem, dense)))
    padded = csr(problem.counts.to_dense().numpy() + 1)
    stored = replace(problem, counts=padded.with_values(padded.values - 1))
    torch.testing.assert_close(there(stored).fused()[1], there(problem).fused()[1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("log_theta", np.log([1e-9, 1e-6, 1e6, 1e9]))
@pytest.mark.parametrize("library", [1e-8, 30.0, 1e5, 1e8])
def test_extreme_dispersions_and_means_agree_with_the_definition(log_theta, library):
    problem = make(6, 37, seed=5)
    assert_agrees(
        there(
            replace(
                problem,
                log_theta=torch.full_like(problem.log_theta, float(log_theta)),
                library=torch.full_like(problem.library, library),
            )
        )
    )


def test_logits_far_apart_stay_finite_and_right():
    problem = make(10, 30, seed=6)
    problem = replace(problem, bias=torch.where(torch.arange(30) % 3 == 0, 80.0, -80.0))
    assert_agrees(there(problem))
    assert_agrees(there(replace(problem, log_theta=torch.full_like(problem.log_theta, float(np.log(1e-6))))))


@pytest.mark.parametrize("theta", [1e-6, 0.3, 10.0, 1e6])
@pytest.mark.parametrize("mean", [1e-8, 0.3, 20.0, 1e5])
@pytest.mark.parametrize("x", [0.0, 1.0, 3.0, 2.5, 100.0, 1e5])
def test_one_cell_and_one_gene_give_the_exact_derivative_in_the_inverse_dispersion(x, mean, theta):
    problem = replace(
        make(1, 1, n_features=1),
        counts=csr(np.array([[x]], np.float32)),
        library=tensor([mean]),
        log_theta=tensor([[np.log(theta)]]),
        row_weight=torch.ones(1),
    )
    parameters = (np.log(float(problem.library)), float(problem.log_theta))
    _, per_row, (_, _, bias, slope) = there(problem).fused()
    assert float(per_row) == pytest.approx(
        references.log_probability(references.negative_binomial, x, parameters), rel=1e-6, abs=1e-7 * (x + mean)
    )
    zero = references.gradient(references.negative_binomial, 0.0, parameters)[1]
    expected = references.gradient(references.negative_binomial, x, parameters)[1]
    # the parts of a zero and of the count are added in float32, and the latter is a difference of two near x in float64
    rounding = 1e-6 * (abs(zero) + abs(expected - zero)) + 2**-49 * x
    assert float(slope) == pytest.approx(expected, rel=3e-6, abs=rounding)
    assert abs(float(bias)) <= 1e-6 * (x + mean)


def test_values_alone_leave_no_gradient():
    problem = there(make(11, 23))
    with torch.no_grad():
        result = autograd.negative_binomial(
            *(getattr(problem, name) for name in NAMES),
            problem.counts, problem.library, problem.group, problem.row_weight,
        )  # fmt: skip
    total, per_row, _ = problem.fused()
    assert not result.total.requires_grad
    assert torch.equal(result.total, total)
    assert torch.equal(result.per_row, per_row)


def test_repeated_calls_give_the_same_bits():
    first, again = (there(make(9, 45, draws=2, groups=3)).fused() for _ in range(2))
    assert torch.equal(first[1], again[1])
    assert all(torch.equal(a, b) for a, b in zip(first[2], again[2], strict=True))


# the other heads


def head(name: str, problem: Problem, dtype: torch.dtype, upstream: float):
    """Total, log p per row and gradients; float32 takes the kernel, float64 the plain definition."""
    generator = torch.Generator().manual_seed(3)
    tensors = [problem.features, problem.weight, problem.bias]
    if name == "zinb":
        inflation = [torch.randn(t.shape, generator=generator).to(WHERE) - 0.5 for t in tensors[1:]]
        tensors += [*inflation, problem.log_theta]
    leaves = [t.detach().clone().to(dtype).requires_grad_() for t in tensors]
    counts = problem.counts.with_values(problem.counts.values.to(dtype))
    library, row_weight = problem.library.to(dtype), problem.row_weight.to(dtype)
    if name == "zinb":
        result = autograd.zero_inflated(*leaves, counts, library, problem.group, row_weight)
    else:
        result = autograd.poisson(*leaves, counts, library, row_weight)
    (upstream * result.total).backward()
    return result.total.detach(), result.per_row, [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("name", ["zinb", "poisson"])
@pytest.mark.parametrize(("n_cells", "n_genes", "draws", "groups"), SHAPES)
@pytest.mark.usefixtures("tiles")
def test_other_heads_give_the_value_and_gradients_of_their_definition(name, n_cells, n_genes, draws, groups):
    problem = there(make(n_cells, n_genes, draws=draws, groups=groups))
    total, per_row, gradients = head(name, problem, torch.float32, -1.5)
    plain_total, plain_per_row, plain_gradients = head(name, problem, torch.float64, -1.5)
    # float32 sums of terms of either sign: the error is relative to the largest of them
    torch.testing.assert_close(per_row.double(), plain_per_row, rtol=2e-5, atol=1e-5)
    size = float((problem.row_weight.double() * plain_per_row).abs().sum())
    assert abs(float(total) - float(plain_total)) <= 2e-5 * size + 1e-5
    for found, expected in zip(gradients, plain_gradients, strict=True):
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5 * scale + 1e-7)


# rows to dense


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 1), (9, 70), (4, 600)])
@pytest.mark.usefixtures("tiles")
def test_dense_rows_are_those_of_the_matrix(n_cells, n_genes):
    problem = there(make(n_cells, n_genes))
    expected = problem.counts.to_dense()
    scale = torch.linspace(0.1, 3.0, n_cells, device=WHERE)
    for rows in (problem.counts, narrow(problem).counts):
        assert torch.equal(fused_cuda.densify(rows), expected)
        transformed = fused_cuda.densify(rows, scale)
        torch.testing.assert_close(transformed, torch.log1p(expected * scale[:, None]), rtol=1e-6, atol=0)
    some = torch.tensor([n_cells - 1, 0, n_cells - 1], device=WHERE)
    assert torch.equal(fused_cuda.densify(narrow(problem).counts.select(some)), expected[some])


def test_no_rows_are_a_block_without_rows():
    nothing = CSR.from_numpy(np.zeros(1), np.zeros(0), np.zeros(0), 5).map(lambda t: t.to(WHERE))
    assert fused_cuda.densify(nothing).shape == (0, 5)


@pytest.mark.skipif(INTERPRETED, reason="on the CPU the product is numba's")
def test_the_first_layer_has_the_product_and_gradient_of_the_definition():
    problem = there(make(12, 60))
    weight = torch.randn(60, 8, device=WHERE, requires_grad=True)
    product = autograd.csr_matmul(problem.counts, weight)
    dense = problem.counts.to_dense()
    torch.testing.assert_close(product, dense @ weight, rtol=1e-5, atol=1e-4)
    product.square().sum().backward()
    torch.testing.assert_close(weight.grad, dense.T @ (2 * product.detach()), rtol=1e-4, atol=1e-2)
