"""`pl.beta_explorer` puts the stored places and the chosen colours into a widget or one page, whole or not at all."""

import base64
import json
import re
import sys
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import traitlets
from scipy import sparse

import scvae
from scvae.common.checks import MissingKeyError
from scvae.pl._color import palette
from scvae.pl._explorer.page import asset, script
from tests.pl import explorable as cells
from tests.pl.explorable import explorable


def written(adata, tmp_path, **options):
    """Record and buffer of the page."""
    assert scvae.pl.beta_explorer(adata, save=tmp_path / "explorer.html", **options) is None
    text = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    record = re.search(r'<script id="record" type="application/json">(.*?)</script>', text, re.DOTALL)[1]
    buffer = re.search(r'<script id="buffer" type="text/plain">(.*?)</script>', text, re.DOTALL)[1]
    return json.loads(record), base64.b64decode(buffer, validate=True)


def colour(record, buffer, name):
    """One choice of colours and the value of each cell in it."""
    (found,) = [entry for entry in record["colors"] if entry["name"] == name]
    kind = "<u1" if found["kind"] == "category" else "<u2"
    return found, np.frombuffer(buffer, kind, record["n_cells"], found["offset"])


# what is shown


def test_places_are_those_stored_to_a_thousandth_of_the_extent(tmp_path):
    adata = explorable()
    record, buffer = written(adata, tmp_path)
    assert record["betas"] == cells.BETAS
    places = np.frombuffer(buffer, "<i2", 2 * 3 * 40).reshape(3, 40, 2) / 3276.7
    stored = adata.obsm["X_scvae_umap_betas"].reshape(40, 3, 2).transpose(1, 0, 2)
    np.testing.assert_allclose(places, stored, atol=0.01)  # the corners lie around 0
    assert record["extent"] == [32767, round(32767 / 2)]
    assert (record["rate"], record["distortion"]) == ([20.0, 8.0, 1.0], [600.0, 605.0, 620.0])
    assert record["names"] == adata.obs_names.tolist()


def test_cells_without_a_place_are_left_out_with_their_colours_and_names(tmp_path):
    adata = explorable()
    adata.obsm["X_scvae_umap_betas"][::4] = np.nan
    record, buffer = written(adata, tmp_path, color=["group", "depth"])
    kept = np.arange(40) % 4 != 0
    assert record["n_cells"] == 30
    assert record["names"] == adata.obs_names[kept].tolist()
    assert record["note"].startswith("30 of 40 cells")
    _, codes = colour(record, buffer, "group")
    np.testing.assert_array_equal(codes, adata.obs["group"].cat.codes[kept])


def test_the_recommended_beta_is_where_the_page_begins(tmp_path):
    record, _ = written(explorable(table=True), tmp_path)
    assert (record["recommended"], record["beta"]) == (1.0, 1.0)
    adata = explorable(table=True)
    adata.uns["scvae"]["beta_path"]["beta"] = [0.001, 100.0, 1000.0]  # of another range
    record, _ = written(adata, tmp_path)
    assert (record["recommended"], record["beta"]) == (None, 1.0)


def test_a_beta_that_was_recommended_for_another_model_is_not_shown(tmp_path):
    for model, recommended in (("the same", 1.0), ("another", None)):
        adata = explorable(table=True)
        adata.uns["scvae"]["models"] = {"beta_embeddings": "the same", "beta_path": model}
        assert written(adata, tmp_path)[0]["recommended"] == recommended


def test_what_an_h5ad_file_gives_back_is_shown_the_same(tmp_path):
    adata = explorable(table=True)
    expected = written(adata, tmp_path)
    adata.write_h5ad(tmp_path / "cells.h5ad")
    assert written(ad.read_h5ad(tmp_path / "cells.h5ad"), tmp_path) == expected


def test_part_of_the_cells_can_be_explored_and_another_name_of_the_slots(tmp_path):
    adata = explorable(key="mine")
    record, _ = written(adata[::2], tmp_path, key_added="mine")
    assert record["n_cells"] == 20
    assert [entry["categories"] for entry in record["colors"] if entry["name"] == "group"] == []  # one category is left


# colours


def test_columns_are_chosen_unasked_if_they_are_numbers_or_have_2_to_40_categories(tmp_path):
    adata = explorable()
    adata.obs["one"] = "same"
    adata.obs["barcode"] = [f"b{i % 41}" if i < 41 else "b0" for i in range(40)]
    adata.obs["flag"] = np.arange(40) % 3 == 0
    adata.obs["empty"] = np.nan
    record, _ = written(adata, tmp_path)
    assert [entry["name"] for entry in record["colors"]] == ["group", "depth", "barcode", "flag"]
    wide = explorable()
    for i in range(20):
        wide.obs[f"n{i}"] = float(i)
    assert len(written(wide, tmp_path)[0]["colors"]) == 12


