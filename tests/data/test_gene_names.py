"""Genes are matched by name as it stands; where other names would match more, the message says which, and how."""

import re
import warnings
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from scvae.data.genes import find_genes
from scvae.data.schema import Schema
from scvae.data.sources import opened

SYMBOLS = ["CD3E", "MT-CO1", "HLA-A", "C1orf112", "RP11-34P13.7", "LYZ", "NKG7", "MS4A1"]
IDENTIFIERS = [f"ENSG{number:011d}.5" for number in range(8)]


def cells(names, **columns):
    return ad.AnnData(np.ones((2, len(names)), np.float32), var=pd.DataFrame(columns, index=names))


def schema(names):
    return Schema(tuple(names), "counts", None, None, (), (), None)


def said(adata, names):
    """The warning or error about genes that were not found."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            find_genes(adata, schema(names))
        except ValueError as error:
            return str(error)
    return str(seen[0].message)


def renamed(adata, message, names):
    """`adata` after the code at the end of the message."""
    code = re.search(r"of them: (.*)$", message)[1]
    exec(code, {"adata": adata, "model": SimpleNamespace(genes=pd.Index(names))})
    return adata


@pytest.mark.parametrize(
    ("theirs", "ours", "where"),
    [
        ([f"{name[:-1]}7" for name in IDENTIFIERS], IDENTIFIERS, "adata.var_names without versions has 8"),
        ([name[:-2] for name in IDENTIFIERS], IDENTIFIERS, "adata.var_names without versions has 8"),
        ([name.capitalize() for name in SYMBOLS], SYMBOLS, "adata.var_names in another case has 8"),
        ([name.replace("-", ".") for name in SYMBOLS], SYMBOLS, "adata.var_names with other separators has 8"),
        ([f"GRCh38_{name}" for name in SYMBOLS], SYMBOLS, "adata.var_names without the genome has 8"),
        (SYMBOLS, [f"hg19___{name}" for name in SYMBOLS], "adata.var_names without the genome has 8"),
    ],
)
def test_another_spelling_is_named_with_the_code_to_rename(theirs, ours, where):
    adata = cells(theirs)
    message = said(adata, ours)
    assert re.search(re.escape(where) + " of them: (import re; )?key = ", message)
    assert list(adata.var_names) == theirs
    np.testing.assert_array_equal(find_genes(renamed(adata, message, ours), schema(ours)), np.arange(8))


@pytest.mark.parametrize("dtype", ["object", "category"])
@pytest.mark.parametrize("version", [".5", ".9"])
def test_another_column_is_named_with_the_code_to_use_it(dtype, version):
    identifiers = pd.array([name.replace(".5", version) for name in IDENTIFIERS], dtype=dtype)
    adata = cells(SYMBOLS, mean=np.arange(8.0), gene_ids=identifiers, used=True)
    message = said(adata, IDENTIFIERS)
    assert "adata has none of the 8 modelled genes" in message
    assert re.search(r"; adata.var\['gene_ids'\] (without versions )?has 8 of them: ", message)
    np.testing.assert_array_equal(find_genes(renamed(adata, message, IDENTIFIERS), schema(IDENTIFIERS)), np.arange(8))


def test_the_warning_of_a_few_missing_genes_names_them_too():
    theirs = [*SYMBOLS[:6], "nkg7", "ms4a1"]
    message = said(cells(theirs), SYMBOLS)
    assert message.startswith("adata has 6 of the 8 modelled genes (75.0 %)")
    assert "But adata.var_names in another case has 8 of them: " in message


@pytest.mark.parametrize("names", [SYMBOLS[:6], [*SYMBOLS[:4], "RP11-34P13.8", *SYMBOLS[5:7]]])
def test_names_that_would_not_help_are_not_mentioned(names):
    assert "of them: " not in said(cells(names, other=names), SYMBOLS)  # .7 and .8 are two clones, not two versions


@pytest.mark.parametrize("n_shared", [0, 3])
def test_files_with_other_names_say_so(tmp_path, n_shared):
    one, two = tmp_path / "one.h5ad", tmp_path / "two.h5ad"
    cells(SYMBOLS).write_h5ad(one)
    cells([*SYMBOLS[:n_shared], *IDENTIFIERS[n_shared:]], symbol=[name.upper() for name in SYMBOLS]).write_h5ad(two)
    hint = r"; in .*two.h5ad, adata.var\['symbol'\] in another case has 8 of the genes of .*one.h5ad$"
    context = pytest.raises(ValueError, match=hint) if n_shared == 0 else pytest.warns(UserWarning, match=hint)
    with context, opened([one, two], None):
        pass
