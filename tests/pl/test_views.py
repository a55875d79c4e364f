"""`pl.views` draws what each measurement alone tells of each dimension."""

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


def test_bars_of_each_view_by_dimension_the_one_with_the_most_first():
    adata = records.of_views()
    found = adata.uns["scvae"]["diagnosis"]["views"]
    axes = scvae.pl.views(adata, show=False)
    order = [int(label.get_text()) for label in axes.get_xticklabels()]
    total = sum(share["rate_per_dimension"] for share in found.values())
    assert (np.diff(total[order]) <= 0).all()
    for bars, (name, share) in zip(axes.containers, found.items(), strict=True):
        assert bars.get_label() == name
        np.testing.assert_allclose([bar.get_height() for bar in bars], share["rate_per_dimension"][order])
    assert axes.get_title(loc="left") == "nats that each adds to the others: rna 1.50, protein 3.00"


def test_a_model_of_one_measurement_has_nothing_to_draw():
    with pytest.raises(MissingKeyError, match="the model is of one measurement"):
        scvae.pl.views(records.diagnosed())
    with pytest.raises(MissingKeyError, match=r"scvae\.tl\.diagnose"):
        scvae.pl.views(records.embedded())
