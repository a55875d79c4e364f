"""Write pbmc_citeseq.h5ad, RNA and proteins of 800 blood cells, from the MuData in the scmidas wheel.

Usage: python data/make_pbmc_citeseq.py quickstart_pbmc_mosaic.h5mu [OUT.h5ad]

The source has the modalities rna and adt, of which the cells of two donors have both. With the same source and library
versions, the output is identical to the byte.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import anndata
import mudata
import numpy as np
import pandas as pd
from scipy import sparse

CELLS, GENES, PROTEINS = 800, 500, 224


def paired(source: mudata.MuData) -> anndata.AnnData:
    """The cells with both measurements: genes as uint16 CSR, proteins as uint16 array in `obsm`, their names in `uns`.

    Raises
    ------
    ValueError
        If the source is not the expected data set, or its counts do not fit into uint16.
    """
    rna, proteins = source["rna"], source["adt"]
    names = rna.obs_names[rna.obs_names.isin(proteins.obs_names)]
    rna, proteins = rna[names], proteins[names]
    if (len(names), rna.n_vars, proteins.n_vars) != (CELLS, GENES, PROTEINS):
        raise ValueError(
            f"the source has {len(names)} cells with both, {rna.n_vars} genes and {proteins.n_vars} proteins"
        )
    return anndata.AnnData(
        X=_narrow(sparse.csr_matrix(rna.X)),
        obs=pd.DataFrame(
            {
                "donor": pd.Categorical(rna.obs["batch"].str.extract("^p([0-9]+)_")[0].radd("donor ").to_numpy()),
                "cell_type": pd.Categorical(rna.obs["celltype"].to_numpy()),
            },
            index=names.to_numpy(dtype=object),
        ),
        var=pd.DataFrame(index=rna.var_names.to_numpy(dtype=object)),
        obsm={"protein": _narrow(sparse.csr_matrix(proteins.X)).toarray()},
        uns={"proteins": proteins.var_names.to_numpy(dtype=object)},  # a table would be a column of the file for each
    )


def _narrow(counts: sparse.csr_matrix) -> sparse.csr_matrix:
    counts.sum_duplicates()
    counts.eliminate_zeros()
    narrow = counts.astype(np.uint16)
    if (narrow != counts).nnz:
        raise ValueError("the source has values that are no integers in 0 .. 65,535; pass the file with the raw counts")
    return narrow


def main(source: str, out: str = str(Path(__file__).with_name("pbmc_citeseq.h5ad"))) -> None:
    """Read `source`, write `out`, print its size and checksum."""
    adata = paired(mudata.read_h5mu(source))
    anndata.io.write_h5ad(out, adata, dataset_kwargs={"compression": "gzip", "compression_opts": 9, "shuffle": True})
    content = Path(out).read_bytes()
    print(f"{out}: {len(content):,} bytes, sha256 {hashlib.sha256(content).hexdigest()}")


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
