"""The temperature of the classifier's logits."""

import numpy as np
import pytest

from scvae.inference.label_prediction import temperature_of


def labelled(n, factor, rng):
    """Logits that are `factor` times those from which the labels are drawn."""
    logits = 2.0 * rng.normal(size=(n, 4))
    noisy = logits + rng.gumbel(size=logits.shape)
    return factor * logits, noisy.argmax(1)


@pytest.mark.parametrize("factor", [0.5, 1.0, 4.0])
def test_a_temperature_undoes_a_factor_of_the_logits(factor):
    logits, truth = labelled(20_000, factor, np.random.default_rng(0))
    assert temperature_of(logits.astype(np.float32), truth) == pytest.approx(factor, rel=0.05)


def test_few_cells_move_the_temperature_less_than_many():
    rng = np.random.default_rng(1)
    few, many = (np.mean([temperature_of(*labelled(n, 4.0, rng)) for _ in range(50)]) for n in (5, 500))
    assert 1.0 < few < 0.75 * many
    assert temperature_of(np.empty((0, 4)), np.empty(0, np.int64)) == pytest.approx(1.0, abs=1e-4)
