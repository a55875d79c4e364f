"""Every plot can be read in a dark style, with large letters and on axes of the user, and leaves the style alone."""

import io
import itertools
import re

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.collections import LineCollection
from matplotlib.colors import to_rgba
from matplotlib.legend import Legend
from matplotlib.lines import Line2D
from matplotlib.text import Text

import scvae
from scvae.pl._explorer.page import asset
from scvae.pl._figure import whole_figure
from tests.pl import records


def coloured():
    """Cells with a column of every kind."""
    adata = records.embedded(12, 12)
    cell = np.arange(adata.n_obs)
    adata.obs["few"] = pd.Categorical(np.array(list("abcdefgh"))[cell % 8])
    adata.obs["leiden"] = pd.Categorical((cell % 30).astype(str))
    adata.obs["a score with a rather long name"] = 1e-3 * adata.obs["score"]
    adata.obs["one"] = "$the only$ category"
    adata.obs["flag"] = pd.array(cell % 3 == 0, dtype="boolean")
    adata.obs.loc[adata.obs_names[::7], ["few", "flag"]] = None
    return adata


def given(*shape):
    """Axes of a user who has not thought of a layout."""
    return plt.subplots(*shape, figsize=(3.4 * shape[1], 3.2 * shape[0]))[1]


def constrained(*shape):
    """Axes of a user who has."""
    return plt.subplots(*shape, figsize=(4.5 * shape[1], 3.6 * shape[0]), layout="constrained")[1]


def latent(color, axes=None):
    """A call of `pl.latent`, into the axes that this function makes."""
    return lambda: scvae.pl.latent(coloured(), color=color, dimensions=[0, 1], ax=axes and axes(1, 2), show=False)


CASES = {
    "abundance": {
        "own": lambda: [scvae.pl.abundance(records.abundant(), show=False)],
        "given": lambda: [scvae.pl.abundance(records.abundant(), ax=given(1, 1))],
        "constrained": lambda: [scvae.pl.abundance(records.abundant(), ax=constrained(1, 1))],
    },
    "diagnose": {
        "healthy": lambda: scvae.pl.diagnose(records.diagnosed(findings=[]), show=False),
        "ill": lambda: scvae.pl.diagnose(
            records.diagnosed(findings=5 * records.FINDINGS, n_latent=30, n_used=24), show=False
        ),
    },
    "history": {
        "own": lambda: scvae.pl.history(records.trained(), show=False),
        "given": lambda: scvae.pl.history(records.trained(beta=(0.1, 10.0), mapping=True), ax=given(2, 2)),
    },
    "label_confidence": {
        "own": lambda: [scvae.pl.label_confidence(records.named(), show=False)],
        "given": lambda: [scvae.pl.label_confidence(records.named(1), ax=given(1, 1))],
    },
    "latent": {
        "few": latent("few"),
        "leiden": latent("leiden"),
        "many": latent("many"),
        "one": latent("one"),
        "flag": latent("flag"),
        "score": latent("score"),
        "plain": latent(None),
        "given_leiden": latent("leiden", given),
        "given_types": latent("type", constrained),
        "given_score": latent("a score with a rather long name", given),
    },
    "loadings": {
        "own": lambda: scvae.pl.loadings(records.with_effects(), show=False),
        "given": lambda: scvae.pl.loadings(records.with_effects(), ax=given(1, 3)),
    },
    "posterior_predictive": {
        "own": lambda: scvae.pl.posterior_predictive(records.diagnosed(), show=False),
        "given": lambda: scvae.pl.posterior_predictive(records.diagnosed(), ax=given(1, 3)),
    },
    "rate_distortion": {
        "own": lambda: scvae.pl.rate_distortion(records.tuned(), show=False),
        "given": lambda: scvae.pl.rate_distortion(records.tuned(), ax=given(1, 2)),
        "constrained": lambda: scvae.pl.rate_distortion(records.tuned(), ax=constrained(1, 2)),
    },
    "views": {
        "own": lambda: [scvae.pl.views(records.of_views(), show=False)],
        "given": lambda: [scvae.pl.views(records.of_views(3), ax=given(1, 1))],
    },
}
EVERY = [pytest.param(call, id=f"{plot}-{case}") for plot, cases in CASES.items() for case, call in cases.items()]
SLATE = dict.fromkeys(("figure.facecolor", "axes.facecolor"), "#30343a")
SLATE |= dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), "#dddddd")
SIZES = [("scanpy", 14), *itertools.product(("default", "scanpy"), (8, 10, 20)), ("default", 14)]


