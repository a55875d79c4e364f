"""Fixtures that several test modules share, how often shapes are checked, and how long a test may take."""

import dataclasses
import functools
import hashlib
import inspect
import os
import time
from collections import Counter

import jaxtyping
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

# of several pytest-xdist workers, each has its share of the cores, and so have the processes that it starts
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
if WORKERS > 1:
    torch.set_num_threads(max(1, torch.get_num_threads() // WORKERS))
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):  # a thread too many waits by turning
        os.environ.setdefault(name, str(torch.get_num_threads()))

# pyproject.toml names the modules whose shapes and types are checked. A check costs as much as a step of training on
# little data, so in each test it is made in the first calls of a function, and then in one call of so many.
FIRST, ONE_IN = 16, 32
_calls = Counter()  # of each function in this test
_jaxtyped = jaxtyping.jaxtyped


def _sparingly(function=None, *, typechecker):
    """`jaxtyping.jaxtyped`, but for calls that are not due."""
    if function is None:
        return functools.partial(_sparingly, typechecker=typechecker)
    if dataclasses.is_dataclass(function) and "__init__" in vars(function):
        function.__init__ = _sparingly(function.__init__, typechecker=typechecker)
        return function
    if not inspect.isfunction(function):
        return _jaxtyped(function, typechecker=typechecker)
    key = id(function.__code__)

    def due():
        _calls[key] = n = _calls[key] + 1
        return n <= FIRST or n % ONE_IN == 0

    if "<locals>" in function.__qualname__:  # made anew in every call around it, which is what costs
        return _jaxtyped(function, typechecker=typechecker) if due() else function
    checked = _jaxtyped(function, typechecker=typechecker)

    @functools.wraps(function)
    def call(*arguments, **options):
        return (checked if due() else function)(*arguments, **options)

    return call


jaxtyping.jaxtyped = _sparingly  # before the package is imported


def pytest_runtest_setup(item):
    _calls.clear()


LIMIT = 10.0  # seconds of a test that is not marked slow; compiling is not counted, for its result is kept
_spent = pytest.StashKey()


def _clocks():
    """Seconds by the clock on the wall, and those that processors worked for this process and those it waited for."""
    return time.perf_counter(), sum(os.times()[:4])


def pytest_addoption(parser):
    here = LIMIT * (2 if os.environ.get("CI") else 1)  # machines of CI are shared, and may be half as fast
    parser.addini("limit", "seconds that a test may take that is not marked slow", default=str(here))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    from numba.core import event  # not before the numbers of threads are set: numba reads them as it is imported

    compiling, before = [], _clocks()
    try:
        with event.install_timer("numba:compile", compiling.append):
            return (yield)
    finally:
        # the lesser of the two: other programs stretch the one, threads of its own the other
        took = min(after - then for after, then in zip(_clocks(), before, strict=True))
        item.stash[_spent] = took - sum(compiling)


def _overloaded():
    """Whether so much else runs that processors take longer for the same work: then no test is judged by its time."""
    return hasattr(os, "getloadavg") and os.getloadavg()[0] > 2 * os.cpu_count()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if call.when != "call" or not report.passed or {"slow", "gpu"} & set(item.keywords):  # a device has to start first
        return report
    limit = float(item.config.getini("limit"))
    if item.stash[_spent] > limit and not _overloaded():
        report.outcome = "failed"
        report.longrepr = f"took {item.stash[_spent]:.1f} s, over {limit:g}: make it smaller, or mark it slow"
    return report


def _bytes_of(value):
    if sparse.issparse(value):
        return b"".join(np.asarray(part).tobytes() for part in (value.indptr, value.indices, value.data))
    if isinstance(value, pd.DataFrame):
        names = repr([*value.columns, *value.index, *value.dtypes]).encode()
        return names + pd.util.hash_pandas_object(value).to_numpy().tobytes()
    return np.ascontiguousarray(value).tobytes()


@pytest.fixture
def digest():
    """A function: AnnData -> {slot: hash of its content}, to tell what a call has changed."""

    def hashes(adata):
        slots = {"X": adata.X, "obs": adata.obs, "var": adata.var}
        for name in ("layers", "obsm", "varm", "obsp"):
            slots |= {f"{name}[{key}]": value for key, value in getattr(adata, name).items()}
        content = {name: hashlib.blake2b(_bytes_of(value)).hexdigest() for name, value in slots.items()}
        return content | {"uns": repr(sorted(adata.uns)), "is_view": str(adata.is_view)}

    return hashes
