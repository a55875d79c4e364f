"""`pl.label_confidence` draws coverage against error at each level."""

import matplotlib as mpl
import numpy as np
import pytest

import scvae
from scvae.common.checks import MissingKeyError
from tests.pl import records

mpl.use("Agg")

from matplotlib import pyplot as plt


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_line_for_each_level_and_one_for_what_is_allowed():
    adata = records.named(2)
    found = adata.uns["scvae"]["label_confidence"]
    axes = scvae.pl.label_confidence(adata, show=False)
    coarse, fine, allowed = axes.lines
    for line, level in ((coarse, 1), (fine, 2)):
        np.testing.assert_allclose(line.get_xdata(), 100 * found["coverage"][found["level"] == level])
        np.testing.assert_allclose(line.get_ydata(), 100 * found["error"][found["level"] == level])
    assert list(allowed.get_ydata()) == [5.0, 5.0]
    assert axes.get_title(loc="left") == "120 held-out cells; named: 45% at level 1, 45% at level 2; unknown: 10%"


def test_without_labels_or_held_out_cells_it_says_what_is_missing():
    adata = records.embedded()
    with pytest.raises(MissingKeyError, match="predict_labels"):
        scvae.pl.label_confidence(adata)
    adata = records.named()
    for name in ("level", "coverage", "error", "threshold"):
        adata.uns["scvae"]["label_confidence"][name] = np.empty(0)
    with pytest.raises(ValueError, match="no labelled cell was held out"):
        scvae.pl.label_confidence(adata)