@pytest.fixture(autouse=True)
def style_of_matplotlib():
    with mpl.rc_context():
        mpl.rcdefaults()
        yield
    plt.close("all")


def test_no_plot_is_left_out():
    assert {*CASES, "beta_explorer"} == set(scvae.pl.__all__)


# colours


def contrast(colour, behind):
    """The contrast ratio of a colour, with its opacity, on an opaque one (WCAG 2.2)."""

    def luminance(rgb):
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in rgb]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    *front, opacity = to_rgba(colour)
    *back, _ = to_rgba(behind)
    low, high = sorted((luminance(back), luminance(opacity * np.array(front) + (1 - opacity) * np.array(back))))
    return (high + 0.05) / (low + 0.05)


def painted(figure):
    """Every artist with its colour, what lies behind it, and the least contrast between them.

    Not listed are grid lines, frames of legends, and edges between bars, which no one has to see, and colour bars.
    Points and bands that are drawn with an opacity need a contrast of 2.
    """
    figure.draw_without_rendering()
    on_axes = {child: panel for panel in figure.axes for child in panel.findobj() if not isinstance(child, Text)}
    on_axes |= {text: panel for panel in figure.axes for text in panel.texts}
    legends = {panel: panel.get_legend() for panel in figure.axes if panel.get_legend()}
    on_axes |= {text: panel for panel, legend in legends.items() for text in legend.findobj(Text)}
    grid = {line for panel in figure.axes for line in (*panel.get_xgridlines(), *panel.get_ygridlines())}
    for artist in figure.findobj(lambda artist: artist.get_visible() and artist not in grid):
        behind = on_axes.get(artist, figure).get_facecolor()
        is_line = isinstance(artist, Line2D)
        if (is_line and artist.get_linestyle() != "None") or (isinstance(artist, Text) and artist.get_text().strip()):
            yield artist, artist.get_color(), behind, 3
        if is_line and artist.get_marker() not in ("None", "none", "", None):
            yield artist, artist.get_markeredgecolor(), behind, 3
    for panel in figure.axes:
        behind = panel.get_facecolor()
        yield from ((spine, spine.get_edgecolor(), behind, 3) for spine in panel.spines.values())
        yield from ((bar, bar.get_facecolor(), behind, 3) for bar in panel.patches)
        for drawn in panel.collections if panel.get_label() != "<colorbar>" else ():
            colours = drawn.get_colors() if isinstance(drawn, LineCollection) else drawn.get_facecolors()
            least = 2 if drawn.get_alpha() else 3
            yield from ((drawn, tuple(colour), behind, least) for colour in np.unique(colours, axis=0))


