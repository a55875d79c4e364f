"""Heads compared on held-out cells: those of each measurement, on the scale of its values."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy import stats

from scvae.data.batches import Batch
from scvae.data.rows import SparseRows
from scvae.data.views import ViewCells
from scvae.diagnostics.clr import GaussianOfCounts, as_clr
from scvae.kernels.block import Dense
from scvae.likelihoods import Gaussian

COUNTS = np.array([[0, 3, 1500, 40], [2, 0, 0, 7], [0, 0, 0, 0]], dtype=np.float32)


def view_of(counts, *, missing=None):
    stored = sp.csr_array(counts)
    rows = SparseRows(stored.indptr, stored.indices, stored.data, counts.shape[1])
    return ViewCells(rows, counts.sum(1), counts.sum(1) > 0, missing)


def head_of(n_features=4):
    gaussian = Gaussian(2, n_features, minimum_scale=0.1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gaussian.centre.copy_(torch.linspace(-1, 2, n_features))
        gaussian.spread.copy_(torch.linspace(0.4, 1.5, n_features))
    return gaussian, GaussianOfCounts.like(gaussian)


def batch_of(view):
    x = view.rows.take(np.arange(view.rows.n_cells))
    n = view.rows.n_cells
    none = torch.zeros(n, 0)
    missing = None if view.missing is None else torch.from_numpy(view.missing)
    return Batch(x, torch.from_numpy(view.library), none.long(), none, missing=missing)


def test_a_gaussian_of_clr_values_gives_each_count_the_probability_of_its_interval():
    clr = as_clr(view_of(COUNTS))
    centre = np.log1p(COUNTS).mean(1)
    np.testing.assert_allclose(clr.library, np.exp(centre), rtol=1e-6)
    np.testing.assert_allclose(
        clr.rows.take(np.arange(2)).to_dense().numpy(), (np.log1p(COUNTS) - centre[:, None])[:2], atol=1e-6
    )
    gaussian, head = head_of()
    features = torch.tensor([[0.5, -1.0], [2.0, 0.3], [0.0, 0.0]])
    law = gaussian.distribution(features, batch_of(clr))
    mean, scale = law.mean.detach().numpy().astype(float), law.log_scale.exp().detach().numpy().astype(float)

    low = np.where(COUNTS > 0, np.log(COUNTS + 0.5), -np.inf) - centre[:, None]
    high = np.log(COUNTS + 1.5) - centre[:, None]
    expected = np.log(stats.norm.cdf(high, mean, scale) - stats.norm.cdf(low, mean, scale)).sum(1)
    found = head.log_prob(features, batch_of(clr), torch.ones(3)).per_row.detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_probabilities_of_all_counts_add_up_to_one_given_the_mean_of_the_logs():
    centre, counts = 1.7, np.arange(200_000, dtype=np.float32)
    _, head = head_of(1)
    with torch.no_grad():
        head.centre.fill_(-0.5)
    clr = torch.from_numpy(np.log1p(counts) - np.float32(centre))[:, None]
    library = torch.full((len(counts),), np.exp(centre), dtype=torch.float32)
    none = torch.zeros(len(counts), 0)
    batch = Batch(Dense(clr), library, none.long(), none)
    found = head.log_prob(torch.zeros(len(counts), 2), batch, torch.ones(len(counts))).per_row.detach().double()
    assert float(found.exp().sum()) == pytest.approx(1.0, abs=1e-4)
    assert torch.isfinite(found).all()  # far in the tail, too


def test_features_that_were_not_measured_have_no_part():
    _, head = head_of()
    few = COUNTS.copy()
    few[:, 2] = 0.0
    clr = as_clr(view_of(few, missing=np.array([2])))
    centre = np.log1p(np.delete(few, 2, 1)).mean(1)
    np.testing.assert_allclose(clr.library, np.exp(centre), rtol=1e-6)
    batch, features = batch_of(clr), torch.zeros(3, 2)
    found = head.log_prob(features, batch, torch.ones(3)).per_row
    with torch.no_grad():
        head.centre[2] = 50.0
    torch.testing.assert_close(head.log_prob(features, batch, torch.ones(3)).per_row, found)
