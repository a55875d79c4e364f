"""Starts several processes as users do, with a hard limit on the time that they take."""

import os
import socket
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LIMIT = 300  # seconds: far beyond what is needed, for machines that do other things as well


def environment(timeout):
    paths = [str(HERE.parents[1]), *(path for path in sys.path if path)]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": "1",
        "NUMBA_NUM_THREADS": "1",
        "SCVAE_TIMEOUT": str(timeout),
    }


def torchrun(*arguments, timeout=180, options=()):
    """Two processes of this interpreter; `timeout` is after how many seconds a silent one is given up."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
        env=environment(timeout),
    )


def by_hand(n, *arguments, timeout=180):
    """`n` processes that nobody ends when one of them dies: the exit codes and outputs of all."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = []
    for rank in range(n):
        own = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        processes.append(
            subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(timeout) | {name: str(value) for name, value in own.items()},
            )
        )
    try:
        outputs = [process.communicate(timeout=LIMIT)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], outputs
