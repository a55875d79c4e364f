"""The recommendation of a β."""

from __future__ import annotations

import numpy as np
import pandas as pd
from jaxtyping import Float

ELBO_LOSS = 0.2  # largest loss of ELBO from the best one, as a fraction of the rate there
NEIGHBOURS = np.array([0.25, 0.5, 0.25])  # weights of a β and its two neighbours in the table


def recommend(table: pd.DataFrame) -> float:
    """The β with the most stable Leiden clusters among those that keep the held-out ELBO.

    A β keeps the ELBO if it loses no more than a fifth of the rate at the best ELBO of the table. The rate is the
    information in the embedding, so this loss is small whatever the scale of the data. Each stability is averaged with
    those of the neighbouring values of β, because it is estimated from a few resamples.

    Parameters
    ----------
    table
        One row per β in ascending order, with the columns of `RateDistortion` and `Structure`.
    """
    best = int(table["elbo"].argmax())
    kept = table["elbo"] >= table["elbo"].iloc[best] - ELBO_LOSS * table["rate"].iloc[best]
    stability = np.where(kept, _smoothed(table["leiden_stability"].to_numpy()), -np.inf)
    return float(table["beta"].iloc[int(stability.argmax())])


def _smoothed(values: Float[np.ndarray, " betas"]) -> Float[np.ndarray, " betas"]:
    """Averages over neighbours; at both ends, the outermost value stands in for the missing neighbour."""
    return np.convolve(np.pad(values, 1, mode="edge"), NEIGHBOURS, mode="valid")
