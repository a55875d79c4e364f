"""Which β's of a model of many are looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..common.checks import check_positive


def evenly_spaced(low: float, high: float, n: int) -> list[float]:
    """`n` β's over a range, evenly on a log scale, rounded to four digits."""
    return [min(max(float(f"{beta:.4g}"), low), high) for beta in np.geomspace(low, high, n)]


def given_betas(betas: Sequence[float] | np.ndarray) -> list[float]:
    """The user's β's in rising order.

    Raises
    ------
    ValueError
        If there are not two different ones, or one is not positive.
    """
    points = sorted({check_positive(beta, "each of betas") for beta in np.asarray(betas).ravel().tolist()})
    if len(points) < 2:
        raise ValueError(
            f"betas has {len(points)} different value(s); pass at least 2, or use scvae.fit(adata, beta=…)"
        )
    return points
