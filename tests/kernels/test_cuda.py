"""The Triton kernels without a device, in triton's interpreter and its compiler, and on one where there is one.

They run in a process of their own: triton reads TRITON_INTERPRET when it is imported.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CASES = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "limit=inf", str(HERE / "triton_cases.py"))

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="there is no triton for this platform")

COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from scvae.kernels import cuda

TYPES = {
    "first": "*i64", "last": "*i64", "indices": "*i16", "counts": "*u8", "values": "*i16", "library": "*fp32",
    "theta": "*fp32", "group": "*i64", "weight": "*fp32", "log_probability": "*fp64", "slabs": "*fp32",
    "scratch": "*fp32", "logits": "*fp32", "scale": "*fp32", "out": "*fp32",
}

def build(kernel, **constants):
    types = {n: "constexpr" if n in constants else TYPES.get(n, "i32") for n in kernel.arg_names}
    source = ASTSource(kernel, types, constants)
    compiled = compile(source, target=GPUTarget("cuda", 80, 32), options={"num_warps": 8, **cuda.OPTIONS})
    assert compiled.asm["cubin"], kernel
    print(kernel.__name__)

for head in ({"DISPERSED": True, "INFLATED": False}, {"DISPERSED": True, "INFLATED": True},
             {"DISPERSED": False, "INFLATED": False}):
    build(cuda._count_rows, GRADIENT=True, COLUMNS=2048, STORED=256, **head)
build(cuda._count_rows, GRADIENT=False, COLUMNS=64, STORED=256, DISPERSED=True, INFLATED=False)
for transformed in (False, True):
    build(cuda._scatter_rows, LOG1P=transformed, STORED=256)
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    settings = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, *arguments],
        env=settings | {"PYTHONPATH": path} | environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_kernels_agree_with_their_definitions_in_the_interpreter():
    done = run(*CASES, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.slow
def test_the_kernels_compile_for_a_card_without_one_at_hand(tmp_path):
    """The interpreter accepts more than the compiler: types that change within a loop, for one."""
    done = run("-W", "error", "-c", COMPILE, TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["_count_rows"] * 4 + ["_scatter_rows"] * 2


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_kernels_agree_with_their_definitions_on_a_device():
    done = run(*CASES)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
