"""`pl.history` draws the epochs that are stored."""

import itertools

import anndata as ad
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


def curves(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def drawn(line):
    """What a line shows, without its breaks."""
    points = line.get_xydata()
    return points[~np.isnan(points).any(1)]


def test_each_panel_draws_its_columns_of_the_history():
    adata = records.trained()
    stored = adata.uns["scvae"]["history"]
    elbo, beta, distortion, rate = scvae.pl.history(adata, show=False)
    for axes, name, sign in ((elbo, "elbo", 1), (distortion, "log_likelihood", -1), (rate, "kl", 1)):
        for label, side in (("training cells", "train"), ("held-out cells", "validation")):
            expected = np.column_stack([stored["epoch"], sign * stored[f"{side}_{name}"]])
            np.testing.assert_allclose(drawn(curves(axes)[label]), expected)
    np.testing.assert_allclose(drawn(beta.get_lines()[0]), np.column_stack([stored["epoch"], stored["beta"]]))
    assert list(curves(elbo)["epoch kept: 35"].get_xdata()) == [35, 35]
    assert [text.get_text() for text in elbo.get_legend().get_texts()] == [
        "training cells",
        "held-out cells",
        "epoch kept: 35",
    ]


def test_without_held_out_cells_there_is_one_curve():
    elbo, *_ = scvae.pl.history(records.trained(validation=False), show=False)
    assert "held-out cells" not in curves(elbo)
    assert "training cells" in curves(elbo)


def test_fine_tuning_and_mapping_are_told_apart_and_their_curves_do_not_join():
    adata = records.trained(n=40, fine=10, mapping=True)
    elbo, beta, *_ = scvae.pl.history(adata, show=False)
    assert [text.get_text() for text in beta.texts] == ["fine-tuning", "mapping"]
    assert [text.xy[0] for text in beta.texts] == [40.5, 50.5]
    line = curves(elbo)["training cells"].get_xydata()
    assert np.flatnonzero(np.isnan(line[:, 0])).tolist() == [40, 51]
    assert drawn(curves(elbo)["training cells"])[-1, 0] == 70


def test_of_a_model_of_many_beta_the_range_is_drawn():
    elbo, beta, *_ = scvae.pl.history(records.trained(beta=(0.1, 10.0)), show=False)
    band = beta.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(0.025)  # at the first of four epochs of warm-up
    assert band[:, 1].max() == pytest.approx(10)
    assert "0.1 to 10" in beta.get_title(loc="left")
    assert "mean over β" in elbo.get_title(loc="left")


def test_the_first_epochs_do_not_flatten_the_others():
    elbo, *_ = scvae.pl.history(records.trained(n=100, fine=0), show=False)
    values = curves(elbo)["held-out cells"].get_ydata()
    low, high = elbo.get_ylim()
    assert values[0] < low
    assert np.all((values[10:] > low) & (values[10:] < high))


def test_a_run_of_one_epoch_is_seen():
    adata = records.trained(n=1, fine=0)
    elbo, *_ = scvae.pl.history(adata, show=False)
    assert curves(elbo)["training cells"].get_marker() == "o"


def test_a_real_fit_and_its_pruning_are_drawn():
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0, truth=False)
    scvae.fit(adata, n_latent=3, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=4))
    elbo, *_ = scvae.pl.history(adata, show=False)
    np.testing.assert_allclose(
        curves(elbo)["held-out cells"].get_ydata(), adata.uns["scvae"]["history"]["validation_elbo"]
    )


def test_what_is_missing_is_named():
    with pytest.raises(MissingKeyError, match=r"adata.uns has no 'scvae'"):
        scvae.pl.history(ad.AnnData(np.ones((3, 2))))
    with pytest.raises(MissingKeyError, match=r"no 'history'; scvae.fit\(adata\) writes it"):
        scvae.pl.history(records.embedded())
    with pytest.raises(ValueError, match="has no epoch"):
        scvae.pl.history(records.trained(n=0, fine=0))
    with pytest.raises(ValueError, match="2 axes; pass 4"):
        scvae.pl.history(records.trained(), ax=plt.subplots(1, 2)[1])


def test_titles_and_labels_do_not_touch():
    axes = scvae.pl.history(records.trained(), show=False)
    axes[0].figure.draw_without_rendering()
    extents = [panel.title.get_window_extent() for panel in axes] + [p.xaxis.label.get_window_extent() for p in axes]
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2) if a.width and b.width)
