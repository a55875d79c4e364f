"""What happens where numba cannot be imported."""

import subprocess
import sys
from pathlib import Path

import scvae

CODE = """
import sys
sys.modules["numba"] = None  # an import of it fails
import logging
logging.basicConfig(format="%(name)s %(message)s")
import anndata, numpy as np, scvae
counts = np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32)
adata = anndata.AnnData(counts)
scvae.fit(adata, n_latent=2, rng=0, verbose=False, device="cpu", training=scvae.TrainingConfig(epochs=2))
print(adata.obsm["X_scvae"].shape, np.isfinite(adata.obsm["X_scvae"]).all())
"""


def test_a_fit_without_numba_works_and_says_once_that_it_is_slower():
    root = str(Path(scvae.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{CODE}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "(60, 2) True"
    assert done.stderr.count("numba is not usable here") == 1
    assert "falls back to plain torch" in done.stderr
