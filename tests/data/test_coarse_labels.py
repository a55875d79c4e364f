"""Labels of different depth: which of them are coarser names of others, in every form of a tree."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvae.data.intake import DataKeys, learned_labels
from scvae.data.labels import Labels

TREE = {"lymphocyte": {"T": ["CD4", "CD8"], "B": ["1.0", "2.0"]}, "myeloid": ["mono"]}
TYPES = ["CD4", "T", "CD8", "lymphocyte", None, "mono", 2, "B", "myeloid", "1.0"]


def adata_with(types=TYPES, **columns):
    index = [f"cell {i}" for i in range(len(types))]
    return ad.AnnData(
        np.ones((len(types), 2), np.float32), obs=pd.DataFrame({"type": types} | columns, index, dtype=object)
    )


def labels_by(hierarchy, types=TYPES, known=None, unlabelled=None, **columns):
    adata = adata_with(types, **columns)
    keys = DataKeys(labels_key="type", label_hierarchy=hierarchy, unlabelled=unlabelled)
    return learned_labels(adata, keys, known), adata


@pytest.mark.filterwarnings("ignore:of the labels under 'myeloid'")
def test_a_coarser_label_has_the_finest_ones_under_it_at_any_depth():
    labels, adata = labels_by(TREE)
    assert labels.names == ("1", "2", "CD4", "CD8", "mono")
    assert dict(labels.coarse) == {"T": (2, 3), "B": (0, 1), "lymphocyte": (0, 1, 2, 3), "myeloid": (4,)}
    found = [[labels.names[i] for i in np.flatnonzero(row)] for row in labels.members[labels.codes(adata)]]
    assert found[1] == ["CD4", "CD8"]
    assert found[3] == ["1", "2", "CD4", "CD8"]
    assert found[6] == ["2"]
    assert labels.codes(adata)[4] == -1
    assert Labels.from_json(labels.to_json()) == labels


def test_columns_are_a_tree_in_which_cells_without_a_label_have_no_place():
    fine = ["CD4", "T", "CD8", "?", "B"]
    labels, adata = labels_by(["line", "type"], fine, unlabelled="?", line=["T", "T", "T", "T", "B"])
    assert (labels.names, labels.coarse) == (("B", "CD4", "CD8"), (("T", (1, 2)),))
    assert labels.codes(adata).tolist() == [1, 3, 2, -1, 0]


def test_a_coarser_name_alone_stays_a_label_and_a_tree_without_effect_is_named():
    with pytest.warns(UserWarning, match="label_hierarchy changes nothing"):
        labels, _ = labels_by(TREE, ["T", "B", "mono"])
    assert (labels.names, labels.coarse) == (("B", "T", "mono"), ())
    with pytest.warns(UserWarning, match="'CD8' alone, as which all cells called 'T' will count"):
        labels, _ = labels_by(TREE, ["T", "CD8", "mono"])
    assert dict(labels.coarse) == {"T": (0,)}


def test_a_model_keeps_what_it_knows_and_learns_coarser_names():
    known, _ = labels_by(TREE, ["CD8", "T", "CD4", "mono"])
    more, adata = labels_by(None, ["T", "NK", "CD4"], known)
    assert (more.names, more.coarse) == (("CD4", "CD8", "mono", "NK"), (("T", (0, 1)),))
    assert more.codes(adata).tolist() == [4, 3, 0]
    more, _ = labels_by({"CD4": "cell", "mono": "cell"}, ["cell", "CD4"], known)
    assert (more.names, dict(more.coarse)) == (("CD4", "CD8", "mono"), {"cell": (0, 2), "T": (0, 1)})
    with pytest.raises(ValueError, match=r"init has the label 'CD4', which label_hierarchy makes .* of 'naive'"):
        labels_by({"naive": "CD4"}, ["naive", "CD4"], known)


@pytest.mark.parametrize(
    ("hierarchy", "error", "message"),
    [
        ({"hepatocyte": "liver"}, ValueError, "^label_hierarchy has none of the labels"),
        ({"CD4": "T", "T": "CD4"}, ValueError, "^in label_hierarchy, .* is its own ancestor"),
        ({"CD4": "T", "CD8": "naive", "naive": "?"}, ValueError, "^unlabelled is '\\?', in label_hierarchy a coarser"),
        ({"CD4": "T", "CD8": "CD4"}, ValueError, "the finest of the labels .* is 'CD8'; at least two"),
        ("learnt", ValueError, "^label_hierarchy is 'learnt', but"),
        (["hierarchy"], ValueError, "no 'hierarchy'"),
        (7, TypeError, "^label_hierarchy is a int"),
    ],
)
def test_what_cannot_be_a_tree_of_the_labels_gets_one_line(hierarchy, error, message):
    with pytest.raises(error, match=message) as caught:
        labels_by(hierarchy, ["CD4", "T", "CD8", "?"], unlabelled="?")
    assert "\n" not in str(caught.value)


def test_classes_of_an_ontology_may_cut_across_each_other(tmp_path):
    pytest.importorskip("obonet", reason="obonet reads ontologies; install the extra 'ontology'")
    terms = {"T": [], "cytotoxic": [], "CD4": ["T"], "CD8": ["T", "cytotoxic"], "NK": ["cytotoxic"]}
    text = "".join(
        f"\n[Term]\nid: X:{name}\nname: {name}\n" + "".join(f"is_a: X:{above}\n" for above in parents)
        for name, parents in terms.items()
    )
    (tmp_path / "small.obo").write_text("format-version: 1.2\nontology: small\n" + text, encoding="utf-8")
    labels, _ = labels_by(tmp_path / "small.obo", list(terms))
    assert (labels.names, dict(labels.coarse)) == (("CD4", "CD8", "NK"), {"T": (0, 1), "cytotoxic": (1, 2)})
