"""The mixture of normals fitted to posteriors."""

import numpy as np
import pytest
import torch
from scipy import stats

from scvae.inference.mixture import fit_mixture

CENTRES, SDS = np.array([[0, 0, 5.0], [6, 0, 6.0]]), np.array([[1, 0.5, 0.2], [0.3, 1, 0.2]])


def two_clouds(n, rng):
    home = rng.choice(2, size=n, p=[0.7, 0.3])
    return CENTRES[home] + SDS[home] * rng.standard_normal((n, 3))


def test_it_finds_the_clouds_that_points_were_drawn_from():
    rng = np.random.default_rng(0)
    points = two_clouds(3000, rng)
    found = fit_mixture(points, np.zeros_like(points), rng)
    order = found.centre[:, 0].argsort()
    np.testing.assert_allclose(found.weight[order], [0.7, 0.3], atol=0.03)
    np.testing.assert_allclose(found.centre[order], CENTRES, atol=0.08)
    covariance = (found.factor @ found.factor.mT)[order]
    np.testing.assert_allclose(covariance.diagonal(dim1=1, dim2=2).sqrt(), SDS, rtol=0.08)


def test_points_of_one_normal_get_one_component_with_their_covariance():
    rng = np.random.default_rng(1)
    covariance = np.array([[2.0, 1.2], [1.2, 1.0]])
    points = rng.multivariate_normal([3.0, -1.0], covariance, 4000)
    found = fit_mixture(points, np.zeros_like(points), rng)
    assert len(found.weight) == 1
    np.testing.assert_allclose(found.factor[0] @ found.factor[0].T, covariance, rtol=0.06)


def test_the_width_of_posteriors_belongs_to_the_density():
    """Means at ±2, each posterior with its own width: q(z) is the mean of them, not of their means."""
    rng = np.random.default_rng(2)
    mean = rng.choice([-2.0, 2.0], (2000, 1))
    found = fit_mixture(mean, rng.choice([0.04, 0.16], (2000, 1)), rng)
    assert len(found.weight) == 2
    np.testing.assert_allclose(found.factor.flatten() ** 2, 0.10, rtol=0.1)


def test_the_points_held_out_choose_the_number_of_components():
    rng = np.random.default_rng(3)
    points = two_clouds(400, rng)
    left = np.flatnonzero(points[:, 0] < 3.5)  # none of these has anything of the second cloud
    one = fit_mixture(points[left], np.zeros((len(left), 3)), rng, held_out=np.arange(0, len(left), 4))
    both = fit_mixture(points, np.zeros_like(points), rng, held_out=np.arange(0, 400, 4))
    assert (len(one.weight), len(both.weight)) == (1, 2)


@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_few_points_get_few_components(n):
    rng = np.random.default_rng(4)
    points = rng.standard_normal((n, 5))
    found = fit_mixture(points, np.full((n, 5), 0.3), rng)
    assert len(found.weight) <= max(1, n // 15)
    assert torch.isfinite(found.log_prob(torch.from_numpy(points).float())).all()


def test_a_column_without_variance_is_no_trouble():
    rng = np.random.default_rng(5)
    points = np.column_stack([rng.standard_normal(200), np.full(200, 3.0)])
    found = fit_mixture(points, np.zeros_like(points), rng)
    assert float(found.mean[1]) == pytest.approx(3.0, abs=0.01)
    expected = stats.norm.logpdf(points[:, 0], points[:, 0].mean(), points[:, 0].std())
    found.drop_dimensions(torch.tensor([False, True]))
    np.testing.assert_allclose(found.log_prob(torch.from_numpy(points[:, :1]).float()), expected, atol=0.15)
