"""A process that dies or hangs ends the run with its name, and a run started again goes on where it was."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.distributed.launch import by_hand, torchrun
from tests.distributed.scenarios import data, fit

SCRIPT = Path(__file__).with_name("failing.py")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def compiled():
    """Kernels are compiled before processes wait for each other."""
    fit(data())


def test_the_others_name_a_process_that_died(tmp_path):
    codes, outputs = by_hand(2, SCRIPT, tmp_path, "die")
    assert codes == [1, 7]
    assert "RankError: rank 1 of 2 processes does not answer" in outputs[0]
    assert "See the output of rank 1 for the cause and resume from a checkpoint" in outputs[0]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # of the last whole epoch


def test_torchrun_ends_where_a_process_died(tmp_path):
    run = torchrun(SCRIPT, tmp_path, "die")
    assert run.returncode == 1
    assert "exitcode  : 7" in run.stderr
    assert "rank      : 1" in run.stderr


def test_a_process_that_hangs_is_named_within_the_time_out(tmp_path):
    timeout = 32  # seconds
    run = torchrun(SCRIPT, tmp_path, "hang", timeout=timeout)
    assert run.returncode == 1
    assert "RankError: rank 1 of 2 processes does not answer" in run.stderr
    since_last_epoch = time.time() - (tmp_path / "run").stat().st_mtime
    assert since_last_epoch < timeout + 60  # in which torchrun ends the process, which would sleep for ten minutes


def test_a_run_that_torchrun_starts_again_ends_as_if_nothing_had_happened(tmp_path):
    run = torchrun(SCRIPT, tmp_path, "restart", options=["--max-restarts", "1"])
    assert run.returncode == 0, run.stdout + run.stderr
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found["attempt"] == 1
        assert found["planned"] == [2, 3, 4]  # two epochs were on file
        for name in ("weights", "embedding", "history", "held_out_elbo", "best_epoch", "reason"):
            assert found["resumed"][name] == found["whole"][name], name
