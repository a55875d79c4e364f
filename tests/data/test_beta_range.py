"""Where a model of many β learns, and which β its cells are given."""

import math

import numpy as np
import pytest
import torch

from scvae.data.beta_range import LEAN, MARGIN_ABOVE, MARGIN_BELOW, BetaRange

RANGE = BetaRange(0.1, 10.0)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(0.1, 10.0, 1.0), (0.5, 1.0, 1.0), (2.0, 8.0, 4.0), (0.01, 0.04, 0.02)]
)
def test_the_default_is_one_where_it_can_be_and_the_geometric_middle_elsewhere(low, high, expected):
    assert BetaRange(low, high).default == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high", "knots"), [(0.9, 1.1, 2), (0.1, 1.0, 2), (0.1, 10.0, 3), (1e-3, 100.0, 6)])
def test_there_is_a_knot_for_each_factor_of_ten_and_one_more(low, high, knots):
    assert BetaRange(low, high).n_knots == knots
    assert BetaRange(low, high).hats(torch.zeros(4)).shape == (4, knots)


def test_hats_interpolate_linearly_in_log_beta_and_stay_beyond_the_ends():
    beta = torch.tensor([0.01, 0.1, math.sqrt(0.1), 1.0, 10**0.25, 10.0, 50.0])
    expected = [[1, 0, 0], [1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.75, 0.25], [0, 0, 1], [0, 0, 1]]
    torch.testing.assert_close(RANGE.hats(beta.log()), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("n", [1, 7, 128])
@pytest.mark.parametrize("offset", [0.0, 0.6, 1 - 1e-6])
def test_the_betas_of_a_batch_are_one_of_each_stratum(n, offset):
    log_beta = RANGE.draw(n, torch.tensor(offset))
    width = math.log(100.0)
    share = (log_beta.double() - math.log(0.1) + MARGIN_BELOW * width) / (width * (1 + MARGIN_BELOW + MARGIN_ABOVE))
    strata = (share ** (1 / LEAN) * n - offset).numpy()
    np.testing.assert_allclose(strata, np.arange(n), atol=1e-3)


def test_cells_to_be_judged_by_cover_the_range_evenly_in_any_part_of_them():
    log_beta = RANGE.spread(1000)
    assert math.log(0.1) <= log_beta.min()
    assert log_beta.max() <= math.log(10.0)
    for part in (log_beta[:100], log_beta[450:550], log_beta):
        counts, _ = np.histogram(part.numpy(), bins=10, range=(math.log(0.1), math.log(10.0)))
        assert counts.min() >= 0.08 * len(part)
        assert counts.max() <= 0.12 * len(part)


def test_the_place_above_the_middle_is_zero_in_the_lower_half_and_rises_to_one():
    beta = torch.tensor([0.01, 0.1, 1.0, 10**0.5, 10.0, 30.0])
    torch.testing.assert_close(RANGE.above_middle(beta.log()), torch.tensor([0, 0, 0, 0.5, 1, 1]), atol=1e-6, rtol=0)


def test_betas_are_told_relative_to_the_default():
    beta = torch.tensor([2.0, 4.0, 8.0])
    torch.testing.assert_close(BetaRange(2.0, 8.0).relative(beta.log()), torch.tensor([0.5, 1.0, 2.0]))
