"""`pl.latent` draws the cells that are stored, in the colours asked for."""

import itertools

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import torch

import scvae
from scvae.common.checks import MissingKeyError
from scvae.inference.outcome import ACTIVE_ABOVE
from scvae.model.latent.posterior import DiagonalNormal
from scvae.model.latent.prior import StandardNormal
from scvae.pl import _color, _dimensions
from tests.pl import records

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.colors import to_hex


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def points(axes):
    return np.concatenate([np.asarray(c.get_offsets()) for c in axes.collections])


def colours(axes):
    """Colour of the point at each place."""
    found = {}
    for collection in axes.collections:
        collection.update_scalarmappable()
        faces = np.broadcast_to(collection.get_facecolors(), (len(collection.get_offsets()), 4))
        found |= {
            tuple(place): to_hex(face) for place, face in zip(collection.get_offsets().tolist(), faces, strict=True)
        }
    return found


def test_the_kl_is_that_of_the_model_and_unused_dimensions_are_grey():
    adata = records.embedded(10, 7)
    mean, variance = (torch.from_numpy(adata.obsm[key]).double() for key in ("X_scvae", "X_scvae_var"))
    kl = StandardNormal(mean.shape[1]).usage(DiagonalNormal(mean, variance.log())).mean(0).numpy()
    bars, *_ = scvae.pl.latent(adata, show=False)
    order = [int(label.get_text()) for label in bars.get_xticklabels()]
    assert order == np.argsort(-kl, kind="stable").tolist()
    np.testing.assert_allclose([bar.get_height() for bar in bars.patches], kl[order], rtol=1e-5)
    grey = [to_hex(bar.get_facecolor()) == to_hex("#B3B3B3") for bar in bars.patches]
    assert grey == [False] * 7 + [True] * 3
    assert bars.get_title(loc="left") == "7 of 10 dimensions in use"


def test_dimensions_are_in_use_by_the_threshold_of_the_model():
    assert _dimensions.ACTIVE_ABOVE == ACTIVE_ABOVE


def test_pairs_are_of_the_dimensions_with_the_largest_kl():
    adata = records.embedded(10, 7)
    axes = scvae.pl.latent(adata, show=False)
    assert len(axes) == 4
    for panel, (first, second) in zip(axes[1:], [(0, 1), (2, 3), (4, 5)], strict=True):
        np.testing.assert_allclose(points(panel), adata.obsm["X_scvae"][:, [first, second]])
        assert panel.get_xlabel().startswith(f"dimension {first} (")
        assert panel.get_ylabel().startswith(f"dimension {second} (")


@pytest.mark.parametrize(("n_latent", "n_used", "panels"), [(2, 2, 1), (30, 24, 3), (10, 3, 2), (10, 0, 1), (1, 1, 1)])
def test_there_are_never_more_than_three_pairs_and_always_one(n_latent, n_used, panels):
    assert len(scvae.pl.latent(records.embedded(n_latent, n_used), show=False)) == 1 + panels


def test_dimensions_asked_for_are_paired_in_their_order():
    adata = records.embedded()
    _, first, second = scvae.pl.latent(adata, dimensions=[7, 2, 4], show=False)
    np.testing.assert_allclose(points(first), adata.obsm["X_scvae"][:, [7, 2]])
    np.testing.assert_allclose(points(second), adata.obsm["X_scvae"][:, [4, 7]])


def test_a_single_dimension_is_drawn_against_its_posterior_standard_deviation():
    adata = records.embedded(1, 1)
    _, panel = scvae.pl.latent(adata, show=False)
    np.testing.assert_allclose(points(panel)[:, 1], np.sqrt(adata.obsm["X_scvae_var"][:, 0]))
    assert panel.get_ylabel() == "posterior standard deviation"


def test_labels_have_their_colours_and_missing_ones_are_grey():
    adata = records.embedded()
    adata.obs.loc[adata.obs_names[0], "type"] = np.nan
    _, panel, *_ = scvae.pl.latent(adata, color="type", show=False)
    found = colours(panel)
    codes = adata.obs["type"].cat.codes.to_numpy()
    for place, code in zip(points_of(adata), codes, strict=True):
        assert found[place] == to_hex("#B3B3B3" if code < 0 else _color.SAFE[code])
    legend = panel.figure.legends[0]
    assert [text.get_text() for text in legend.get_texts()] == [*records.TYPES, "missing"]
    assert legend.get_title().get_text() == "type"
    assert "type_colors" not in adata.uns


