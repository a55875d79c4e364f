"""The rule that recommends a β."""

import pandas as pd

from scvae.diagnostics.recommendation import recommend


def test_the_smallest_of_the_most_stable_is_recommended():
    table = pd.DataFrame({"beta": [0.1, 1.0, 10.0], "leiden_stability": [0.5, 0.8, 0.8]})
    assert recommend(table) == 1.0
