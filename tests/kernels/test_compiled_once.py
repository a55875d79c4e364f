"""A fit gives the same bits whether its kernels were compiled in this process or read from numba's cache."""

import os
import subprocess
import sys

import numba
import pytest
from numba.core.registry import CPUDispatcher

from scvae.kernels import compiling, count_terms, cpu, cpu_sparse, expected, layers, polynomials, steps

HELPERS = [
    pytest.param(value, id=f"{module.__name__}.{name}")
    for module in (count_terms, cpu, cpu_sparse, expected, layers, polynomials, steps)
    for name, value in vars(module).items()
    if isinstance(value, CPUDispatcher) and value.__module__ == module.__name__ and value.targetoptions.get("fastmath")
]
BITS = """
import hashlib
import scvae
from scvae.kernels import steps

adata = scvae.datasets.simulate(n_cells=300, n_genes=120, n_batches=2, truth=False, rng=0)
scvae.fit(adata, batch_key="batch", rng=0, verbose=False, training=scvae.TrainingConfig(epochs=2))
hits = steps.train_steps.stats.cache_hits.total()
print(hits, *(hashlib.md5(adata.obsm[key].tobytes()).hexdigest() for key in ("X_scvae", "X_scvae_var")))
"""


@pytest.mark.parametrize("helper", HELPERS)
def test_sums_in_any_order_are_part_of_the_kernels_that_need_them(helper):
    """Compiled on its own, such a function could add in another order than within a kernel."""
    options = helper.targetoptions
    assert options.get("forceinline") or options.get("inline") == "always" or options.get("nogil")


def successor(number):
    return number + 1


def test_the_cache_is_stale_once_any_file_of_kernels_has_changed(tmp_path, monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))
    hits = []
    for sources in (1, 1, 2):
        monkeypatch.setattr(compiling, "_sources", lambda sources=sources: sources)
        kernel = compiling.kernel(successor)
        assert kernel(1) == 2
        hits.append(kernel.stats.cache_hits.total())
    assert hits == [0, 1, 0]


@pytest.mark.slow
def test_the_first_process_computes_what_the_second_does(tmp_path):
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    lines = [
        subprocess.run(
            [sys.executable, "-c", BITS], env=environment, capture_output=True, text=True, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [line[0] for line in lines] == ["0", "1"]
    assert lines[0][1:] == lines[1][1:]
