"""The fused output layer, softmax and negative-binomial likelihood against its plain definition."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scvae.kernels import autograd, fused_cpu
from tests import references
from tests.kernels.problems import NAMES, assert_agrees, csr, digest, make, tensor, with_counts

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _needs_the_fused_kernel():
    assert autograd.cpu_kernels() is not None, "numba must be importable: these tests would compare nothing"


@pytest.mark.parametrize(
    ("n_cells", "n_genes", "draws", "groups"),
    [(1, 1, 1, 1), (41, 401, 1, 1), (1, 513, 3, 1), (17, 1, 2, 2), (41, 67, 5, 3), (5, 2000, 1, 5)],
)
def test_value_and_gradients_are_those_of_the_definition(n_cells, n_genes, draws, groups):
    assert_agrees(make(n_cells, n_genes, draws=draws, groups=groups))


@pytest.mark.parametrize("upstream", [-3.0, 0.25])
def test_gradients_are_scaled_by_the_upstream_gradient(upstream):
    assert_agrees(make(13, 29, draws=2, groups=2), upstream=upstream)


@pytest.mark.parametrize("wanted", [("features",), ("weight",), ("bias", "log_theta")])
def test_what_is_frozen_gets_no_gradient_and_the_rest_keeps_its_own(wanted):
    problem = make(13, 29, draws=2, groups=2)
    *_, every = problem.fused(upstream=-0.5)
    *_, some = problem.fused(upstream=-0.5, wanted=wanted)
    for name, found, expected in zip(NAMES, some, every, strict=True):
        assert (found is None) == (name not in wanted)
        assert found is None or torch.equal(found, expected), name


def test_a_cell_without_counts_gives_zero_and_no_gradient():
    problem = make(9, 31)
    empty = 9 // 2
    assert problem.library[empty] == 0
    for alone in (problem, with_counts(problem, np.zeros((9, 31), np.float32))):
        _, per_row, (features, *_) = alone.fused()
        assert per_row[empty] == 0
        assert torch.equal(features[empty], torch.zeros(7))
    assert all(not gradient.any() for gradient in alone.fused()[2])


def test_a_cell_without_counts_is_untouched_by_a_broken_neighbour():
    """Its proportions matter to no number, yet what another row left in their place must not come through."""
    problem = with_counts(make(4, 20), np.array([[1] * 20, [0] * 20, [2] * 20, [1] * 20], np.float32))
    broken = problem.features.clone()
    broken[0] = float("nan")
    _, per_row, (features, *_) = replace(problem, features=broken).fused()
    assert torch.isnan(per_row).tolist() == [True, False, False, False]
    assert per_row[1] == 0
    assert not features[1].any()


def test_a_row_of_weight_zero_has_a_value_and_no_gradient():
    problem = make(9, 31)
    _, per_row, (features, *_) = problem.fused()
    assert problem.row_weight[1] == 0
    assert per_row[1] < -1
    assert not features[1].any()


def test_draws_of_one_cell_stand_one_after_another():
    """Row i belongs to cell i % cells: each draw alone gives the same rows."""
    problem = make(6, 50, draws=3, groups=2)
    _, together, _ = problem.fused()
    for draw in range(3):
        rows = slice(6 * draw, 6 * (draw + 1))
        one = replace(problem, features=problem.features[rows], row_weight=problem.row_weight[rows])
        np.testing.assert_allclose(together[rows], one.plain()[1], rtol=1e-6)


@pytest.mark.parametrize("budget", [1, 33, 3 * 33, 11 * 33, 25 * 33])
def test_chunks_of_rows_give_what_one_pass_gives(monkeypatch, budget):
    problem = make(11, 33, draws=3, groups=2)
    total, per_row, gradients = problem.fused()
    monkeypatch.setattr(fused_cpu, "LOGITS_BUDGET", budget)
    assert len(fused_cpu._chunks(33, 11, 33)) > 1 or budget >= 11 * 33
    assert_agrees(problem)
    chunked_total, chunked_rows, chunked = problem.fused()
    torch.testing.assert_close(chunked_total, total, rtol=1e-6, atol=0)
    torch.testing.assert_close(chunked_rows, per_row, rtol=1e-6, atol=0)
    for name, found, expected in zip(NAMES, chunked, gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()), msg=name)


def test_counts_may_be_fractions_and_exceed_the_small_count_branch():
    problem = make(12, 40, seed=3)
    dense = problem.counts.to_dense().numpy() * np.float32(0.37)
    dense[3, :20] = np.arange(25, 45)
    dense[4, 5] = 1e5
    assert_agrees(with_counts(problem, dense))


def test_stored_zeros_are_zeros():
    problem = make(6, 20)
    dense = problem.counts.to_dense().numpy()
    padded = csr(dense + 1)
    stored = replace(problem, counts=padded.with_values(padded.values - 1))
    assert len(stored.counts.values) > len(problem.counts.values)
    torch.testing.assert_close(stored.fused()[1], problem.fused()[1], rtol=1e-6, atol=0)
    assert_agrees(stored)


@pytest.mark.parametrize("log_theta", np.log([1e-6, 1e6]))
@pytest.mark.parametrize("library", [1e-8, 30.0, 1e5, 1e8])
def test_extreme_dispersions_and_means_agree_with_the_definition(log_theta, library):
    problem = make(8, 37, seed=5)
    assert_agrees(
        replace(
            problem,
            log_theta=torch.full_like(problem.log_theta, float(log_theta)),
            library=torch.full_like(problem.library, library),
        )
    )


def test_logits_far_apart_stay_finite_and_right():
    problem = make(10, 30, seed=6)
    bias = torch.where(torch.arange(30) % 3 == 0, 80.0, -80.0)
    assert_agrees(replace(problem, bias=bias))
    assert_agrees(replace(problem, bias=bias, log_theta=torch.full_like(problem.log_theta, float(np.log(1e-6)))))


@pytest.mark.parametrize("theta", [1e-6, 0.3, 10.0, 1e6])
@pytest.mark.parametrize("mean", [1e-8, 0.3, 20.0, 1e5])
@pytest.mark.parametrize("x", [0.0, 1.0, 3.0, 2.5, 100.0, 1e5])
def test_one_cell_and_one_gene_give_the_exact_derivative_in_the_inverse_dispersion(x, mean, theta):
    """With one gene the mean is the library size, so that mpmath can judge the kernel without a tolerance for logits.

    At theta = 1e6 the derivative is a small remainder of large terms, which float32 subtraction would wipe out.
    """
    problem = make(1, 1, n_features=1)
    problem = replace(
        problem,
        counts=csr(np.array([[x]], np.float32)),
        library=tensor([mean]),
        log_theta=tensor([[np.log(theta)]]),
        row_weight=torch.ones(1),
    )
    parameters = (np.log(float(problem.library)), float(problem.log_theta))
    _, per_row, (_, _, bias, slope) = problem.fused()
    assert float(per_row) == pytest.approx(
        references.log_probability(references.negative_binomial, x, parameters), rel=1e-6, abs=1e-7 * (x + mean)
    )
    zero = references.gradient(references.negative_binomial, 0.0, parameters)[1]
    expected = references.gradient(references.negative_binomial, x, parameters)[1]
    # the parts of a zero and of the count are added in float32, and the latter is a difference of two near x in float64
    rounding = 1e-6 * (abs(zero) + abs(expected - zero)) + 2**-51 * x
    assert float(slope) == pytest.approx(expected, rel=3e-6, abs=rounding)
    assert abs(float(bias)) <= 1e-6 * (x + mean)


def test_a_nan_in_a_parameter_reaches_the_total():
    """A step that is not finite must be seen as such by the training loop."""
    problem = make(5, 600)
    for name in NAMES:
        broken = getattr(problem, name).clone()
        broken.view(-1)[3] = float("nan")
        assert torch.isnan(replace(problem, **{name: broken}).fused()[0])


def test_only_values_are_computed_when_no_gradient_is_wanted():
    problem = make(11, 23)
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
    assert digest() == digest()


def test_without_numba_the_plain_definition_is_used(monkeypatch):
    problem = make(14, 33, draws=2, groups=2)
    fused = problem.fused(0.5)
    monkeypatch.setattr(autograd, "cpu_kernels", lambda: None)
    total, per_row, gradients = problem.fused(0.5)
    assert gradients[0].dtype == torch.float32
    torch.testing.assert_close(per_row, fused[1], rtol=1e-5, atol=0)
    assert float(total) == pytest.approx(float(fused[0]), rel=1e-5)
    assert_agrees(problem, upstream=-2.0)
