"""β and learning rate as pure functions of progress, the completed fraction of the run in [0, 1]."""

from __future__ import annotations

import math


def beta_at(progress: float, *, beta: float, warmup: float, cycles: int = 1) -> float:
    """KL weight: rises `cycles` times linearly from 0 to `beta` over the fraction `warmup` of the run, then is `beta`.

    Between two rises it stays at `beta` for as long as a rise takes (Fu et al. 2019, "Cyclical annealing schedule",
    equation 7 with R = 1/2; the last plateau is the rest of the run). One cycle is the ordinary linear warm-up.
    """
    if progress >= warmup:
        return beta
    rise = warmup / (2 * cycles - 1)
    return beta * min(1.0, progress % (2.0 * rise) / rise)


def one_cycle(progress: float, *, peak: float, rise: float = 0.3, start: float = 0.04, end: float = 1e-4) -> float:
    """Learning rate: rises from start * peak to `peak` over the fraction `rise` of the run, then falls to end * peak.

    Both parts are half cosines (Smith & Topin 2019, "Super-convergence").
    """
    if progress < rise:
        return peak * (start + (1.0 - start) * _half_cosine(progress / rise))
    return peak * (1.0 + (end - 1.0) * _half_cosine((progress - rise) / (1.0 - rise)))


def _half_cosine(fraction: float) -> float:
    return 0.5 * (1.0 - math.cos(math.pi * min(fraction, 1.0)))
