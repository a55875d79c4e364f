"""The fused zero-inflated, Poisson and Bernoulli likelihoods against their plain definitions in float64."""

from __future__ import annotations

import pytest
import torch

from scvae.kernels import autograd, fused_cpu
from scvae.kernels.csr import CSR
from tests.kernels.problems import Problem, csr, make, tensor, with_counts

HEADS = ("zero_inflated", "poisson", "bernoulli")
SHAPES = [(1, 1, 1, 1), (41, 401, 1, 1), (1, 513, 3, 1), (17, 1, 2, 2), (41, 67, 5, 3)]


@pytest.fixture(autouse=True)
def _needs_the_fused_kernels():
    assert autograd.cpu_kernels() is not None, "numba must be importable: these tests would compare nothing"


def in_float64(rows: CSR) -> CSR:
    return rows.with_values(rows.values.double())


def run(head: str, problem: Problem, dtype: torch.dtype, upstream: float = 1.0):
    """Total, log p per row and all gradients; float32 takes the fused kernel, float64 the plain definition."""
    generator = torch.Generator().manual_seed(3)
    zero_weight = torch.randn(problem.weight.shape, generator=generator)
    zero_bias = torch.randn(problem.bias.shape, generator=generator) - 1.0
    tensors = [problem.features, problem.weight, problem.bias]
    if head == "zero_inflated":
        tensors += [zero_weight, zero_bias, problem.log_theta]
    leaves = [t.detach().clone().to(dtype).requires_grad_() for t in tensors]
    counts = problem.counts if dtype == torch.float32 else in_float64(problem.counts)
    library, row_weight = problem.library.to(dtype), problem.row_weight.to(dtype)
    if head == "zero_inflated":
        result = autograd.zero_inflated(*leaves, counts, library, problem.group, row_weight)
    elif head == "poisson":
        result = autograd.poisson(*leaves, counts, library, row_weight)
    else:
        result = autograd.bernoulli(*leaves, counts.with_values((counts.values > 0).to(dtype)), row_weight)
    (upstream * result.total).backward()
    return result.total.detach(), result.per_row, [leaf.grad for leaf in leaves]


def check(head: str, problem: Problem, upstream: float = 1.0) -> None:
    total, per_row, gradients = run(head, problem, torch.float32, upstream)
    plain_total, plain_per_row, plain_gradients = run(head, problem, torch.float64, upstream)
    # float32 sums of terms of either sign: the error is relative to the largest of them
    torch.testing.assert_close(per_row.double(), plain_per_row, rtol=2e-5, atol=1e-5)
    size = float((problem.row_weight.double() * plain_per_row).abs().sum())
    assert abs(float(total) - float(plain_total)) <= 2e-5 * size + 1e-5
    for found, expected in zip(gradients, plain_gradients, strict=True):
        assert torch.isfinite(found).all()
        scale = float(expected.abs().max())
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=2e-5 * scale + 1e-7)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("n_cells", "n_genes", "draws", "groups"), SHAPES)
def test_value_and_gradients_are_those_of_the_definition(head, n_cells, n_genes, draws, groups):
    check(head, make(n_cells, n_genes, draws=draws, groups=groups))


@pytest.mark.parametrize("head", HEADS)
def test_gradients_are_scaled_by_the_upstream_gradient(head):
    check(head, make(13, 29, draws=2, groups=2), upstream=-3.0)


@pytest.mark.parametrize("head", HEADS)
def test_chunks_of_rows_give_what_one_pass_gives(head, monkeypatch):
    problem = make(23, 31, draws=3, groups=2)
    whole = run(head, problem, torch.float32)
    monkeypatch.setattr(fused_cpu, "LOGITS_BUDGET", 200)
    parts = run(head, problem, torch.float32)
    torch.testing.assert_close(parts[1], whole[1], rtol=1e-6, atol=1e-6)
    for found, expected in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_large_counts_and_fractions_agree_with_the_definition():
    problem = make(11, 40, groups=2)
    dense = problem.counts.to_dense()
    dense[0, 0], dense[1, 1], dense[2, 2] = 1e5, 40.0, 0.25
    for head in ("zero_inflated", "poisson"):
        check(head, with_counts(problem, dense.numpy()))


@pytest.mark.parametrize("level", [-30.0, 30.0])
def test_inflation_near_none_and_near_all_stays_finite(level):
    problem = make(9, 21)
    zero_weight, zero_bias = torch.zeros_like(problem.weight), torch.full_like(problem.bias, level)
    arguments = (problem.counts, problem.library, problem.group, problem.row_weight)
    leaves = [t.clone().requires_grad_() for t in (problem.features, problem.weight, problem.bias)]
    result = autograd.zero_inflated(*leaves, zero_weight, zero_bias, problem.log_theta, *arguments)
    result.total.backward()
    assert all(torch.isfinite(leaf.grad).all() for leaf in leaves)
    if level < 0:
        plain = autograd.negative_binomial(
            problem.features, problem.weight, problem.bias, problem.log_theta, *arguments
        )
        torch.testing.assert_close(result.per_row, plain.per_row, rtol=1e-6, atol=1e-4)
    else:
        n_seen = tensor((problem.counts.to_dense() > 0).sum(1).numpy())
        empty = n_seen == 0
        assert torch.allclose(result.per_row[empty], torch.zeros(int(empty.sum())), atol=1e-5)
        assert (result.per_row[~empty] < -level * n_seen[~empty] * 0.99).all()


@pytest.mark.parametrize("head", HEADS)
def test_a_nan_in_a_parameter_reaches_the_total(head):
    problem = make(6, 12)
    problem.bias[3] = float("nan")
    assert torch.isnan(run(head, problem, torch.float32)[0])


def test_a_nan_in_a_dispersion_reaches_the_zero_inflated_total():
    problem = make(6, 12)
    problem.log_theta[0, 5] = float("nan")
    assert torch.isnan(run("zero_inflated", problem, torch.float32)[0])


def test_a_feature_closed_everywhere_costs_softplus():
    rows = csr(torch.zeros(2, 3).numpy())
    logits = torch.tensor([-200.0, 0.0, 200.0])
    result = autograd.bernoulli(torch.ones(2, 1), logits[:, None], torch.zeros(3), rows, torch.ones(2))
    expected = float(-torch.nn.functional.softplus(logits.double()).sum())
    assert result.per_row.tolist() == pytest.approx([expected] * 2, rel=1e-6)
