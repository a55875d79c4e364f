"""`pl.rate_distortion` draws the table that it finds, and nothing over anything else."""

import itertools
import sys

import anndata as ad
import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

import scvae
from scvae.common.checks import MissingKeyError

mpl.use("Agg")

from matplotlib import pyplot as plt

BETAS = np.geomspace(0.1, 10, 9)


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def table(recommended=4, *, labels=True, betas=BETAS):
    betas = np.asarray(betas, dtype=float)
    columns = {
        "beta": betas,
        "distortion": 600 + 5 * np.sqrt(betas),
        "rate": 8 / np.sqrt(betas),
        "leiden_stability": np.linspace(0.5, 0.8, len(betas)),
        "graph_agreement": np.linspace(0.9, 0.1, len(betas)),
        "modularity": np.linspace(0.6, 0.7, len(betas)),
        "trustworthiness": np.linspace(0.95, 0.9, len(betas)),
    }
    if labels:
        columns |= {"nmi": np.linspace(0.6, 0.7, len(betas)), "ari": np.linspace(0.5, 0.75, len(betas))}
    return pd.DataFrame(columns | {"recommended": np.arange(len(betas)) == recommended})


def tuned(*args, key="scvae", **options):
    return ad.AnnData(np.ones((3, 2), dtype=np.float32), uns={key: {"beta_path": table(*args, **options)}})


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def test_the_curve_is_distortion_against_rate_with_the_recommended_beta_ringed():
    adata = tuned(recommended=6)
    left, _ = scvae.pl.rate_distortion(adata, show=False)
    curve, ring = left.get_lines()
    expected = table()
    np.testing.assert_allclose(curve.get_xydata(), expected[["rate", "distortion"]])
    np.testing.assert_allclose(ring.get_xydata(), expected.loc[[6], ["rate", "distortion"]])
    assert "rate" in left.get_xlabel()
    assert "distortion" in left.get_ylabel()
    assert f"β = {BETAS[6]:.3g}" in [text.get_text() for text in left.texts]


def test_scores_are_drawn_against_beta_on_a_log_axis_with_the_recommendation():
    _, right = scvae.pl.rate_distortion(tuned(recommended=2), show=False)
    assert right.get_xscale() == "log"
    lines = lines_of(right)
    assert list(lines) == [
        f"recommended: β = {BETAS[2]:.3g}",
        "stability of Leiden clusters",
        "neighbours shared by two draws",
        "NMI with labels",
        "ARI with labels",
    ]
    np.testing.assert_allclose(lines["ARI with labels"].get_xydata(), table()[["beta", "ari"]])
    assert set(next(iter(lines.values())).get_xdata()) == {BETAS[2]}
    assert [text.get_text() for text in right.get_legend().get_texts()] == list(lines)


def test_without_labels_the_label_free_scores_are_drawn_and_columns_can_be_chosen():
    adata = tuned(labels=False)
    _, right = scvae.pl.rate_distortion(adata, show=False)
    assert len(lines_of(right)) == 5
    assert "modularity" in lines_of(right)
    _, one = scvae.pl.rate_distortion(adata, scores="trustworthiness", show=False)
    assert list(lines_of(one))[1:] == ["trustworthiness"]
    assert one.get_ylabel() == "trustworthiness"


@pytest.mark.parametrize("recommended", [0, 4, 8])
@pytest.mark.parametrize("betas", [BETAS, np.geomspace(0.9, 1.1, 9), np.geomspace(0.001, 100, 25), [0.5, 2.0]])
def test_no_label_lies_over_another_or_outside_its_axes(betas, recommended):
    recommended = min(recommended, len(betas) - 1)
    left, right = scvae.pl.rate_distortion(tuned(recommended, betas=betas), show=False)
    left.figure.draw_without_rendering()
    on_curve = [text.get_window_extent() for text in left.texts]
    ticks = [text.get_window_extent() for text in right.get_xticklabels() if text.get_text()]
    assert len(on_curve) >= 2
    assert len(ticks) >= 2
    for extents in (on_curve, ticks):
        assert not any(a.overlaps(b) for a, b in itertools.combinations(extents, 2))
    frame = left.get_window_extent()
    assert all(frame.x0 <= e.x0 and e.x1 <= frame.x1 and e.y1 <= frame.y1 for e in on_curve)


def test_axes_of_the_user_are_drawn_into_and_no_figure_is_made():
    figure, given = plt.subplots(2, 1)
    returned = scvae.pl.rate_distortion(tuned(), ax=given)
    assert returned == tuple(given)
    assert plt.get_fignums() == [figure.number]
    with pytest.raises(ValueError, match="1 axes; pass 2"):
        scvae.pl.rate_distortion(tuned(), ax=given[:1])


def test_axes_in_a_part_of_a_figure_are_drawn_into():
    part = plt.figure(figsize=(14, 4), layout="constrained").subfigures(1, 2)[0]
    left, _ = scvae.pl.rate_distortion(tuned(), ax=part.subplots(1, 2))
    assert left.texts


def test_a_figure_is_saved_and_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: pytest.fail("shown"))
    scvae.pl.rate_distortion(tuned(), save=tmp_path / "path.png")
    assert plt.imread(tmp_path / "path.png").shape[2] == 4


def test_a_figure_is_shown_where_nothing_else_is_asked_for(monkeypatch):
    shown = []
    monkeypatch.setattr(plt, "show", lambda: shown.append(True))
    assert scvae.pl.rate_distortion(tuned()) is None
    assert shown == [True]


def test_another_key_is_read():
    left, _ = scvae.pl.rate_distortion(tuned(key="mine"), key_added="mine", show=False)
    assert len(left.get_lines()) == 2


def test_what_is_missing_is_named():
    with pytest.raises(MissingKeyError, match=r"adata.uns has no 'scvae'"):
        scvae.pl.rate_distortion(ad.AnnData(np.ones((3, 2))))
    with pytest.raises(MissingKeyError, match=r"tune_beta\(adata\) writes it"):
        scvae.pl.rate_distortion(ad.AnnData(np.ones((3, 2)), uns={"scvae": {"params": {}}}))
    with pytest.raises(MissingKeyError, match=r"no 'arri'.*did you mean 'ari'"):
        scvae.pl.rate_distortion(tuned(), scores=["arri"])
    with pytest.raises(TypeError, match="adata is a str"):
        scvae.pl.rate_distortion("path.h5ad")


def test_the_order_of_the_rows_makes_no_difference():
    adata = tuned(recommended=6)
    adata.uns["scvae"]["beta_path"] = adata.uns["scvae"]["beta_path"].sample(frac=1, random_state=0)
    left, _ = scvae.pl.rate_distortion(adata, show=False)
    np.testing.assert_allclose(left.get_lines()[0].get_xydata(), table()[["rate", "distortion"]])


def test_matplotlib_is_not_needed_to_import_the_package():
    import subprocess

    code = "import sys, scvae; print([n for n in ('matplotlib', 'scanpy', 'sklearn', 'igraph') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
