"""Runs one measurement in its own process; used by every part."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

BENCHMARKS = Path(__file__).parents[1]
Side = Literal["ours", "peer", "products"]
Row = dict[str, Any]
Measurement = Callable[[], Row]
Environment = Mapping[str, str | None]  # None removes a variable

WAITING = ("OMP_WAIT_POLICY", "OMP_DYNAMIC", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "OPENBLAS_NUM_THREADS")
UNSET: Environment = dict.fromkeys((*THREADS, *WAITING))  # as a user starts a process
AVX2: Environment = {  # no code for AVX-512, of any library; LLVM takes the features of this machine unless told
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
    "NUMBA_CPU_FEATURES": "+avx2,+fma",
    "OPENBLAS_CORETYPE": "Haswell",
}


@dataclass(frozen=True)
class Bench:
    """Settings shared by all measurements of a run.

    Parameters
    ----------
    peer_python
        Interpreter with scvi-tools.
    device
        ``"cpu"`` or ``"cuda"``.
    threads
        CPU threads of each measurement.
    repeats
        How often each measurement is repeated; None is the default of the part.
    quick
        Whether everything is reduced to a trial run.
    data
        Files of raw counts; none for the bundled one.
    folder
        Folder for files that measurements share.
    data_folder
        Folder of the data sets with batches, if any.
    avx2
        Whether all processes do without AVX-512.
    """

    peer_python: str
    device: str
    threads: int
    repeats: int | None
    quick: bool
    data: tuple[Path, ...]
    folder: Path
    data_folder: Path | None = None
    avx2: bool = False

    def times(self, default: int) -> int:
        """The number of repeats, if the default of the part is `default`."""
        return self.repeats or (1 if self.quick else default)

    def call(self, side: Side, task: str, settings: Row | None = None, environment: Environment | None = None) -> Row:
        """The result of a task of the module `side` (ours, peer or products), run in a new process.

        Parameters
        ----------
        settings
            Arguments of the task.
        environment
            Variables to set for that process, or to remove.

        Raises
        ------
        SystemExit
            If the process fails, with the end of its output.
        """
        python = self.peer_python if side == "peer" else sys.executable
        path = [BENCHMARKS] if side == "peer" else [BENCHMARKS, BENCHMARKS.parent]  # this checkout's package
        threads = str(self.threads)
        variables: dict[str, str | None] = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, path)),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "NUMBA_NUM_THREADS": threads,
            **({**AVX2, "NUMBA_CACHE_DIR": str(self.folder / "avx2")} if self.avx2 else {}),
            **(environment or {}),
        }
        kept = {name: value for name, value in variables.items() if value is not None}
        given = json.dumps(settings or {}, default=str)
        command = [python, "-m", f"_speed.{side}", task, given]
        done = subprocess.run(command, env=kept, capture_output=True, text=True, check=False)
        if done.returncode:
            hint = " Does it have scvi-tools? --peer-python names one that has." if side == "peer" else ""
            sys.exit(f"{python} failed at {side}.{task}({given}).{hint} Its last words:\n{done.stderr[-2000:]}")
        answer: Row = json.loads(done.stdout.splitlines()[-1])
        return answer

    def later(self, side: Side, task: str, settings: Row, environment: Environment | None = None) -> Measurement:
        """A function that makes this call later."""
        return partial(self.call, side, task, settings, environment)

    def machine(self) -> Row:
        """The machine, and the versions of both packages."""
        return {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": self.threads,
            "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
            "scvae": self.call("ours", "versions", {"device": self.device}),
            "scvi": self.call("peer", "versions", {"device": self.device}),
        }


def alternate(repeats: int, measurements: Mapping[str, Measurement]) -> dict[str, list[Row]]:
    """Makes each measurement in turn, `repeats` times, so that a slow phase of the machine affects all of them."""
    results: dict[str, list[Row]] = {name: [] for name in measurements}
    for _ in range(repeats):
        for name, measure in measurements.items():
            results[name].append(measure())
    return results


def _processor() -> str:
    """Model of the CPU, from /proc on Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
