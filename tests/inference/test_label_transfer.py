"""Labels by neighbours: the formula, calibration, and cells that resemble nothing."""

import numpy as np
import pytest

from scvae.inference import label_transfer
from scvae.inference.label_transfer import MOST_WIDENING, Labelled, all_but_itself, nearest_labelled, transfer, widening


def mixture(n, centres, sd, rng, shift=0.0):
    """Cells around centres, with their labels."""
    label = rng.integers(0, len(centres), n)
    return centres[label] + sd * rng.standard_normal((n, centres.shape[1])) + shift, label


def calibration_error(confidence, right, n_bins=10):
    """Expected calibration error: |confidence - accuracy| averaged over bins of confidence (Guo et al. 2017)."""
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    gaps = [abs(confidence[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return sum(gaps)


def alone(query):
    """Each cell judged for itself."""
    return np.arange(len(query))[:, None]


def together(group, n=10):
    """Each cell judged with others of its group."""
    places = [np.flatnonzero(group == g) for g in group]
    return np.array([np.r_[i, mine[mine != i][: n - 1]] for i, mine in enumerate(places)])


def test_probability_is_the_kernel_weighted_share():
    found = Labelled(np.array([[0.0, 1.0, 2.0]]), np.array([[5, 6, 7]]), np.array([[1, 0, 1]]))
    weight = np.exp(-0.5 * np.array([0.0, 1.0, 2.0]) ** 2 / 0.7**2)
    expected = np.array([weight[1] + 0.1, weight[0] + weight[2] + 0.1, 0.1]) / (weight.sum() + 0.3)
    np.testing.assert_allclose(found.probability(3, bandwidth=0.7, prior=0.3)[0], expected, rtol=1e-12)


def test_far_from_everything_all_labels_are_equally_probable():
    found = Labelled(np.full((1, 5), 1e3), np.arange(5)[None], np.zeros((1, 5), dtype=int))
    np.testing.assert_allclose(found.probability(4, bandwidth=1.0, prior=0.01), 0.25)


@pytest.mark.parametrize("sd", [0.3, 0.8, 1.5])
def test_uncertainty_is_calibrated_whether_labels_overlap_or_not(sd):
    rng = np.random.default_rng(0)
    centres = 2.0 * rng.standard_normal((5, 4))
    reference, label = mixture(1500, centres, sd, rng)
    query, truth = mixture(1500, centres, sd, rng)
    found = transfer(reference, label, query, alone(query))
    np.testing.assert_allclose(found.probability.sum(1), 1.0)
    confidence, right = found.probability.max(1), found.probability.argmax(1) == truth
    assert calibration_error(confidence, right) < 0.06
    # the rule that knows the law errs hardly less
    best = (((query[:, None] - centres) ** 2).sum(2).argmin(1) == truth).mean()
    assert right.mean() > best - 0.03


def test_cells_like_none_of_the_reference_are_outliers_and_few_others():
    rng = np.random.default_rng(1)
    centres = 3.0 * rng.standard_normal((6, 5))
    reference, label = mixture(1200, centres[:5], 0.5, rng)
    query, truth = mixture(1200, centres, 0.5, rng)
    found = transfer(reference, label, query, alone(query))
    assert (found.outlier[truth == 5] > 0.95).mean() > 0.9
    assert (found.outlier[truth < 5] > 0.95).mean() < 0.1


def test_a_group_somewhat_far_from_the_reference_is_told_better_than_its_cells():
    rng = np.random.default_rng(6)
    centres = 3.0 * rng.standard_normal((6, 5))
    reference, label = mixture(1200, centres[:5], 0.5, rng)
    query, truth = mixture(600, centres, 0.5, rng)
    near = np.linalg.norm(centres[:5] - centres[5], axis=1).argmin()
    query[truth == 5] -= 0.8 * (centres[5] - centres[near])  # as two types that are hard to tell apart
    one, many = (transfer(reference, label, query, p).outlier for p in (alone(query), together(truth)))
    assert (many[truth == 5] > 0.7).mean() > (one[truth == 5] > 0.7).mean() + 0.1
    assert (many[truth < 5] > 0.7).mean() < min(0.02, (one[truth < 5] > 0.7).mean())
    np.testing.assert_allclose(many, one[together(truth)].mean(1))


def test_a_query_farther_off_as_a_whole_is_not_unknown_unless_it_is_far(monkeypatch):
    rng = np.random.default_rng(7)
    centres = 4.0 * rng.standard_normal((5, 5))
    reference, label = mixture(1500, centres, 0.5, rng)
    query, truth = mixture(600, centres, 0.5, rng)
    reference = np.c_[reference, 0.05 * rng.standard_normal(1500)]

    def unknown(shift):
        moved = np.c_[query, np.full(600, shift)]
        return (transfer(reference, label, moved, together(truth)).outlier > 0.7).mean()

    assert unknown(0.4) < 0.01
    assert unknown(3.0) > 0.99
    monkeypatch.setattr(label_transfer, "MOST_WIDENING", 1.0)
    assert unknown(0.4) > 0.9


def test_a_batch_that_is_farther_off_is_widened_by_itself():
    rng = np.random.default_rng(7)
    centres = 4.0 * rng.standard_normal((5, 5))
    reference, label = mixture(1500, centres, 0.5, rng)
    query, truth = mixture(600, centres, 0.5, rng)
    batch = np.arange(600) // 300
    moved = np.c_[query, 0.6 * batch]
    reference = np.c_[reference, 0.05 * rng.standard_normal(1500)]
    peers = together(5 * batch + truth)
    as_one, each = (transfer(reference, label, moved, peers, groups).outlier > 0.7 for groups in (None, batch))
    assert as_one[batch == 1].mean() > 0.9
    assert each.mean() < 0.02


def test_widening_is_the_common_factor_within_its_bounds():
    rng = np.random.default_rng(8)
    label = np.arange(3000) % 3
    own = np.array([1.0, 2.0, 5.0])[label] * rng.gamma(9.0, 1.0, 3000)
    some = rng.permutation(3000)[:2000]
    assert widening(own, label, own[some], label[some]) == pytest.approx(1.0, abs=0.02)
    assert widening(own, label, 1.3 * own[some], label[some]) == pytest.approx(1.3, abs=0.03)
    assert widening(own, label, 40.0 * own[some], label[some]) == MOST_WIDENING
    assert widening(own, label, 0.2 * own[some], label[some]) == 1.0
    partly_strange = np.where(rng.random(2000) < 0.3, 9.0, 1.2) * own[some]
    assert 1.2 < widening(own, label, partly_strange, label[some]) < 1.4
    assert widening(np.zeros(9), label[:9], np.ones(4), label[:4]) == 1.0


def test_a_query_is_not_made_unsure_by_a_part_of_the_reference_where_it_is_not():
    rng = np.random.default_rng(2)
    clean, clean_label = mixture(400, np.array([[0.0, 0.0], [4.0, 0.0]]), 0.5, rng)
    muddle, muddle_label = 0.5 * rng.standard_normal((1600, 2)) + 40.0, rng.integers(0, 2, 1600)
    reference, label = np.r_[clean, muddle], np.r_[clean_label, muddle_label]
    query, truth = mixture(300, np.array([[0.0, 0.0], [4.0, 0.0]]), 0.5, rng)
    here, there = (
        transfer(reference, label, query, alone(query)),
        transfer(reference, label, muddle[:300] + 0.01, alone(query)),
    )
    assert (here.probability.argmax(1) == truth).all()
    assert here.probability.max(1).mean() > 0.98
    assert there.probability.max(1).mean() < 0.65


@pytest.mark.parametrize("position", [np.arange(12.0)[:, None], np.zeros((12, 1))], ids=["apart", "in one place"])
def test_a_reference_cell_is_judged_by_all_but_itself(position):
    label = np.arange(12)
    own = all_but_itself(position, label, label)
    assert own.label.shape == (12, 11)
    if position.any():
        assert (own.label != label[:, None]).all()
        assert own.distance.min() == 1.0
    assert np.isfinite(transfer(position, label, position, alone(position)).probability).all()


def test_a_large_reference_is_judged_by_a_part_of_it(monkeypatch):
    rng = np.random.default_rng(4)
    reference, label = mixture(3000, np.eye(2) * 5, 0.5, rng)
    query, _ = mixture(200, np.eye(2) * 5, 0.5, rng)
    whole = transfer(reference, label, query, alone(query))
    monkeypatch.setattr(label_transfer, "MOST_JUDGED", 600)
    part = transfer(reference, label, query, alone(query))
    np.testing.assert_allclose(part.outlier, whole.outlier, atol=0.08)
    assert len(np.unique(part.outlier)) <= 601


def test_neighbours_are_the_nearest_ones():
    rng = np.random.default_rng(5)
    reference, query = rng.standard_normal((60, 3)), rng.standard_normal((7, 3))
    found = nearest_labelled(reference, np.arange(60), query)
    distance = np.linalg.norm(query[:, None] - reference, axis=2)
    np.testing.assert_array_equal(found.label, np.argsort(distance, axis=1)[:, : found.label.shape[1]])
    np.testing.assert_allclose(found.distance, np.sort(distance, axis=1)[:, : found.label.shape[1]])
