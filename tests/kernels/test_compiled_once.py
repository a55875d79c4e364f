"""A kernel gives the same bits whether it was compiled in this process or read from numba's cache."""

import os
import subprocess
import sys

import pytest
from numba.core.registry import CPUDispatcher

from scvae.kernels import cpu, cpu_sparse

HELPERS = [
    pytest.param(value, id=f"{module.__name__}.{name}")
    for module in (cpu, cpu_sparse)
    for name, value in vars(module).items()
    if isinstance(value, CPUDispatcher) and name.startswith("_")
]
BITS = """
import hashlib, sys
import numpy as np
from scvae.kernels import cpu

rng = np.random.default_rng(0)
counts = rng.poisson(1.0, (32, 200)).astype(np.float32)
indices = np.concatenate([np.flatnonzero(row) for row in counts]).astype(np.int32)
indptr = np.concatenate([[0], np.cumsum((counts > 0).sum(1))])
logits, bias = rng.normal(size=(32, 200)).astype(np.float32), np.zeros(200, np.float32)
log_p, slabs = np.empty(32), [np.zeros((4, *shape), np.float32) for shape in ((200,), (1, 200))]
theta, weight = np.full((1, 200), 1.3, np.float32), np.ones(32, np.float32)
cpu.nb_rows(logits, bias, indptr, indices, counts[counts > 0], counts.sum(1), theta, np.zeros(32, np.int64), weight, 8,
            True, log_p, *slabs)
print(cpu.nb_rows.stats.cache_hits.total(), *(hashlib.md5(x.tobytes()).hexdigest() for x in (logits, log_p, *slabs)))
"""


@pytest.mark.parametrize("helper", HELPERS)
def test_what_kernels_call_is_part_of_them(helper):
    assert helper.targetoptions.get("forceinline") or helper.targetoptions.get("inline") == "always"


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
