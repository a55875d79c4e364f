"""The card of a model: what it says, and where it is written."""

import dataclasses
import re

import pytest

import scvae
from scvae import TrainingConfig


@pytest.fixture(scope="module")
def fitted():
    adata = scvae.datasets.simulate(n_cells=90, n_genes=30, n_batches=3, n_types=3, truth=False, rng=0)
    adata.obs["donor"] = adata.obs["batch"].cat.rename_categories(["A|1", "B <x>", "C"])
    short = {"n_latent": 3, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=2)}
    return adata, scvae.fit(adata, batch_key="donor", **short)


def tables(card):
    """The rows of the tables, by section: name and value."""
    sections = re.split(r"^## (.+)$", card, flags=re.MULTILINE)
    rows = re.compile(r"^\| (.+?) \| (.*) \|$", re.MULTILINE)
    return {title: dict(rows.findall(text)) for title, text in zip(sections[1::2], sections[2::2], strict=True)}


def test_the_card_has_what_the_model_records(fitted, tmp_path):
    adata, model = fitted
    loaded = scvae.load(model.save(tmp_path / "ref", reference=adata, labels=["cell_type", "donor"]))
    found = tables(loaded.card())
    assert found["Data"]["cells"] == "90"
    assert found["Data"]["genes"].startswith("30: gene_0, gene_1, gene_2, gene_3, gene_4 and 25 more")
    assert found["Data"]["batches (donor)"] == r"3: A\|1 (30 cells); B &lt;x> (30 cells); C (30 cells)"
    for name, value in model.summary().items():
        assert found["Model and fit"][name] == str(value)
    counts = adata.obs["cell_type"].value_counts()
    assert found["Reference"]["cell_type: cells"] == ", ".join(f"type_{i} ({counts[f'type_{i}']})" for i in range(3))
    assert found["Versions"] == model.versions
    assert "None was given" in loaded.card()
    assert "transfer_labels(query, model, labels_key='cell_type')" in loaded.card()
    assert "UMAP" not in loaded.card().partition("## What the file reveals")[2]


def test_the_code_on_a_card_runs(fitted, tmp_path, monkeypatch):
    adata, model = fitted
    adata = adata.copy()
    adata.obsm["X_umap"] = adata.X[:, :2].toarray()
    monkeypatch.chdir(tmp_path)
    model.save("ref.safetensors", reference=adata, labels="cell_type", umap=True, card=True)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "ref.md").read_text(encoding="utf-8"), re.DOTALL)
    query = adata[:40].copy()
    query.obs["donor"] = "D"
    monkeypatch.setattr(
        scvae.tl, "map_query", lambda *a, map_query=scvae.tl.map_query: map_query(*a, epochs=2, verbose=False)
    )
    exec(code, {"query": query})
    assert {"X_scvae_umap", "scvae_nearest"} <= set(query.obsm)
    assert "scvae_label" in query.obs


def test_the_licence_goes_with_the_file(fitted, tmp_path):
    path = fitted[1].save(tmp_path / "model.safetensors", card=True, licence="CC BY 4.0")
    assert "CC BY 4.0" in (tmp_path / "model.md").read_text(encoding="utf-8")
    loaded = scvae.load(path)
    assert loaded.licence == "CC BY 4.0"
    assert "## Licence\n\nCC BY 4.0" in scvae.load(loaded.save(tmp_path / "again")).card()


def test_a_model_without_batches_and_with_labels_says_so(fitted):
    adata = fitted[0]
    short = {"n_latent": 3, "rng": 0, "verbose": False, "training": TrainingConfig(epochs=2)}
    card = scvae.fit(adata.copy(), labels_key="cell_type", **short).card(file="mine.safetensors")
    assert "scvae.load('mine.safetensors')\nscvae.tl.embed(query, model)" in card
    assert tables(card)["Data"]["labels of the fit (cell_type)"] == "type_0, type_1, type_2"
    assert "labelled cells" in card.partition("## What the file reveals")[2]


def test_a_card_never_replaces_a_file_unasked(fitted, tmp_path):
    _, model = fitted
    (tmp_path / "model.md").write_text("notes")
    with pytest.raises(FileExistsError, match=r"model\.md exists; pass overwrite=True"):
        model.save(tmp_path / "model.safetensors", card=True, overwrite=False)
    with pytest.raises(ValueError, match=r"would be the model and its card; end its name in \.safetensors"):
        model.save(tmp_path / "model.md", card=True)
    assert [path.name for path in tmp_path.iterdir()] == ["model.md"]
    assert (tmp_path / "model.md").read_text() == "notes"


def test_mapped_batches_are_marked(fitted):
    _, model = fitted
    batch = dataclasses.replace(model.schema.batch, mapped=("C",))
    card = dataclasses.replace(model, schema=dataclasses.replace(model.schema, batch=batch)).card()
    assert "C (30 cells), mapped" in card
