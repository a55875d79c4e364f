"""Trees of labels from a small ontology: classes with several parents, synonyms, and what is refused."""

import sys

import numpy as np
import pytest

import scvae
from scvae.data.label_tree import tree_of
from scvae.data.ontology import parents_in_ontology

pytest.importorskip("obonet", reason="obonet reads ontologies; install the extra 'ontology'")

TERMS = {
    "CL:0": ("cell", []),
    "CL:1": ("leukocyte", ["CL:0"]),
    "CL:2": ("lymphocyte", ["CL:1"]),
    "CL:3": ("T cell", ["CL:2"]),
    "CL:4": ("CD4 T cell", ["CL:3"]),
    "CL:5": ("CD8 T cell", ["CL:3", "CL:9"]),  # also cytotoxic, as NK cells are: a class that cuts across
    "CL:6": ("NK cell", ["CL:2", "CL:9"]),
    "CL:7": ("myeloid cell", ["CL:1"]),
    "CL:8": ("monocyte", ["CL:7"]),
    "CL:9": ("cytotoxic cell", ["CL:1"]),
    "CL:10": ("epithelial cell", ["CL:0"]),
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "small.obo"
    text = "format-version: 1.2\nontology: small\n"
    for term, (name, parents) in TERMS.items():
        text += f"\n[Term]\nid: {term}\nname: {name}\n" + "".join(f"is_a: {parent} ! x\n" for parent in parents)
        if term == "CL:6":
            text += 'synonym: "natural killer" EXACT []\nsynonym: "killer" BROAD []\nrelationship: part_of CL:10 ! x\n'
    file.write_text(text, encoding="utf-8")
    return file


def members(tree, labels):
    return {name: {labels[i] for i in np.flatnonzero(row)} for name, row in zip(tree.names, tree.members, strict=True)}


def test_classes_that_part_the_labels_are_kept_and_cut_to_a_tree(path):
    labels = ["CD4 T cell", "cd8 t cell", "Natural Killer", "CL:8"]
    tree = tree_of(parents_in_ontology(path, labels), labels)
    assert members(tree, labels) == {
        "lymphocyte": {"CD4 T cell", "cd8 t cell", "Natural Killer"},
        "T cell": {"CD4 T cell", "cd8 t cell"},
    } | {label: {label} for label in labels}
    # not "leukocyte", which is all of them, nor "cytotoxic cell", which cuts across T cells
    assert dict(zip(tree.names, tree.depth.tolist(), strict=True))["cd8 t cell"] == 3


def test_a_label_may_be_a_class_of_other_labels(path):
    labels = ["T cell", "CD4 T cell", "NK cell", "epithelial cell"]
    tree = tree_of(parents_in_ontology(path, labels), labels)
    found = members(tree, labels)
    assert found["T cell"] == {"T cell", "CD4 T cell"}
    assert found["lymphocyte"] == {"T cell", "CD4 T cell", "NK cell"}
    assert tree.own[tree.names.index("T cell")] == 0


def test_labels_that_the_ontology_lacks_are_named_and_hang_from_the_root(path):
    with pytest.warns(UserWarning, match=r"no term for the labels 'killer', 'T\.1', which become children"):
        parents = parents_in_ontology(path, ["CD4 T cell", "CD8 T cell", "killer", "T.1", "monocyte"])
    above = {"CD4 T cell": "T cell", "CD8 T cell": "T cell", "T cell": "leukocyte", "monocyte": "leukocyte"}
    assert parents == above | {"leukocyte": None}  # now not all of the labels


def test_what_cannot_be_read_is_refused(path, monkeypatch):
    with pytest.raises(ValueError, match=r"no term for any label \('a', 'b'\)"):
        parents_in_ontology(path, ["a", "b"])
    with pytest.raises(FileNotFoundError, match="no such file"):
        parents_in_ontology("none.obo", ["T cell", "NK cell"])
    path.write_text("id,name\n1,T cell\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"cannot be read as an OBO file \([^\n]+\); pass an ontology"):
        parents_in_ontology(path, ["T cell", "NK cell"])
    monkeypatch.setitem(sys.modules, "obonet", None)
    with pytest.raises(ImportError, match=r"pip install 'scvae-torch\[ontology\]'"):
        parents_in_ontology(path, ["T cell", "NK cell"])


def test_cells_get_names_of_the_ontology(path, digest):
    adata = scvae.datasets.simulate(n_cells=400, n_genes=60, n_types=3, type_share=0.3, truth=False, rng=0)
    names = {"type_0": "CD4 T cell", "type_1": "CD8 T cell", "type_2": "monocyte"}
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(str).map(names)
    model = scvae.fit(adata, labels_key="cell_type", n_latent=5, rng=0, verbose=False)
    scvae.tl.predict_labels(adata, model, hierarchy=path, max_error=0.1)
    assert {"T cell", *names.values()} <= set(adata.obs["scvae_label"].cat.categories)
    before = digest(adata)
    with pytest.raises(FileNotFoundError):
        scvae.tl.predict_labels(adata, model, hierarchy="none.obo")
    assert digest(adata) == before
