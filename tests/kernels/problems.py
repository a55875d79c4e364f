"""Inputs for the fused likelihood, its plain-torch counterpart in float64, and how far float32 may be from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from scvae.kernels import autograd, reference
from scvae.kernels.csr import CSR

NAMES = ("features", "weight", "bias", "log_theta")
UNIT = 2.0**-22  # two units in the last place of float32


@dataclass(frozen=True)
class Problem:
    features: Tensor
    weight: Tensor
    bias: Tensor
    log_theta: Tensor
    counts: CSR
    library: Tensor
    group: Tensor
    row_weight: Tensor

    def fused(
        self, upstream: float = 1.0, wanted: tuple[str, ...] = NAMES
    ) -> tuple[Tensor, Tensor, list[Tensor | None]]:
        """Total, log p per row and the gradients of upstream * total through `autograd.negative_binomial`."""
        leaves = [getattr(self, name).clone().requires_grad_(name in wanted) for name in NAMES]
        result = autograd.negative_binomial(*leaves, self.counts, self.library, self.group, self.row_weight)
        (upstream * result.total).backward()
        return result.total.detach(), result.per_row, [leaf.grad for leaf in leaves]

    def plain(self, upstream: float = 1.0) -> tuple[Tensor, Tensor, list[Tensor]]:
        """The same from the reference formulas, in float64."""
        leaves = [getattr(self, name).double().requires_grad_() for name in NAMES]
        features, weight, bias, log_theta = leaves
        draws = len(features) // len(self.counts)
        log_mean = reference.log_softmax_mean(features @ weight.T + bias, self.library.repeat(draws))
        x = self.counts.to_dense().repeat(draws, 1)
        per_row = reference.negative_binomial_log_prob(x, log_mean, log_theta[self.group.repeat(draws)]).sum(1)
        total = (self.row_weight.double() * per_row).sum()
        (upstream * total).backward()
        return total.detach(), per_row.detach(), [leaf.grad for leaf in leaves]

    def magnitudes(self) -> tuple[Tensor, list[Tensor]]:
        """Sums of the absolute terms behind log p per row and behind each gradient: what rounding is relative to."""
        draws = len(self.features) // len(self.counts)
        features, weight = self.features.double(), self.weight.double()
        logits = features @ weight.T + self.bias.double()
        log_mean = reference.log_softmax_mean(logits, self.library.repeat(draws))
        x = self.counts.to_dense().double().repeat(draws, 1)
        groups = self.group.repeat(draws)
        log_theta = self.log_theta.double()[groups]
        each = -reference.negative_binomial_log_prob(x, log_mean, log_theta) + x * (1 + log_theta.abs() / 16)
        # logits of size L are known to L units, and so are the logs of means that they stand for
        factor = 4.0 + logits.abs().amax(1, keepdim=True)
        mean, pulled = log_mean.exp(), logits.softmax(1) * x.sum(1, keepdim=True)
        slopes = factor * self.row_weight.double().abs()[:, None] * (x + mean + pulled)
        by_group = torch.zeros_like(self.log_theta, dtype=torch.float64).index_add_(0, groups, slopes)
        gradients = [slopes @ weight.abs(), slopes.T @ features.abs(), slopes.sum(0), by_group]
        return (factor * (each + x + mean)).sum(1), gradients


def make(n_cells: int, n_genes: int, *, seed: int = 0, draws: int = 1, groups: int = 1, n_features: int = 7) -> Problem:
    """Over-dispersed counts, with an empty cell and a gene never seen where the shape allows, and uneven weights."""
    rng = np.random.default_rng(seed)
    dense = rng.negative_binomial(0.4, 0.2, (n_cells, n_genes)).astype(np.float32)
    if n_cells > 2 and n_genes > 2:
        dense[n_cells // 2] = 0
        dense[:, n_genes // 3] = 0
    row_weight = rng.uniform(0.0, 2.0, draws * n_cells)
    if n_cells > 2:
        row_weight[1] = 0.0
    return with_counts(
        Problem(
            tensor(rng.normal(size=(draws * n_cells, n_features))),
            tensor(rng.normal(size=(n_genes, n_features)) * 0.4),
            tensor(rng.normal(size=n_genes)),
            tensor(rng.normal(size=(groups, n_genes))),
            csr(dense),
            tensor(dense.sum(1)),
            torch.from_numpy(rng.integers(0, groups, n_cells)),
            tensor(row_weight),
        ),
        dense,
    )


def with_counts(problem: Problem, dense: np.ndarray) -> Problem:
    """The problem with other counts and their row sums as library sizes."""
    return replace(problem, counts=csr(dense), library=tensor(dense.sum(1)))


def csr(dense: np.ndarray) -> CSR:
    cells, genes = np.nonzero(dense)
    indptr = np.concatenate([[0], np.cumsum(np.bincount(cells, minlength=len(dense)))])
    return CSR.from_numpy(indptr, genes, dense[cells, genes], dense.shape[1])


def tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


def digest() -> str:
    """sha256 of everything that the fused operations return for two shapes."""
    parts = []
    for problem in (make(67, 401, draws=2, groups=3), make(10, 200, n_features=128)):
        total, per_row, gradients = problem.fused()
        weight = problem.weight.clone().requires_grad_()
        product = autograd.csr_matmul(problem.counts, weight, torch.zeros(weight.shape[1]))
        product.square().sum().backward()
        parts += [total, per_row, *gradients, product.detach(), weight.grad]
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).hexdigest()


def assert_agrees(problem: Problem, *, upstream: float = 1.0) -> None:
    """The fused result equals the plain one to the rounding of float32, in value and in every gradient."""
    total, per_row, gradients = problem.fused(upstream)
    plain_total, plain_per_row, plain_gradients = problem.plain(upstream)
    row_size, gradient_sizes = problem.magnitudes()
    weights = problem.row_weight.double().abs()
    assert (per_row - plain_per_row).abs().le(UNIT * row_size).all()
    assert (total - plain_total).abs() <= UNIT * (weights * row_size).sum()
    for name, found, expected, size in zip(NAMES, gradients, plain_gradients, gradient_sizes, strict=True):
        assert torch.isfinite(found).all(), name
        assert (found - expected).abs().le(UNIT * abs(upstream) * size + 1e-30).all(), name
