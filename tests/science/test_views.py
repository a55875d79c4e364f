"""Two measurements of one z, each of which sees half of it well: together they recover more of it than either alone."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
from sklearn.linear_model import LinearRegression

import scvae

SHORT = {"n_latent": 6, "rng": 0, "verbose": False, "training": scvae.TrainingConfig(epochs=60)}


def drawn(n=600, seed=0):
    """Counts of 80 genes that follow z_0 and z_1, and 120 peaks that follow z_2 and z_3."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((n, 4))
    logits = z[:, :2] @ rng.normal(0.0, 0.7, (2, 80)) + rng.normal(0.0, 1.0, 80)
    share = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    counts = rng.poisson(600.0 * share).astype(np.float32)
    peaks = rng.random((n, 120)) < 1.0 / (1.0 + np.exp(1.5 - z[:, 2:] @ rng.normal(0.0, 1.0, (2, 120))))
    adata = ad.AnnData(counts, obsm={"z": z})
    adata.obsm["peaks"] = pd.DataFrame(peaks.astype(np.float32), adata.obs_names, [f"peak_{i}" for i in range(120)])
    return adata


def recovered(embedding, z):
    """Share of the variance of each z that is linear in the embedding."""
    return np.array([LinearRegression().fit(embedding, column).score(embedding, column) for column in z.T])


def test_both_recover_what_each_sees():
    adata = drawn()
    view = scvae.View(obsm="peaks", likelihood="bernoulli")
    model = scvae.fit(adata, also={"atac": view}, **SHORT)
    together = recovered(adata.obsm["X_scvae"], adata.obsm["z"])
    found = {}
    for name in ("rna", "atac"):
        scvae.tl.embed(adata, model, views=name, key_added=name)
        found[name] = recovered(adata.obsm[f"X_{name}"], adata.obsm["z"])
    assert together.min() > 0.75
    assert found["rna"][:2].min() > 0.75
    assert found["rna"][2:].max() < 0.1
    assert found["atac"][2:].min() > 0.75
    assert found["atac"][:2].max() < 0.1
    shares = {share.name: share for share in scvae.tl.diagnose(adata, model, n_cells=100).views}
    # z_0 and z_1 are independent of z_2 and z_3, so each view adds what it tells alone
    for share in shares.values():
        assert share.added > 0.7 * share.rate.sum()
    both, rna, atac = (
        scvae.tl.log_likelihood(adata, model, views=v, n_samples=50).mean() for v in (None, "rna", "atac")
    )
    assert abs(both - rna - atac) < 1.0
