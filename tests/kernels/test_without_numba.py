"""What happens where numba cannot be imported, or has nowhere to keep what it compiles."""

import subprocess
import sys
from pathlib import Path

import pytest

import scvae

MISSING = 'sys.modules["numba"] = None  # an import of it fails'
NO_FOLDER = """
import numba
def njit(**options):
    raise RuntimeError("cannot cache function '_exp': no locator available for file 'cpu.py'")
numba.njit = njit
"""

CODE = """
import sys
{obstacle}
import logging
logging.basicConfig(format="%(name)s %(message)s")
import anndata, numpy as np, scvae
counts = np.random.default_rng(0).poisson(2.0, (60, 12)).astype(np.float32)
adata = anndata.AnnData(counts)
scvae.fit(adata, n_latent=2, rng=0, verbose=False, device="cpu", training=scvae.TrainingConfig(epochs=2))
print(adata.obsm["X_scvae"].shape, np.isfinite(adata.obsm["X_scvae"]).all())
"""


@pytest.mark.parametrize("obstacle", [MISSING, NO_FOLDER], ids=["missing", "no folder"])
@pytest.mark.slow
def test_a_fit_without_numba_works_and_says_once_that_it_is_slower(obstacle):
    root = str(Path(scvae.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r})\n{CODE.replace('{obstacle}', obstacle)}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.split("\n")[0] == "(60, 2) True"
    assert done.stderr.count("numba is not usable here") == 1
    assert "falls back to plain torch" in done.stderr
    assert "set NUMBA_CACHE_DIR" in done.stderr
