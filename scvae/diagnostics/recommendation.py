"""Which β to recommend."""

from __future__ import annotations

import pandas as pd


def recommend(table: pd.DataFrame) -> float:
    """The β whose Leiden clusters are the most stable under resampling, the smallest of several.

    Parameters
    ----------
    table
        One row per β in rising order, with the columns of `RateDistortion` and `Structure`.
    """
    return float(table["beta"].iloc[int(table["leiden_stability"].argmax())])