def test_without_any_column_all_cells_have_one_colour(tmp_path):
    adata = explorable()
    adata.obs = adata.obs[[]]
    record, buffer = written(adata, tmp_path)
    entry, codes = colour(record, buffer, "all cells")
    assert entry["categories"] == ["all cells"]
    assert (codes == 0).all()


def test_categories_keep_their_order_and_the_colours_scanpy_stored(tmp_path):
    adata = explorable()
    record, buffer = written(adata, tmp_path, color="group")
    entry, codes = colour(record, buffer, "group")
    assert entry["categories"] == ["walks", "stays"]
    assert entry["colors"] == ["#ff0000", "#0000ff"]
    np.testing.assert_array_equal(codes, adata.obs["group"].cat.codes)
    entry, _ = colour(*written(adata[1::2], tmp_path, color="group"), "group")
    assert (entry["categories"], entry["colors"]) == (["stays"], ["#0000ff"])
    for given, shown in ((["red", "#0000ff80"], ["#ff0000", "#0000ff"]), (["#ff0000"], palette(2))):
        adata.uns["group_colors"] = given
        assert colour(*written(adata, tmp_path, color="group"), "group")[0]["colors"] == shown


def test_of_many_categories_the_smallest_are_one(tmp_path):
    adata = explorable(n=200)
    sizes = np.repeat(np.arange(60), np.r_[np.full(39, 4), np.full(21, 2)])[:198]
    adata.obs["many"] = [f"type {i:02d}" for i in sizes] + [None, None]
    entry, codes = colour(*written(adata, tmp_path, color="many"), "many")
    assert entry["categories"] == [*(f"type {i:02d}" for i in range(39)), "21 others"]
    assert len(set(entry["colors"])) == 40
    assert (codes == 39).sum() == 42
    assert (codes[-2:] == 255).all()


@pytest.mark.parametrize(("missing", "kind"), [(np.nan, "float64"), (None, "Int64"), (pd.NA, "Float32")])
def test_missing_labels_and_numbers_have_a_code_of_their_own(tmp_path, missing, kind):
    adata = explorable()
    adata.obs["label"] = pd.Series(["a", missing] * 20, index=adata.obs_names, dtype=object)
    adata.obs["number"] = pd.array([1, missing] * 20, dtype=kind)
    record, buffer = written(adata, tmp_path, color=["label", "number"])
    entry, codes = colour(record, buffer, "label")
    assert entry["categories"] == ["a"]
    assert codes.tolist() == [0, 255] * 20
    _, levels = colour(record, buffer, "number")
    assert levels.tolist() == [0, 65535] * 20


def test_numbers_are_levels_of_their_range_shown_without_the_outermost(tmp_path):
    adata = explorable(n=1000)
    values = np.r_[np.zeros(500), np.linspace(1, 100, 499), 1e6]
    adata.obs["count"] = values
    adata.obs["infinite"] = np.where(np.arange(1000) == 3, np.inf, 5.0)
    record, buffer = written(adata, tmp_path, color=["count", "infinite"])
    entry, levels = colour(record, buffer, "count")
    np.testing.assert_allclose(levels / 65534 * 1e6, values, atol=8)
    assert (entry["low"], entry["high"]) == (0, 1e6)
    assert entry["shown"][0] == 0
    assert 90 < entry["shown"][1] < 101
    entry, levels = colour(record, buffer, "infinite")
    assert entry["shown"] == [5, 5]
    assert (levels == 65535).nonzero()[0].tolist() == [3]


@pytest.mark.parametrize("form", [np.asarray, sparse.csr_matrix, sparse.csc_array])
@pytest.mark.parametrize("factor", [1, 2])
def test_genes_are_taken_from_raw_or_x(tmp_path, form, factor):
    adata = explorable()
    if factor == 2:
        adata.raw = ad.AnnData(form(2 * adata.X), var=adata.var, obs=adata.obs[[]])
    adata.X = form(adata.X)
    entry, levels = colour(*written(adata, tmp_path, color="NKG7"), "NKG7")
    assert (entry["low"], entry["high"]) == (factor, factor * 79)
    np.testing.assert_allclose(levels / 65534 * factor * 78 + factor, factor * np.arange(1, 80, 2), atol=0.01)


# the page


def test_the_page_names_no_other_place(tmp_path):
    scvae.pl.beta_explorer(explorable(), save=tmp_path / "explorer.html")
    text = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"'\s]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not an address
    assert "default-src 'none'" in text
    assert not re.search(r"\b(fetch|import|XMLHttpRequest|WebSocket)\s*\(", text)
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"(?!data:)", text)


