"""The picture of the front page: bundled cells at the β recommended, and the curve that it lies on.

Usage: python docs/front_page.py [OUT.png]
"""

from __future__ import annotations

import sys
from pathlib import Path

import scanpy as sc
from matplotlib import pyplot as plt

import scvae

TARGET = Path(__file__).parent / "_static" / "front_page.png"


def main(target: Path) -> None:
    """Fits, draws and saves."""
    adata = scvae.datasets.pbmc3k()
    adata = adata[adata.obs["cell_type"] != "unlabelled"].copy()
    normalised = sc.pp.log1p(sc.pp.normalize_total(adata, target_sum=1e4, copy=True), copy=True)
    sc.pp.highly_variable_genes(normalised, n_top_genes=2000)
    adata.var["highly_variable"] = normalised.var["highly_variable"]
    scvae.tune_beta(adata, labels_key="cell_type", rng=0, verbose=False)
    sc.pp.neighbors(adata, use_rep="X_scvae")
    sc.tl.umap(adata)

    figure, (cells, curve, scores) = plt.subplots(1, 3, figsize=(15, 4.4), layout="constrained")
    sc.pl.umap(
        adata, color="cell_type", ax=cells, show=False, frameon=False, palette="Set2",
        title="PBMC 3k at the β recommended",
    )  # fmt: skip
    cells.set_title(cells.get_title(), loc="left", fontsize="medium")
    cells.set_title("")
    scvae.pl.rate_distortion(adata, ax=(curve, scores), show=False)
    figure.savefig(target, dpi=110)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else TARGET)
