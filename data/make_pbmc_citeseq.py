"""Write pbmc_citeseq.h5ad, RNA and proteins of 800 blood cells, from the MuData in the scmidas wheel.

Usage: python data/make_pbmc_citeseq.py quickstart_pbmc_mosaic.h5mu [OUT.h5ad]

The source has the modalities rna and adt, of which the cells of two donors have both. With the same source and library
versions, the output is identical to the byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import mudata
import pandas as pd
from bundle import narrow, write

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
        X=narrow(rna.X),
        obs=pd.DataFrame(
            {
                "donor": pd.Categorical(rna.obs["batch"].str.extract("^p([0-9]+)_")[0].radd("donor ").to_numpy()),
                "cell_type": pd.Categorical(rna.obs["celltype"].to_numpy()),
            },
            index=names.to_numpy(dtype=object),
        ),
        var=pd.DataFrame(index=rna.var_names.to_numpy(dtype=object)),
        obsm={"protein": narrow(proteins.X).toarray()},
        uns={"proteins": proteins.var_names.to_numpy(dtype=object)},  # a table would be a column of the file for each
    )


def main(source: str, out: str = str(Path(__file__).with_name("pbmc_citeseq.h5ad"))) -> None:
    """Read `source`, write `out`, print its size and checksum."""
    write(paired(mudata.read_h5mu(source)), out)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
