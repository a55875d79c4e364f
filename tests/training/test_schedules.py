"""β and learning rate over a run."""

import numpy as np
import pytest

from scvae.training.schedules import beta_at, one_cycle


@pytest.mark.parametrize("beta", [0.0, 0.1, 1 / 3, 10.0])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.3, 0.7])
def test_beta_rises_linearly_reaches_what_was_asked_exactly_and_stays(beta, warmup):
    assert all(beta_at(p, beta=beta, warmup=warmup) == beta for p in (warmup, (1 + warmup) / 2, 1.0))
    for share in (0.0, 0.25, 0.5, 0.9):
        if warmup > 0:
            assert beta_at(share * warmup, beta=beta, warmup=warmup) == pytest.approx(share * beta)


@pytest.mark.parametrize("cycles", [2, 3, 4])
def test_a_cyclic_warmup_rises_as_often_as_asked_and_rests_in_between(cycles):
    warmup, beta = 0.7, 3.0
    rise = warmup / (2 * cycles - 1)
    found = np.array([beta_at(p, beta=beta, warmup=warmup, cycles=cycles) for p in np.linspace(0, 1, 5001)])
    assert (np.diff(found) < -beta / 2).sum() == cycles - 1  # drops to 0
    for cycle in range(cycles):
        start = 2 * cycle * rise
        for share, expected in [(0.25, 0.75), (0.5, 1.5), (1.001, 3.0), (1.5, 3.0), (1.999, 3.0)]:
            place = start + share * rise
            assert beta_at(place, beta=beta, warmup=warmup, cycles=cycles) == pytest.approx(expected)
    assert (found[np.linspace(0, 1, 5001) >= warmup] == beta).all()


@pytest.mark.parametrize("rise", [0.1, 0.3, 0.5])
def test_learning_rate_starts_low_peaks_once_and_ends_lower(rise):
    progress = np.linspace(0, 1, 1001)
    rates = np.array([one_cycle(p, peak=2.0, rise=rise, start=0.04, end=1e-4) for p in progress])
    assert rates[0] == pytest.approx(0.08)
    assert rates[-1] == pytest.approx(2e-4)
    assert rates.max() == pytest.approx(2.0)
    assert progress[rates.argmax()] == pytest.approx(rise)
    assert np.all(np.diff(rates[progress <= rise]) > 0)
    assert np.all(np.diff(rates[progress >= rise]) < 0)


def test_learning_rate_is_half_way_at_half_time_of_each_part():
    assert one_cycle(0.15, peak=1.0) == pytest.approx((1 + 0.04) / 2)
    assert one_cycle(0.65, peak=1.0) == pytest.approx((1 + 1e-4) / 2)


def test_learning_rate_does_not_turn_up_again_past_the_end():
    assert one_cycle(1.0 + 1e-9, peak=1.0) == pytest.approx(1e-4)
