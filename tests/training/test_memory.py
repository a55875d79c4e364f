"""Peak memory of a fit on counts of all genes: no dense copy of them is ever made."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json
import numpy as np
import scvae
from anndata import AnnData
from pathlib import Path
from scipy import sparse

N_CELLS, N_GENES, SHARE, BLOCK = 16_000, 32_000, 0.05, 500


def mb(name):  # of this process, in MB; getrusage would count the process that started it too
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(name))


def draw(rng):  # entries by geometric gaps, block by block, so that the drawing itself takes little memory
    size = int(1.02 * N_CELLS * N_GENES * SHARE)
    values, columns = np.empty(size, np.float32), np.empty(size, np.int32)
    indptr = np.zeros(N_CELLS + 1, np.int64)
    end = 0
    for first in range(0, N_CELLS, BLOCK):
        places = np.cumsum(rng.geometric(SHARE, int(1.05 * BLOCK * N_GENES * SHARE))) - 1
        rows, genes = np.divmod(places[places < BLOCK * N_GENES], N_GENES)
        part = slice(end, end + len(rows))
        columns[part], values[part] = genes, 1 + rng.poisson(0.5, len(rows))
        indptr[first + 1 : first + BLOCK + 1] = end + np.cumsum(np.bincount(rows, minlength=BLOCK))
        end = part.stop
    return sparse.csr_matrix((values[:end], columns[:end], indptr), shape=(N_CELLS, N_GENES))


imports = mb("VmRSS")
adata = AnnData(draw(np.random.default_rng(0)))
drawn = mb("VmHWM") - imports
scvae.fit(adata, rng=0, verbose=False, training=scvae.TrainingConfig(epochs=1))
x = adata.X
size = (x.data.nbytes + x.indices.nbytes + x.indptr.nbytes) / 1e6
share = x.nnz / (N_CELLS * N_GENES)
print(json.dumps({"peak": mb("VmHWM") - imports, "drawn": drawn, "size": size, "share": share}))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux' /proc")
def test_a_fit_of_16000_cells_and_32000_genes_stays_within_one_and_a_half_times_the_counts_and_600_mb():
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600, check=False, env=environment
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert 0.045 < found["share"] < 0.055
    assert found["drawn"] < found["size"] + 150  # MB: the peak is that of the fit
    assert found["peak"] < 1.5 * found["size"] + 600
