"""How many threads a call computes with: decided when it begins, whatever ran before."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

from .quota import affinity, physical_cores, usable_cores

T = TypeVar("T")


class _Call:
    """What the calls that are under way have in common."""

    threads = 0
    at_once = 0


_call = _Call()
_forked = False
_at_import = affinity()
_from_environment = any(os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))


def wanted(found: int) -> int:
    """Number of threads for a call, given that of torch: the only place where it is decided.

    One in a process made by fork: it is a copy without the threads of its parent, for which OpenMP would wait forever.
    Not more than the cores that the process may use, if torch chose the number itself: it knows no quotas, and more
    threads than cores wait for each other. A number that the user chose holds; NUMBA_NUM_THREADS is an upper bound.
    """
    if is_forked():
        return 1
    cores, most = usable_cores(), os.environ.get("NUMBA_NUM_THREADS", "")
    bounded = found > cores and not _from_environment and found in _choices_of_torch()
    return min(cores if bounded else found, int(most) if most.isdigit() and int(most) else found)


def of_torch() -> int:
    """Number of threads in `torch.set_num_threads`, MKL_NUM_THREADS or OMP_NUM_THREADS, else torch's own choice.

    A new thread is asked: elsewhere, `torch.get_num_threads` gives the number of the OpenMP library for the present
    thread, which numba changes when it starts its own threads, because both packages use one library.
    """
    return in_new_thread(torch.get_num_threads)


@cache
def _choices_of_torch() -> set[int]:
    """The numbers that torch may choose: of the cores at its import, logical or, with MKL, physical."""
    machine = set(range(os.cpu_count() or 1))
    return {count(cores) for count in (len, physical_cores) for cores in (machine, _at_import)}


def of_call() -> int:
    """Number of threads of the call that this process is in; outside of calls, that of the next one."""
    return _call.threads or wanted(of_torch())


def at_once() -> int:
    """How many threads of the call are started: more than there are cores would only wait for each other."""
    return _call.at_once or min(of_call(), usable_cores())


def set_of_call(threads: int) -> None:
    """Sets the number of threads for the calls that begin now; 0 when the last one has ended."""
    _call.threads, _call.at_once = threads, min(threads, usable_cores())


def in_new_thread(function: Callable[[], T]) -> T:
    """The result of `function`, called in a thread that ends afterwards."""
    results: list[T] = []
    thread = threading.Thread(target=lambda: results.append(function()), name="scvae-threads")
    thread.start()
    thread.join()
    return results[0]


def is_forked() -> bool:
    """Whether `os.fork` made this process, as a copy of one that had imported the package."""
    return _forked


def in_child(function: Callable[[], None]) -> None:
    """Lets `function` run first in every process that `os.fork` makes of this one."""
    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=function)


def _remember() -> None:
    global _forked  # noqa: PLW0603
    _forked = True


in_child(_remember)