def test_no_name_can_end_the_script_it_stands_in(tmp_path):
    adata = explorable()
    adata.obs["group"] = adata.obs["group"].cat.rename_categories({"walks": cells.HOSTILE})
    adata.obs_names = [f"<!--{name}" for name in adata.obs_names]
    record, _ = written(adata, tmp_path)
    assert record["colors"][0]["categories"][0] == cells.HOSTILE
    text = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert cells.HOSTILE not in text
    assert text.count("<script") == 3
    assert "<!--" not in text
    assert "</script" not in script()  # which stands in one, too


def test_three_thousand_cells_take_less_than_three_megabytes(tmp_path):
    adata = explorable(n=3000)
    for i in range(10):
        adata.obs[f"number {i}"] = np.linspace(0, i + 1, 3000)
    scvae.pl.beta_explorer(adata, save=tmp_path / "explorer.html")
    assert (tmp_path / "explorer.html").stat().st_size < 3e6


def test_a_page_that_fails_leaves_what_was_there(tmp_path, monkeypatch):
    place = tmp_path / "explorer.html"
    place.write_text("earlier")

    def broken(self, *args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr(Path, "write_text", broken)
    with pytest.raises(OSError, match="disk full"):
        scvae.pl.beta_explorer(explorable(), save=place)
    assert [path.name for path in tmp_path.iterdir()] == ["explorer.html"]
    assert place.read_text() == "earlier"


# what is refused


@pytest.mark.parametrize(
    ("change", "options", "error", "message"),
    [
        (lambda a: a.uns.clear(), {}, MissingKeyError, r"adata.uns has no 'scvae'"),
        (
            lambda a: a.uns["scvae"].clear(),
            {},
            MissingKeyError,
            r"scvae.tl.beta_embeddings\(adata, model\) writes it",
        ),
        (lambda a: a.obsm.clear(), {}, MissingKeyError, r"adata.obsm has no 'X_scvae_umap_betas'; scvae"),
        (
            lambda a: a.uns["scvae"]["beta_embeddings"].update(beta=np.array([1.0, 2.0])),
            {},
            ValueError,
            r"has 6 columns",
        ),
        (lambda a: a.obsm["X_scvae_umap_betas"].fill(np.nan), {}, ValueError, r"none of these 40 cells was laid out"),
        (None, {"color": "gruop"}, MissingKeyError, r"has no 'gruop'; .* did you mean 'group'\?"),
        (None, {"color": ["group", "CD3"]}, MissingKeyError, r"did you mean 'CD3E'\?"),
        (None, {"save": "explorer.png"}, ValueError, r"save is 'explorer.png'; .* ends in .html"),
        (None, {"save": "no/such/folder.html"}, FileNotFoundError, r"the folder no/such does not exist"),
        (None, {"key_added": "other"}, MissingKeyError, r"adata.uns has no 'other'"),
    ],
)
def test_what_cannot_be_shown_is_said_and_nothing_is_written(tmp_path, monkeypatch, change, options, error, message):
    monkeypatch.chdir(tmp_path)
    adata = explorable()
    if change is not None:
        change(adata)
    with pytest.raises(error, match=message):
        scvae.pl.beta_explorer(adata, **{"save": "explorer.html"} | options)
    assert not list(tmp_path.iterdir())


# the widget


def test_the_widget_holds_what_the_page_holds_and_the_same_script(tmp_path):
    adata = explorable(table=True)
    widget = scvae.pl.beta_explorer(adata)
    assert (widget.record, widget.buffer) == written(adata, tmp_path)
    assert {"record", "buffer", "beta", "color"} <= set(widget.trait_names(sync=True))
    page = (tmp_path / "explorer.html").read_text(encoding="utf-8")
    assert str(widget._esm) == script()
    assert script() in page
    assert str(widget._css) == asset("explorer.css")
    assert asset("explorer.css") in page
    widget.close()


def test_beta_and_colour_of_the_widget_can_be_set_within_what_it_has():
    widget = scvae.pl.beta_explorer(explorable(), color=["depth", "group"])
    assert (widget.beta, widget.color) == (1.0, "depth")
    widget.beta, widget.color = 3, "group"
    assert (widget.beta, widget.color) == (3.0, "group")
    with pytest.raises(traitlets.TraitError, match=r"beta is 11; the explorer has β from 0.1 to 10"):
        widget.beta = 11
    with pytest.raises(traitlets.TraitError, match=r"color is 'batch'; the explorer has depth, group"):
        widget.color = "batch"
    assert (widget.beta, widget.color) == (3.0, "group")
    widget.close()


def test_without_anywidget_the_error_says_what_to_install_and_the_page_is_still_written(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    monkeypatch.delitem(sys.modules, "scvae.pl._explorer.widget", raising=False)
    with pytest.raises(ImportError, match=r"pip install 'scvae-torch\[explorer\]'.*save='explorer.html'"):
        scvae.pl.beta_explorer(explorable())
    assert written(explorable(), tmp_path)[0]["n_cells"] == 40
