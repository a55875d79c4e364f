"""SEACells for metacells.py; run it with an interpreter that has SEACells (0.3.3).

Usage: python _seacells_peer.py CELLS.h5ad OUT.npz N [--seed 0]

As in its tutorial: 50 principal components of log-normalised counts, kernel, archetypes, 10 to 50 iterations. Writes
the metacell of each cell, of N.
"""

from __future__ import annotations

import argparse
import warnings

import anndata as ad
import numpy as np
import scanpy as sc
from SEACells.core import SEACells

warnings.filterwarnings("ignore")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells")
    parser.add_argument("out")
    parser.add_argument("number", type=int)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    cells = ad.read_h5ad(arguments.cells)
    sc.pp.normalize_total(cells)
    sc.pp.log1p(cells)
    sc.pp.pca(cells, n_comps=50)
    np.random.seed(arguments.seed)  # noqa: NPY002 - SEACells draws from it
    model = SEACells(cells, build_kernel_on="X_pca", n_SEACells=arguments.number, n_waypoint_eigs=10, verbose=False)
    model.construct_kernel_matrix()
    model.initialize_archetypes()
    model.fit(min_iter=10, max_iter=50)
    metacell = model.get_hard_assignments()["SEACell"].loc[cells.obs_names]
    np.savez_compressed(arguments.out, metacell=metacell.to_numpy(dtype=str))


if __name__ == "__main__":
    main()
