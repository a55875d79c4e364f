"""Cells with stored UMAPs at three β, at places known in advance: nothing is fitted."""

import anndata as ad
import numpy as np
import pandas as pd

BETAS = [0.1, 1.0, 10.0]
CORNERS = [(-10.0, -5.0), (10.0, 5.0)]  # these cells stay, and set the scale
WALK = [(-8.0, 0.0), (0.0, 4.0), (8.0, 0.0)]  # these move from β to β
HOSTILE = "</script><script>window.harmed=1</script><img src=x onerror='window.harmed=2'>"


def explorable(n=40, *, key="scvae", table=False):
    """Half of the cells walk, the others sit in two corners."""
    walks = np.arange(n) % 2 == 0
    umaps = np.empty((n, len(BETAS), 2), dtype=np.float32)
    umaps[walks] = WALK
    umaps[~walks] = np.array(CORNERS)[np.arange((~walks).sum()) % 2][:, None]
    obs = pd.DataFrame(index=[f"cell{i}" for i in range(n)])
    obs["group"] = pd.Categorical(np.where(walks, "walks", "stays"), categories=["walks", "stays"])
    obs["depth"] = np.linspace(0, 1000, n)
    record = {
        "beta": np.array(BETAS),
        "rate": np.array([20.0, 8.0, 1.0]),
        "distortion": np.array([600.0, 605.0, 620.0]),
        "judged_on": "10 cells held out of the fit",
        "n_cells": n,
        "n_neighbors": 15,
        "seed": 0,
    }
    uns = {key: {"beta_embeddings": record}, "group_colors": ["#ff0000", "#0000ff"]}
    if table:
        uns[key]["beta_path"] = pd.DataFrame({"beta": BETAS, "recommended": [False, True, False]})
    counts = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    adata = ad.AnnData(counts, obs=obs, uns=uns, obsm={f"X_{key}_umap_betas": umaps.reshape(n, -1)})
    adata.var_names = ["CD3E", "NKG7"]
    return adata
