"""The suite holds its own tests to a limit: one that takes longer is marked slow or fails."""

import os
import shutil
from pathlib import Path

import jaxtyping

pytest_plugins = ["pytester"]

CASES = """
import time
import pytest

def works(seconds):
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass

def test_short():
    works(0.01)

def test_waiting_for_others():
    time.sleep(0.5)

def test_long():
    works(0.5)

@pytest.mark.slow
def test_long_by_nature():
    works(0.5)

def test_compiling():
    from numba.core import event

    with event.trigger_event("numba:compile"):
        works(0.5)

def test_long_and_wrong():
    works(0.5)
    raise ValueError("wrong")
"""


def outcomes(pytester, monkeypatch, load):
    """What comes of the cases on a machine with so much to do."""
    monkeypatch.setattr(os, "getloadavg", lambda: (load * os.cpu_count(), 0.0, 0.0), raising=False)
    monkeypatch.setattr(jaxtyping, "jaxtyped", jaxtyping.jaxtyped)  # which the copy replaces as well
    monkeypatch.delenv("PYTEST_XDIST_WORKER_COUNT", raising=False)
    shutil.copy(Path(__file__).with_name("conftest.py"), pytester.path)
    pytester.makepyfile(test_cases=CASES)
    return pytester.runpytest_inprocess("-o", "limit=0.3", "-o", "markers=slow", "-p", "no:cacheprovider")


def test_a_test_that_works_for_longer_than_the_limit_fails_unless_it_is_marked_slow(pytester, monkeypatch):
    done = outcomes(pytester, monkeypatch, load=1.0)
    done.assert_outcomes(passed=4, failed=2)
    done.stdout.fnmatch_lines(["took * s, over 0.3: make it smaller, or mark it slow"])
    done.stdout.fnmatch_lines(["FAILED test_cases.py::test_long*", "FAILED test_cases.py::test_long_and_wrong*"])


def test_where_much_else_runs_no_test_is_judged_by_its_time(pytester, monkeypatch):
    outcomes(pytester, monkeypatch, load=3.0).assert_outcomes(passed=5, failed=1)


def test_the_limit_is_ten_seconds_and_twenty_on_machines_of_ci(pytestconfig):
    assert float(pytestconfig.getini("limit")) == (20 if os.environ.get("CI") else 10)
