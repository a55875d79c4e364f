"""Rows picked from a store where the Triton kernels cannot be used: plain torch gives what the kernels would."""

from __future__ import annotations

import logging
import sys

import pytest
import torch

import scvae.kernels
from scvae.kernels import autograd, backends
from tests.kernels.problems import make

INPUTS = {
    "negative_binomial": ("features", "weight", "bias", "log_theta"),
    "zero_inflated": ("features", "weight", "bias", "weight", "bias", "log_theta"),
    "poisson": ("features", "weight", "bias"),
    "bernoulli": ("features", "weight", "bias"),
}


@pytest.mark.parametrize("head", INPUTS)
def test_picked_rows_give_the_value_and_gradients_of_the_same_rows_by_themselves(head):
    problem = make(7, 41, draws=2, groups=2)
    counts = problem.counts
    if head == "bernoulli":
        counts = counts.with_values((counts.values > 0).float())
    rest = {
        "negative_binomial": (problem.library, problem.group),
        "zero_inflated": (problem.library, problem.group),
        "poisson": (problem.library,),
        "bernoulli": (),
    }[head]
    backwards = counts.selected().select(torch.arange(7).flip(0))
    results = []
    for rows in (counts, backwards.select(torch.arange(7).flip(0))):
        leaves = [getattr(problem, name).clone().requires_grad_() for name in INPUTS[head]]
        result = getattr(autograd, head)(*leaves, rows, *rest, problem.row_weight)
        (-0.5 * result.total).backward()
        results.append((result.per_row, [leaf.grad for leaf in leaves]))
    (expected, gradients), (found, found_gradients) = results
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(found_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=2e-5 * float(other.abs().max()))


def test_without_triton_there_are_no_kernels_and_one_log_line(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "triton", None)  # an import of it fails
    for name in ("cuda", "special"):
        monkeypatch.delitem(sys.modules, f"scvae.kernels.{name}", raising=False)
        monkeypatch.delattr(scvae.kernels, name, raising=False)
    backends._cuda_kernels.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert backends.kernels_for(torch.device("cuda")) is None
            assert backends.kernels_for(torch.device("cuda")) is None
            assert backends.kernels_for(torch.device("cpu")) is None
    finally:
        backends._cuda_kernels.cache_clear()
    (message,) = (record.message for record in caplog.records)
    assert message.startswith("triton is not usable here (")
    assert message.endswith("falls back to plain torch, which is slower")