def points_of(adata):
    return [tuple(place) for place in adata.obsm["X_scvae"][:, :2].astype(float).tolist()]


def test_colours_that_scanpy_has_stored_are_used_for_the_categories_that_are_left():
    adata = records.embedded()
    adata.uns["type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    adata = adata[adata.obs["type"] != "CD4 T cells"].copy()
    adata.uns["type_colors"] = ["#111111", "#222222", "#333333", "#444444"]
    adata.obs["type"] = pd.Categorical(adata.obs["type"], categories=records.TYPES)
    _, panel, *_ = scvae.pl.latent(adata, color="type", show=False)
    assert set(colours(panel).values()) == {"#111111", "#333333", "#444444"}
    adata.uns["type_colors"] = ["#111111"]
    _, panel, *_ = scvae.pl.latent(adata, color="type", show=False)
    assert "#111111" not in colours(panel).values()


def marked(adata, color):
    """What is written on the first panel at the median of the cells of each category, and the legend."""
    _, panel, *_ = scvae.pl.latent(adata, color=color, dimensions=[0, 1], show=False)
    panel.figure.draw_without_rendering()
    extents = [text.get_window_extent() for text in panel.texts]
    assert len(extents) > 2
    assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
    names = adata.obs[color].unique()
    medians = np.array([np.median(adata.obsm["X_scvae"][adata.obs[color] == name, :2], axis=0) for name in names])
    found = {}
    for text in panel.texts:
        away = np.abs(medians - text.get_position()).max(1)
        assert away.min() < 1e-6
        found[text.get_text()] = names[away.argmin()]
    return found, [text.get_text() for text in panel.figure.legends[0].get_texts()]


def test_of_many_clusters_each_has_its_own_name_written_on_it():
    adata = records.embedded()
    adata.obs["leiden"] = pd.Categorical((np.arange(240) % 15).astype(str))
    at, legend = marked(adata, "leiden")
    assert all(mark == name for mark, name in at.items())
    assert legend == adata.obs["leiden"].cat.categories.tolist()


def test_of_many_long_names_letters_are_written_that_the_legend_explains():
    adata = records.embedded()
    at, legend = marked(adata, "many")
    explained = dict(entry.split(": ") for entry in legend)
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZ", *(f"A{second}" for second in "ABCDEFGHIJKLMN")]
    assert list(explained) == letters
    names = adata.obs["many"].cat.categories
    assert all(names[letters.index(mark)] == name for mark, name in at.items())
    assert all(len(name) <= 28 for name in explained.values())


def test_no_letter_is_the_name_of_another_category():
    adata = records.embedded()
    names = ["B", "c", "mast", "a very long name", *(f"long name {i}" for i in range(6))]
    adata.obs["it"] = np.array(names)[np.arange(240) % 10]
    _, legend = marked(adata, "it")
    assert legend == ["B", "A: a very long name", "c", *(f"{x}: long name {i}" for i, x in enumerate("DEFGHI")), "mast"]


def test_a_name_is_not_a_formula():
    adata = records.embedded()
    adata.obs["it"] = np.where(np.arange(240) % 2, "$^{$", "CD4$+$")
    axes = scvae.pl.latent(adata, color="it", show=False)
    axes[0].figure.draw_without_rendering()  # a formula that cannot be parsed raises here
    shown = [text.get_text() for text in axes[0].figure.legends[0].get_texts()]
    assert sorted(text.replace(r"\$", "$").split(": ")[-1] for text in shown) == ["$^{$", "CD4$+$"]
    assert not any("$" in text.replace(r"\$", "") for text in shown)


@pytest.mark.parametrize("color", ["type", "many"])
def test_the_legend_lies_inside_the_figure_and_over_no_axes(color):
    axes = scvae.pl.latent(records.embedded(), color=color, show=False)
    figure = axes[0].figure
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    assert figure.bbox.x0 <= legend.x0 < legend.x1 <= figure.bbox.x1
    assert figure.bbox.y0 <= legend.y0 < legend.y1 <= figure.bbox.y1
    assert not any(legend.overlaps(panel.get_tightbbox()) for panel in axes)


def test_numbers_have_a_colour_bar_and_missing_ones_are_grey():
    adata = records.embedded()
    _, panel, *_ = scvae.pl.latent(adata, color="score", show=False)
    missing = adata.obs["score"].isna().to_numpy()
    found = colours(panel)
    grey = [found[place] == to_hex("#B3B3B3") for place in points_of(adata)]
    assert grey == missing.tolist()
    np.testing.assert_allclose(np.sort(panel.collections[-1].get_array()), np.sort(adata.obs["score"][~missing]))
    assert "score" in [axes.get_ylabel() for axes in panel.figure.axes]


def test_a_gene_is_taken_from_raw_if_it_is_there_and_from_x_otherwise():
    adata = records.embedded()
    _, panel, *_ = scvae.pl.latent(adata, color="1", show=False)
    np.testing.assert_allclose(panel.collections[-1].get_array(), np.sort(adata.X[:, 1]))
    adata.raw = ad.AnnData(10 * adata.X[:, 1:2], obs=adata.obs, var=adata.var.iloc[1:2])
    _, panel, *_ = scvae.pl.latent(adata, color="1", show=False)
    np.testing.assert_allclose(panel.collections[-1].get_array(), np.sort(10 * adata.X[:, 1]))
    scvae.pl.latent(adata, color="2", show=False)


@pytest.mark.parametrize("values", [["c10", "c2", "c2"], [True, False, True]])
def test_text_and_truth_are_labels_in_the_order_people_sort_them(values):
    adata = records.embedded(n_cells=3)
    adata.obs["it"] = values
    _, panel, *_ = scvae.pl.latent(adata, color="it", show=False)
    texts = [text.get_text() for text in panel.figure.legends[0].get_texts()]
    assert texts == (["c2", "c10"] if values[0] == "c10" else ["False", "True"])


def test_cells_that_are_all_missing_are_drawn_grey():
    adata = records.embedded()
    adata.obs["none"] = np.nan
    _, panel, *_ = scvae.pl.latent(adata, color="none", show=False)
    assert set(colours(panel).values()) == {to_hex("#B3B3B3")}


def test_axes_of_the_user_are_drawn_into_with_the_legend_beside():
    figure, given = plt.subplots(1, 3)
    axes = scvae.pl.latent(records.embedded(), color="type", ax=given)
    assert axes == tuple(given)
    assert plt.get_fignums() == [figure.number]
    assert given[2].get_legend() is not None
    with pytest.raises(ValueError, match="ax has 1 axes; pass one for the KL and one for each of the"):
        scvae.pl.latent(records.embedded(), ax=given[0])
    with pytest.raises(ValueError, match="ax has 3 axes; pass 2"):
        scvae.pl.latent(records.embedded(), dimensions=[0, 1], ax=given)


def test_what_is_missing_is_named():
    with pytest.raises(MissingKeyError, match=r"adata.obsm has no 'X_scvae'"):
        scvae.pl.latent(ad.AnnData(np.ones((3, 2))))
    with pytest.raises(MissingKeyError, match=r"has no 'typ'.*did you mean 'type'"):
        scvae.pl.latent(records.embedded(), color="typ")
    with pytest.raises(TypeError, match="name of one column"):
        scvae.pl.latent(records.embedded(), color=["type", "many"])
    with pytest.raises(ValueError, match="dimensions has 10; the embedding has dimensions 0 to 9"):
        scvae.pl.latent(records.embedded(), dimensions=[0, 10])


def test_palettes_repeat_no_colour_while_there_are_enough():
    for n in (1, 8, 9, 20, 28, 102):
        assert len(set(_color.palette(n))) == n
    assert len(_color.palette(150)) == 150


def test_nothing_of_the_data_changes(digest):
    adata = records.embedded()
    before = digest(adata)
    scvae.pl.latent(adata, color="many", show=False)
    assert digest(adata) == before
