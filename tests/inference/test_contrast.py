"""Likelihood ratios of two sides against closed forms, and what makes them smaller."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import nbinom

from scvae.inference.contrast import Side, contrast, overdispersion


def side(mean, *, unit=1e-4, spread=0.0, n_cells=100):
    """A side whose cells and model agree on the overdispersion."""
    mean = np.atleast_1d(np.asarray(mean, float))
    variance = unit * mean + spread * mean**2
    ones = np.ones_like(mean)
    return Side(
        mean=mean, model_mean=np.maximum(mean, 1e-6), variance=variance,
        model_variance=unit * np.maximum(mean, 1e-6) + spread * np.maximum(mean, 1e-6) ** 2,
        unit=unit * ones, counts=mean / unit, squares=mean / unit, detected=ones, n_cells=n_cells,
        mean_library=1 / (unit * n_cells),
    )  # fmt: skip


@pytest.mark.parametrize("spread", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("counts", [(40, 10), (3, 0), (0, 25), (500, 480)])
def test_the_error_reproduces_the_likelihood_ratio(counts, spread):
    a, b = (side(c * 1e-9, unit=1e-9, spread=spread) for c in counts)
    used = [float(overdispersion(s)[0]) for s in (a, b)]

    def log_density(count, mean, s):
        if s == 0:
            return count * np.log(mean) - mean
        return nbinom.logpmf(count, 1 / s, 1 / (1 + s * mean))

    def joint(log_mean):
        return sum(log_density(c, np.exp(log_mean), s) for c, s in zip(counts, used, strict=True))

    common = -minimize_scalar(lambda t: -joint(t), bounds=(-10, 10), method="bounded", options={"xatol": 1e-10}).fun
    apart = sum(log_density(c, max(c, 1e-300), s) if c else 0.0 for c, s in zip(counts, used, strict=True))
    ratio = 2 * (apart - common)
    found = contrast(a, b)
    assert np.sign(found.estimate[0]) == np.sign(counts[0] - counts[1])
    if ratio > 1:
        assert (found.estimate[0] / found.error[0]) ** 2 == pytest.approx(ratio, rel=1e-4)


def test_what_cells_show_outweighs_the_model_where_they_are_many():
    # of 400 genes all but one are as the model says, and that one is four times as overdispersed
    for n_cells, low, high in ((5, 1.0, 1.6), (5000, 3.5, 4.0)):
        s = side(np.full(400, 1e-2), unit=1e-3 / n_cells, spread=1.0 / n_cells, n_cells=n_cells)
        cells_say = np.where(np.arange(400) == 0, 4.0, 1.0) / n_cells
        found = overdispersion(replace(s, variance=s.unit * s.mean + cells_say * s.mean**2)) * n_cells
        assert low <= found[0] < high
        np.testing.assert_allclose(found[1:], 1.0, atol=0.05)


def test_what_the_model_lacks_is_learnt_from_all_genes():
    # cells show an overdispersion of 0.5 that a Poisson model has nothing of; with few cells they show it badly
    n_cells, rng = 30, np.random.default_rng(0)
    s = side(np.full(500, 1e-2), unit=1e-3 / n_cells, n_cells=n_cells)
    cells_say = 0.5 / n_cells + np.sqrt((0.6 / n_cells) ** 2 * 2 / n_cells) * rng.normal(size=500)
    found = overdispersion(replace(s, variance=s.unit * s.mean + cells_say * s.mean**2)) * n_cells
    assert found.mean() == pytest.approx(0.5, abs=0.03)
    assert found.std() < 0.5 * (cells_say * n_cells).std()


def test_counts_that_one_cell_holds_are_one_event():
    # 340 counts against none: spread over the cells a difference, in one cell what any cell may do
    spread_out, none = (side(count * 1e-9, unit=1e-9, n_cells=400) for count in (340, 0))
    apart = contrast(spread_out, none)
    assert apart.estimate[0] / apart.error[0] > 10
    found = contrast(replace(spread_out, squares=np.array([340.0**2])), none)
    assert found.estimate[0] == apart.estimate[0]
    # Poisson's likelihood ratio of one event on one of two equal sides
    assert (found.estimate[0] / found.error[0]) ** 2 == pytest.approx(2 * np.log(2), rel=1e-6)
    # and where it falls on the smaller of two sides, a sixteenth of the cells
    small = replace(side(340 * 15e-9, unit=15e-9, n_cells=20), squares=np.array([340.0**2]))
    found = contrast(small, side(0.0, unit=1e-9, n_cells=300))
    assert (found.estimate[0] / found.error[0]) ** 2 == pytest.approx(2 * np.log(16), rel=1e-6)


def test_a_gene_with_most_of_the_counts_is_judged_by_its_odds():
    # the log odds of a proportion p has the error of its logarithm over 1 - p
    rare, most = (contrast(side(p, unit=1e-7), side(1.05 * p, unit=1e-7)) for p in (1e-3, 0.8))
    plain = np.sqrt(1 / 0.8e7 + 1 / 0.84e7)
    assert most.error[0] == pytest.approx(plain / (1 - 0.82), rel=0.01)
    assert rare.error[0] == pytest.approx(np.sqrt(1 / 1e4 + 1 / 1.05e4), rel=0.01)