@pytest.mark.parametrize(
    "style", [pytest.param("dark_background", id="dark"), pytest.param(SLATE, id="slate", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("call", EVERY)
def test_everything_can_be_seen_in_a_dark_style_which_stays_as_it_is(call, style):
    plt.style.use(style)
    before = dict(mpl.rcParams)
    found = list(painted(whole_figure(call()[0])))
    assert dict(mpl.rcParams) == before
    assert len(found) > 20
    assert [(str(artist), colour) for artist, colour, behind, least in found if contrast(colour, behind) < least] == []


@pytest.mark.parametrize("call", EVERY[::4])
def test_texts_can_be_read_in_a_light_style(call):
    plt.style.use("Solarize_Light2")
    found = [entry for entry in painted(whole_figure(call()[0])) if isinstance(entry[0], Text)]
    assert [(str(artist), colour) for artist, colour, behind, least in found if contrast(colour, behind) < least] == []


def test_colours_that_scanpy_has_stored_are_kept_unless_they_cannot_be_seen():
    adata = coloured()
    adata.uns["type_colors"] = ["#000000", "#222222", "#ff7f0e", "#ffffff80"]
    panel = scvae.pl.latent(adata, color="type", dimensions=[0, 1], show=False)[1]
    assert {mpl.colors.to_hex(c, keep_alpha=True) for c in panel.collections[0].get_facecolors()} == {
        "#000000ff", "#222222ff", "#ff7f0eff", "#ffffff80",
    }  # fmt: skip
    plt.style.use("dark_background")
    panel = scvae.pl.latent(adata, color="type", dimensions=[0, 1], show=False)[1]
    dots = [dot.get_markerfacecolor() for dot in panel.figure.legends[0].legend_handles]
    assert dots[0] == "#ffffff"
    assert dots[2:] == ["#ff7f0e", "#ffffff80"]
    assert contrast(dots[1], "black") >= 3


@pytest.mark.parametrize(("transparent", "corner"), [(False, (0, 0, 0, 255)), (True, (0, 0, 0, 0))])
def test_a_file_has_the_face_of_the_style(tmp_path, transparent, corner):
    from PIL import Image

    plt.style.use("dark_background")
    mpl.rcParams["savefig.transparent"] = transparent
    scvae.pl.loadings(records.with_effects(), dimensions=[0], save=tmp_path / "it.png")
    with Image.open(tmp_path / "it.png") as image:
        found = image.convert("RGBA").getpixel((0, 0))
    assert found == corner if not transparent else found[3] == 0


@pytest.mark.parametrize("scheme", [".scvae-explorer {", ".scvae-explorer.scvae-dark {"])
def test_the_page_of_the_explorer_can_be_read(scheme):
    block = asset("explorer.css").partition(scheme)[2].partition("}")[0]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    assert all(contrast(colours[name], colours["back"]) >= 3 for name in ("ink", "soft", "main", "mark"))


# sizes


def texts_of(figure):
    """All texts that are seen, with their extents; ticks beyond the limits of their axis are not."""
    hidden = set()
    for panel in figure.axes:
        for axis, side in ((panel.xaxis, "intervalx"), (panel.yaxis, "intervaly")):
            low, high = getattr(panel.get_window_extent(), side)
            for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
                middle = np.mean(getattr(tick.label1.get_window_extent(), side))
                hidden |= {tick.label2} if low - 1 <= middle <= high + 1 else {tick.label1, tick.label2}
    seen = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible() and artist not in hidden)
    return {text: text.get_window_extent() for text in seen if text.get_text().strip()}


def contains(frame, extent, slack=1.0):
    return np.all(frame.min - slack <= extent.min) and np.all(extent.max <= frame.max + slack)


def cover(one, other):
    """Whether two extents share more than a line of pixels."""
    return np.all(np.minimum(one.max, other.max) - np.maximum(one.min, other.min) > 1)


@pytest.mark.parametrize(
    ("style", "size"), [pytest.param(*it, marks=[pytest.mark.slow] if i else []) for i, it in enumerate(SIZES)]
)
@pytest.mark.parametrize("call", EVERY)
def test_no_text_leaves_its_figure_or_lies_over_another(call, style, size):
    import scanpy

    mpl.rcParams["font.size"] = size
    if style == "scanpy":
        scanpy.set_figure_params(fontsize=size)
    figure = whole_figure(call()[0])
    figure.savefig(io.BytesIO(), bbox_inches="tight")  # as in a notebook
    figure.draw_without_rendering()
    texts = texts_of(figure)
    legends = {legend: legend.get_window_extent() for legend in figure.findobj(Legend)}
    assert [str(artist) for artist, extent in (texts | legends).items() if not contains(figure.bbox, extent)] == []
    pairs = itertools.combinations(texts.items(), 2)
    assert [(str(a), str(b)) for (a, one), (b, other) in pairs if cover(one, other)] == []
    for panel in figure.axes:
        frame, legend = panel.get_window_extent(), panel.get_legend()
        assert panel.get_axisbelow() is True or panel.get_label() == "<colorbar>"
        assert panel.title.get_window_extent().width <= frame.width + 1
        if legend is not None and cover(frame, legend.get_window_extent()):
            assert contains(frame, legend.get_window_extent())


def test_a_figure_grows_with_the_letters_and_is_no_smaller_with_small_ones():
    widths = []
    for size in (8, 10, 20):
        mpl.rcParams["font.size"] = size
        widths.append(whole_figure(scvae.pl.history(records.trained(), show=False)[0]).get_figwidth())
    assert widths == [9.5, 9.5, 19.0]


def test_a_layout_of_the_user_in_which_all_has_room_stays():
    figure, axes = plt.subplots(1, 2, figsize=(14, 5))
    figure.subplots_adjust(left=0.2, top=0.7, wspace=0.4)
    before = [panel.get_position().bounds for panel in axes]
    scvae.pl.rate_distortion(records.tuned(), ax=axes)
    assert [panel.get_position().bounds for panel in axes] == before
