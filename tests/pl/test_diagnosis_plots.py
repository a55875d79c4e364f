"""`pl.diagnose` and `pl.posterior_predictive` draw the diagnosis that is stored."""

import itertools

import anndata as ad
import matplotlib as mpl
import numpy as np
import pytest

import scvae
from scvae.common.checks import MissingKeyError
from scvae.diagnostics.jacobian import FLAT_BELOW
from scvae.pl import _diagnose
from scvae.pl._figure import whole_figure
from tests.pl import records

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.text import Text


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def paragraphs(axes):
    texts = whole_figure(axes[0]).findobj(Text)
    return " ".join(" ".join(text.get_text() for text in texts).split())


def test_the_page_has_the_verdict_and_every_sentence():
    axes = scvae.pl.diagnose(records.diagnosed(), show=False)
    assert len(axes) == 6
    said = paragraphs(axes)
    assert "scvae diagnosis: β too large" in said
    for finding in records.FINDINGS:
        assert all(part in said for part in finding)


def test_the_panels_draw_what_is_stored():
    adata = records.diagnosed()
    found = adata.uns["scvae"]["diagnosis"]
    kl, rate, gaps, spectrum, variance, ranks = scvae.pl.diagnose(adata, show=False)
    np.testing.assert_allclose([bar.get_height() for bar in kl.patches], np.sort(found["kl_per_dimension"])[::-1])
    expected = [found["mutual_information"], found["marginal_kl"], found["kl_per_dimension"].sum()]
    np.testing.assert_allclose([bar.get_height() for bar in rate.patches], expected)
    np.testing.assert_allclose(gaps.lines[0].get_xdata(), [2.4, 2.6, 24.6])
    np.testing.assert_allclose(spectrum.lines[0].get_ydata(), found["spectrum_local"])
    np.testing.assert_allclose(spectrum.lines[1].get_ydata(), found["spectrum_shared"])
    expected = np.column_stack([found["gene_variance"], found["gene_variance_drawn"]])
    np.testing.assert_allclose(variance.collections[0].get_offsets(), expected)
    np.testing.assert_allclose([bar.get_height() for bar in ranks.patches], found["ranks"])


def test_a_direction_is_flat_by_the_threshold_of_the_diagnosis():
    assert _diagnose.FLAT_BELOW == FLAT_BELOW


def test_what_is_not_known_is_said_and_not_drawn_at_zero():
    adata = records.diagnosed()
    adata.uns["scvae"]["diagnosis"] |= {"generalization_gap": np.nan, "generalization_gap_error": np.nan}
    _, _, gaps, *_ = scvae.pl.diagnose(adata, show=False)
    assert [text.get_text() for text in gaps.texts] == ["2.40", "2.60", "not known"]
    assert np.isnan(gaps.lines[0].get_xdata()[2])


@pytest.mark.parametrize("findings", [[], records.FINDINGS * 4])
def test_words_lie_below_the_panels_and_inside_the_page(findings):
    axes = scvae.pl.diagnose(records.diagnosed(findings=findings, n_latent=30, n_used=24), show=False)
    figure = whole_figure(axes[0])
    figure.draw_without_rendering()
    words = max(figure.findobj(Text), key=lambda text: len(text.get_text())).get_window_extent()
    assert figure.bbox.x0 <= words.x0 < words.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= words.y0
    assert all(words.y1 <= panel.get_tightbbox().y0 for panel in axes)
    assert not any(a.get_tightbbox().overlaps(b.get_tightbbox()) for a, b in itertools.combinations(axes, 2))


@pytest.mark.slow
def test_a_page_drawn_from_a_file_is_the_same(tmp_path):
    adata = scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0, truth=False)
    model = scvae.fit(adata, n_latent=2, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=3))
    scvae.tl.diagnose(adata, model)
    said = paragraphs(scvae.pl.diagnose(adata, show=False))
    adata.write_h5ad(tmp_path / "a.h5ad")
    assert paragraphs(scvae.pl.diagnose(ad.read_h5ad(tmp_path / "a.h5ad"), show=False)) == said
    assert len(scvae.pl.posterior_predictive(adata, show=False)[0].collections[0].get_offsets()) == 20


def test_genes_are_points_and_the_farthest_are_named():
    adata = records.diagnosed()
    found = adata.uns["scvae"]["diagnosis"]
    variance, zeros, ranks = scvae.pl.posterior_predictive(adata, show=False)
    expected = np.column_stack([found["gene_zero_fraction"], found["gene_zero_fraction_drawn"]])
    np.testing.assert_allclose(zeros.collections[0].get_offsets(), expected)
    assert {"GENE150", "GENE170"} <= {text.get_text() for text in variance.texts}
    assert ranks.get_title(loc="left") == "91% in 90% intervals"
    for panel in (variance, zeros):
        panel.figure.draw_without_rendering()
        frame, extents = panel.get_window_extent(), [text.get_window_extent() for text in panel.texts]
        assert all(frame.x0 <= e.x0 and e.x1 <= frame.x1 and frame.y0 <= e.y0 and e.y1 <= frame.y1 for e in extents)
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))


def test_of_real_values_means_take_the_place_of_zeros():
    adata = records.diagnosed(likelihood="gaussian")
    _, means, _ = scvae.pl.posterior_predictive(adata, show=False)
    drawn = adata.uns["scvae"]["diagnosis"]["gene_mean_drawn"]
    np.testing.assert_allclose(means.collections[0].get_offsets()[:, 1], drawn)
    assert means.get_xlabel() == "mean over cells, observed"


def test_genes_without_variance_are_left_out_of_the_logarithm():
    adata = records.diagnosed()
    adata.uns["scvae"]["diagnosis"]["gene_variance"][:] = 0
    variance, *_ = scvae.pl.posterior_predictive(adata, show=False)
    assert len(variance.collections[0].get_offsets()) == 0


@pytest.mark.parametrize(("highest", "scale"), [(1.3, "linear"), (30.0, "log")])
def test_variances_within_a_power_of_ten_have_linear_axes(highest, scale):
    adata = records.diagnosed()
    found = adata.uns["scvae"]["diagnosis"]
    found["gene_variance"] = np.linspace(1.0, highest, len(found["genes"]))
    found["gene_variance_drawn"] = found["gene_variance"].copy()
    left = scvae.pl.posterior_predictive(adata, show=False)[0]
    assert (left.get_xscale(), left.get_yscale()) == (scale, scale)


@pytest.mark.parametrize("plot", [scvae.pl.diagnose, scvae.pl.posterior_predictive])
def test_what_is_missing_is_named_with_the_tool_that_writes_it(plot):
    with pytest.raises(MissingKeyError, match=r"no 'diagnosis'; scvae.tl.diagnose\(adata, model\) writes it"):
        plot(records.embedded())


@pytest.mark.parametrize(
    "plot", [pytest.param(scvae.pl.diagnose, marks=pytest.mark.slow), scvae.pl.posterior_predictive]
)
def test_it_is_saved_and_not_shown_or_shown_and_nothing_returned(plot, tmp_path, monkeypatch):
    import scanpy

    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert plot(records.diagnosed(), save=tmp_path / "it.png") is not None
    assert (tmp_path / "it.png").stat().st_size > 1000
    assert shown == []
    assert plot(records.diagnosed()) is None
    assert shown == [True]
    before = scanpy.settings.autoshow
    try:
        scanpy.settings.autoshow = False
        assert plot(records.diagnosed()) is not None
    finally:
        scanpy.settings.autoshow = before
    assert shown == [True]
