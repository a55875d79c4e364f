"""`pbmc3k` and `pbmc_citeseq`: the bundled counts of blood cells."""

from __future__ import annotations

from pathlib import Path

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse


def pbmc3k() -> AnnData:
    """Loads 3k peripheral blood mononuclear cells from a healthy donor (10x Genomics, CC BY 4.0).

    The file is part of the package; nothing is downloaded.

    Returns
    -------
    AnnData
        2,700 cells x 32,738 genes. Slots: `X` raw counts (CSR, float32); `obs["cell_type"]` nine labels from a
        clustering, one of them "unlabelled" (62 cells); `var["gene_ids"]` Ensembl identifiers.

    Raises
    ------
    FileNotFoundError
        If the file is missing from the installed package.

    References
    ----------
    https://www.10xgenomics.com/datasets/3-k-pbm-cs-from-a-healthy-donor-1-standard-1-1-0

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.pbmc3k()
    >>> adata.shape
    (2700, 32738)
    """
    adata = anndata.read_h5ad(bundled("pbmc3k.h5ad"))
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata


def pbmc_citeseq() -> AnnData:
    """Loads RNA and surface proteins of 800 blood mononuclear cells of two donors (CITE-seq, Hao et al. 2021).

    The file is part of the package; nothing is downloaded. It is a small selection of cells and genes for examples and
    tests, made by the authors of scmidas, who publish it under the MIT licence.

    Returns
    -------
    AnnData
        800 cells x 500 genes. Slots: `X` raw counts of RNA (CSR, float32); `obsm["protein"]` raw counts of 224 proteins
        (DataFrame, float32); `obs["donor"]`, 400 cells of each; `obs["cell_type"]`, eight labels of the authors, who
        found them with both measurements.

    Raises
    ------
    FileNotFoundError
        If the file is missing from the installed package.

    References
    ----------
    Hao et al. 2021, "Integrated analysis of multimodal single-cell data", Cell 184,
    https://doi.org/10.1016/j.cell.2021.04.048

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.pbmc_citeseq()
    >>> adata.shape, adata.obsm["protein"].shape
    ((800, 500), (800, 224))
    """
    adata = anndata.read_h5ad(bundled("pbmc_citeseq.h5ad"))
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    proteins = adata.obsm["protein"].astype(np.float32)
    adata.obsm["protein"] = pd.DataFrame(proteins, index=adata.obs_names, columns=adata.uns.pop("proteins"))
    return adata


def bundled(name: str) -> Path:
    """Path of a bundled file: inside an installed wheel, or next to the package in the repository."""
    package = Path(__file__).parents[1]
    places = [package / "_bundled" / name, package.parent / "data" / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{name} is neither at {places[0]} nor at {places[1]}; reinstall scvae-torch")
