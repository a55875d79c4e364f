"""The calibration of the classifier: a temperature of its logits, and a share of random labels."""

import numpy as np
import pytest
from scipy.special import softmax

from scvae.data.label_tree import tree_of
from scvae.inference.known_labels import KnownLabels
from scvae.inference.label_prediction import calibrated, calibration_of
from scvae.inference.naming import Judges, as_given, named

ONE_OF = np.eye(4, dtype=bool)


def labelled(n, factor, rng, wrong=0.0):
    """Logits that are `factor` times those from which the labels are drawn; some labels are then drawn at random."""
    logits = 2.0 * rng.normal(size=(n, 4))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return factor * logits, ONE_OF[np.where(rng.random(n) < wrong, rng.integers(0, 4, n), truth)]


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("wrong", [0.0, 0.2])
def test_it_undoes_a_factor_of_the_logits_and_finds_the_share_of_random_labels(factor, wrong):
    logits, truth = labelled(20_000, factor, np.random.default_rng(0), wrong)
    temperature, uniform = calibration_of(logits.astype(np.float32), truth)
    assert temperature == pytest.approx(factor, rel=0.06)
    assert uniform == pytest.approx(wrong, abs=0.02)


def test_few_cells_move_the_temperature_less_than_many():
    rng = np.random.default_rng(1)
    few, many = (np.mean([calibration_of(*labelled(n, 4.0, rng))[0] for _ in range(30)]) for n in (5, 500))
    assert 1.0 < few < 0.75 * many
    assert calibration_of(np.empty((0, 4)), ONE_OF[:0]) == pytest.approx((1.0, 0.0), abs=1e-4)


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.3])
def test_probabilities_are_those_of_the_true_label_when_some_labels_are_random(wrong):
    rng = np.random.default_rng(2)
    temperature, uniform = calibration_of(*labelled(20_000, 2.0, rng, wrong))
    logits, truth = labelled(20_000, 2.0, rng)
    probability = calibrated(known_with(temperature, uniform), logits)
    right = truth[np.arange(len(truth)), probability.argmax(1)]
    assert probability.max(1).mean() == pytest.approx(right.mean(), abs=0.015)


def test_coarser_labels_calibrate_by_the_sum_of_the_probabilities_under_them():
    """Half of the cells are called by a name over two labels: as many random labels agree with it by chance."""
    logits, truth = labelled(20_000, 4.0, np.random.default_rng(4), wrong=0.2)
    pair = np.array([1, 1, 0, 0], bool)
    coarse = (np.arange(len(truth)) % 2 == 0) & (truth & pair).any(1)
    temperature, uniform = calibration_of(logits, np.where(coarse[:, None], pair, truth))
    assert temperature == pytest.approx(4.0, rel=0.06)
    assert uniform == pytest.approx(0.2, abs=0.02)


def known_with(temperature, uniform):
    nothing = np.empty((0, 2), np.float32)
    return KnownLabels(
        temperature=temperature,
        uniform=uniform,
        place=nothing,
        label=np.empty(0, np.int64),
        held_out=nothing,
        held_out_place=nothing,
        truth=np.empty(0, np.int64),
    )


def test_probabilities_are_the_softmax_of_the_cooled_logits():
    found = calibrated(known_with(2.0, 0.1), np.array([[2.0 * np.log(3.0), 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.75, 0.25], [0.5, 0.5]])


def test_a_tree_is_judged_by_labels_as_given_and_gives_probabilities_of_true_ones():
    """Half of the labels are random: no name would be given if the judges took them for errors of the classifier."""
    rng, n = np.random.default_rng(3), 4_000
    tree = tree_of({"a": "A", "b": "A", "c": "C", "d": "C"}, ["a", "b", "c", "d"])
    logits, truth = labelled(n, 1.0, rng, wrong=0.5)
    sharp = softmax(4.0 * logits, axis=1)
    judges = Judges(as_given(sharp, 0.5), truth)
    np.testing.assert_allclose(judges.probability.sum(1), 1.0)
    found = named(tree, judges, sharp, np.zeros(n, bool), 0.4, random=0.5)
    node = np.array([tree.names.index(name) if name != "unknown" else -1 for name in found.label])
    has = np.flatnonzero(node >= 0)
    assert len(has) > n / 2
    np.testing.assert_allclose(found.probability[has], (sharp @ tree.members.T)[has, node[has]])
