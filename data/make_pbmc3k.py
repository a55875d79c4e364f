"""Write pbmc3k.h5ad, the data that scvae ships, from a larger h5ad of the same 10x Genomics cells.

Usage: python data/make_pbmc3k.py SOURCE.h5ad [OUT.h5ad]

The source holds integer counts in X (cells x genes), `obs["cell_type"]` and `var["gene_ids"]`. The output holds the
same values in a smaller integer type and nothing else. With the same source and library versions, the output is
identical to the byte.
"""

from __future__ import annotations

import sys
from pathlib import Path

import anndata
import pandas as pd
from bundle import narrow, write

SHAPE = (2_700, 32_738)


def slim(source: anndata.AnnData) -> anndata.AnnData:
    """The counts as uint16 CSR, the labels and the gene ids, without anything else.

    Raises
    ------
    ValueError
        If the source is not the expected data set, or its counts do not fit into uint16.
    """
    if source.shape != SHAPE:
        raise ValueError(f"the source is {source.n_obs} x {source.n_vars}; PBMC 3k is {SHAPE[0]} x {SHAPE[1]}")
    return anndata.AnnData(
        X=narrow(source.X),
        obs=pd.DataFrame({"cell_type": source.obs["cell_type"].astype("category")}, index=_plain(source.obs_names)),
        var=pd.DataFrame({"gene_ids": source.var["gene_ids"].to_numpy()}, index=_plain(source.var_names)),
    )


def _plain(names: pd.Index) -> pd.Index:
    """The names as an unnamed index, so that the name of the source's index is not kept."""
    return pd.Index(names.to_numpy(dtype=object))


def main(source: str, out: str = str(Path(__file__).with_name("pbmc3k.h5ad"))) -> None:
    """Read `source`, write `out`, print its size and checksum."""
    write(slim(anndata.read_h5ad(source)), out)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(*sys.argv[1:])
