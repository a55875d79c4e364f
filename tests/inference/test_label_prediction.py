"""The calibration of the classifier: a temperature of its logits, and a uniform share."""

import numpy as np
import pytest

from scvae.inference.known_labels import KnownLabels
from scvae.inference.label_prediction import calibrated, calibration_of


def labelled(n, factor, rng, wrong=0.0):
    """Logits that are `factor` times those from which the labels are drawn; some labels are then drawn at random."""
    logits = 2.0 * rng.normal(size=(n, 4))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(1)
    return factor * logits, np.where(rng.random(n) < wrong, rng.integers(0, 4, n), truth)


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
    assert calibration_of(np.empty((0, 4)), np.empty(0, np.int64)) == pytest.approx((1.0, 0.0), abs=1e-4)


def test_probabilities_are_a_mixture_of_the_softmax_and_a_uniform_distribution():
    nothing = np.empty((0, 2), np.float32)
    known = KnownLabels(
        temperature=2.0,
        uniform=0.1,
        place=nothing,
        label=np.empty(0, np.int64),
        held_out=nothing,
        held_out_place=nothing,
        truth=np.empty(0, np.int64),
    )
    found = calibrated(known, np.array([[2.0 * np.log(3.0), 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[0.9 * 0.75 + 0.05, 0.9 * 0.25 + 0.05], [0.5, 0.5]])
