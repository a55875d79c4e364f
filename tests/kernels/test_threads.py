"""The number of threads of a call: what the user chose, else not more than the cores that the process may use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scvae.kernels import quota, threads

ROOT = Path(__file__).parents[2]
TREES = {  # name: lines of /proc/self/cgroup, files below /sys/fs/cgroup, and cores of 64 that are left
    "version 2": ("0::/job", {"job/cpu.max": "200000 100000"}, 2),
    "a container that sees its group as the root": ("0::/", {"cpu.max": "200000 100000"}, 2),
    "the name outside of the container": ("0::/docker/12ab", {"cpu.max": "200000 100000"}, 2),
    "a parent allows less": ("0::/a/b/c", {"a/b/c/cpu.max": "400000 100000", "a/cpu.max": "300000 100000"}, 3),
    "a parent allows more": ("0::/a/b", {"a/b/cpu.max": "100000 100000", "a/cpu.max": "300000 100000"}, 1),
    "rounded up": ("0::/", {"cpu.max": "150000 100000"}, 2),
    "less than one": ("0::/", {"cpu.max": "20000 100000"}, 1),
    "another period": ("0::/", {"cpu.max": "100000 20000"}, 5),
    "more than there are": ("0::/", {"cpu.max": "9900000 100000"}, 64),
    "no quota": ("0::/a", {"a/cpu.max": "max 100000", "cpu.max": "max 100000"}, 64),
    "another group": ("0::/a", {"b/cpu.max": "100000 100000"}, 64),
    "version 1": (
        "9:memory:/job\n4:cpu,cpuacct:/job\n0::/",
        {
            "cpu,cpuacct/job/cpu.cfs_quota_us": "250000",
            "cpu,cpuacct/job/cpu.cfs_period_us": "100000",
            "cpu,cpuacct/cpu.cfs_quota_us": "-1",
            "cpu,cpuacct/cpu.cfs_period_us": "100000",
        },
        3,
    ),
    "version 1 in a container": (
        "1:cpu:/docker/12ab",
        {"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"},
        4,
    ),
    "files are missing": ("4:cpu:/a\n0::/a", {"cpu/a/cpu.cfs_quota_us": "100000"}, 64),
    "no control groups": (None, {}, 64),
}


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n", encoding="utf-8")


@pytest.mark.parametrize("name", TREES)
def test_quotas_bound_the_cores(name, tmp_path, monkeypatch):
    lines, files, cores = TREES[name]
    write(tmp_path / "mount", files)
    write(tmp_path, {} if lines is None else {"groups": lines})
    monkeypatch.setattr(quota, "affinity", lambda: set(range(64)))
    assert quota.usable_cores(tmp_path / "groups", tmp_path / "mount") == cores


def test_cores_that_the_process_may_not_use_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 7}, raising=False)
    assert quota.usable_cores(tmp_path / "none", tmp_path) == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 5)
    assert quota.usable_cores(tmp_path / "none", tmp_path) == 5


def test_logical_cores_of_one_physical_core_count_once(tmp_path):
    write(tmp_path, {f"cpu{i}/topology/thread_siblings_list": f"{i % 2},{i % 2 + 2}" for i in range(4)})
    assert quota.physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert quota.physical_cores({4, 5}, tmp_path) == 2


@pytest.mark.parametrize(
    ("found", "by_environment", "cores", "wanted"),
    [
        (64, False, 2, 2),  # torch's own choice: all logical cores
        (32, False, 2, 2),  # or all physical ones
        (32, False, 48, 32),
        (16, False, 2, 16),  # torch.set_num_threads
        (1, False, 2, 1),
        (64, True, 2, 64),  # OMP_NUM_THREADS
    ],
)
def test_only_what_torch_chose_itself_is_bounded(found, by_environment, cores, wanted, monkeypatch):
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(threads, "_choices_of_torch", lambda: {64, 32})
    monkeypatch.setattr(threads, "_from_environment", by_environment)
    assert threads.wanted(found) == wanted
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert threads.wanted(found) == min(wanted, 3)


MANY = str(2 * (os.cpu_count() or 1) + 1)  # no number that torch would choose
ON_ONE_CORE = """
import os, sys, torch
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
if len(sys.argv) > 1:
    torch.set_num_threads(int(sys.argv[1]))
from scvae.kernels import threads
from scvae.kernels.context import computing
before = torch.get_num_threads()
with computing():
    used = threads.of_call()
print(before, used, torch.get_num_threads())
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity") or os.cpu_count() < 2, reason="no choice of cores here")
@pytest.mark.parametrize(
    ("arguments", "variables"),
    [
        ([], {}),
        pytest.param([MANY], {}, marks=pytest.mark.slow),
        pytest.param([], {"OMP_NUM_THREADS": "2"}, marks=pytest.mark.slow),
        pytest.param([], {"MKL_NUM_THREADS": "2"}, marks=pytest.mark.slow),
    ],
)
def test_a_process_on_one_core_computes_with_one_thread_unless_told(arguments, variables):
    kept = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", ON_ONE_CORE, *arguments],
        env=kept | {"PYTHONPATH": str(ROOT)} | variables,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert not done.stderr
    before, used, after = done.stdout.split()
    assert used == (before if arguments or variables else "1")
    assert before == after == (arguments or [before])[0]
