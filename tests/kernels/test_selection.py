"""Rows picked from a matrix, in plain torch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from scvae.kernels.csr import CSR
from scvae.kernels.fused_cuda import densify
from tests.kernels.problems import make


def narrow(rows):
    return replace(rows, indices=rows.indices.to(torch.int16), values=rows.values.to(torch.uint8))


@pytest.mark.parametrize(("n_cells", "n_genes"), [(1, 1), (9, 70), (4, 600)])
def test_all_rows_are_the_matrix_in_any_type(n_cells, n_genes):
    counts = make(n_cells, n_genes).counts
    for rows in (counts.selected(), narrow(counts.selected())):
        assert len(rows) == n_cells
        assert torch.equal(rows.to_dense(), counts.to_dense())
        assert torch.equal(densify(rows), counts.to_dense())


def test_rows_are_picked_in_the_order_of_the_positions_and_may_repeat():
    counts = make(9, 70).counts
    some = torch.tensor([8, 0, 4, 8])
    picked = narrow(counts.selected()).select(some)
    assert torch.equal(picked.to_dense(), counts.to_dense()[some])
    again = torch.tensor([3, 1])
    assert torch.equal(picked.select(again).to_dense(), counts.to_dense()[some[again]])


def test_a_scale_gives_log1p_of_the_scaled_values():
    counts, scale = make(9, 70).counts, torch.linspace(0.1, 3.0, 9)
    expected = torch.log1p(counts.to_dense() * scale[:, None])
    torch.testing.assert_close(densify(counts.selected(), scale), expected, rtol=1e-6, atol=0)


def test_a_bound_on_the_longest_row_may_be_generous_and_is_never_beyond_what_is_stored():
    rows = make(9, 70).counts.selected()
    assert torch.equal(replace(rows, longest=1000).to_dense(), rows.to_dense())
    nothing = CSR.from_numpy(np.zeros(4), np.zeros(0), np.zeros(0), 5).selected()
    assert nothing.longest == 0
    assert torch.equal(nothing.to_dense(), torch.zeros(3, 5))
