"""Tables for notebooks: well-formed, escaped, of the page's own colours, and with the facts of the text."""

import dataclasses
import re
from html.parser import HTMLParser

import pytest

import scvae
from scvae import TrainingConfig
from scvae.common import html as _html
from scvae.diagnostics.findings.finding import Finding

VOID = {"br", "hr", "img"}


class Reader(HTMLParser):
    """Texts of a fragment; refuses tags that do not match."""

    def __init__(self):
        super().__init__()
        self.open, self.texts, self.styles, self.tags = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.styles += [value for name, value in attributes if name == "style"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def read(fragment):
    reader = Reader()
    reader.feed(fragment)
    reader.close()
    assert reader.open == []
    return reader


def words(text):
    """What is said, without the spaces and bars of a layout."""
    return set(re.sub(r"\s+", " ", text).split())


@pytest.fixture(scope="module")
def adata():
    return scvae.datasets.simulate(n_cells=60, n_genes=20, rng=0, truth=False)


@pytest.fixture(scope="module")
def path(adata):
    return scvae.tune_beta(
        adata.copy(), betas=[0.5, 1, 2], rng=0, n_latent=2, verbose=False, training=TrainingConfig(epochs=2)
    )


@pytest.fixture(scope="module")
def diagnosis(adata):
    model = scvae.fit(adata.copy(), rng=0, n_latent=2, verbose=False, training=TrainingConfig(epochs=1))
    return scvae.tl.diagnose(adata.copy(), model)


@pytest.mark.parametrize("name", ["model", "path", "diagnosis"])
def test_what_is_shown_is_well_formed_and_says_what_the_text_says(name, path, diagnosis):
    shown = {"model": path.model, "path": path, "diagnosis": diagnosis}[name]
    reader = read(shown._repr_html_())
    assert "table" in reader.tags
    assert words(repr(shown)) - words(" ".join(reader.texts)) == set()


@pytest.mark.parametrize("name", ["model", "path", "diagnosis"])
def test_what_is_shown_brings_no_colours_scripts_or_files_of_its_own(name, path, diagnosis):
    reader = read({"model": path.model, "path": path, "diagnosis": diagnosis}[name]._repr_html_())
    assert not {"script", "style", "link", "img"} & set(reader.tags)
    declared = [part.split(":", 1) for style in reader.styles for part in style.split(";")]
    assert declared
    for key, value in declared:
        assert key.strip() not in ("color", "background-color")
        assert key.strip() != "background" or value.strip() == "none"
        assert "url(" not in value


def test_the_row_recommended_is_marked_and_the_others_are_not(path):
    rows = re.findall(r"<tr>.*?</tr>", path._repr_html_())[1:]
    marked = [row for row in rows if "→" in row]
    assert len(rows) == 3
    assert len(marked) == 1
    assert f">{path.recommended:.4g}<" in marked[0]
    assert [row for row in rows if "font-weight:bold" in row] == marked


def test_names_that_look_like_tags_are_text(path, diagnosis):
    evil = "<script>alert('&')</script>"
    outcome = dataclasses.replace(path.model.outcome, reason=evil)
    model = dataclasses.replace(path.model, outcome=outcome)
    finding = Finding(name=evil, severity="disease", sentence=evil, cause=evil, remedy=evil)
    for shown in (
        model,
        dataclasses.replace(diagnosis, findings=(finding,)),
        dataclasses.replace(path, judged_on=evil),
    ):
        reader = read(shown._repr_html_())
        assert "script" not in reader.tags
        assert any(evil in text for text in reader.texts)


def test_an_empty_list_is_left_out():
    assert _html.items([]) == ""
    assert read(_html.items([("a", ["b.", "c."])])).texts == ["a", "b. c."]
