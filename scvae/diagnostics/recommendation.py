"""Which β to recommend."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

ELBO_LOSS = 0.2  # of the rate at the best ELBO: what a β may lose of that ELBO
NEIGHBOURS = np.array([0.25, 0.5, 0.25])  # weights of a β and of those beside it in the table


def recommend(table: pd.DataFrame) -> float:
    """The β with the most stable Leiden clusters among those that keep the held-out ELBO.

    A β keeps it if its ELBO is below the best of the table by no more than a fifth of the rate there: the rate is what
    an embedding costs to tell, so this loss is small on any scale of the data. Stabilities are averaged with those of
    the β's on either side, since each rests on a few resamples.

    Parameters
    ----------
    table
        One row per β in rising order, with the columns of `RateDistortion` and `Structure`.
    """
    best = int(table["elbo"].argmax())
    kept = table["elbo"] >= table["elbo"].iloc[best] - ELBO_LOSS * table["rate"].iloc[best]
    stability = np.where(kept, _smoothed(table["leiden_stability"].to_numpy()), -np.inf)
    return float(table["beta"].iloc[int(stability.argmax())])


def _smoothed(values: Float[np.ndarray, " betas"]) -> Float[np.ndarray, " betas"]:
    """Averages over neighbours; the first and the last stand in for those they lack."""
    return np.convolve(np.pad(values, 1, mode="edge"), NEIGHBOURS, mode="valid")
