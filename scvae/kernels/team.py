"""Several threads in one compiled kernel, which share out its work by themselves.

A kernel gets a counter and claims pieces of its work with `fetch_add`, until none is left. How many threads do so, and
when each of them comes or pauses, has no influence on the result: what a piece is follows from the shape of the input.
No thread waits for another one to come, so on a busy machine a thread that gets no processor costs nothing.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Any, TypeVar

import numpy as np
import torch

from .threads import at_once, in_child

Item = TypeVar("Item")
Result = TypeVar("Result")
HELPS_FROM = 2**17  # multiplications; waking a second thread takes as long as this many


def run(kernel: Callable[..., Any], *arguments: Any, work: float = float("inf"), counters: int = 1) -> None:
    """Runs `kernel(counters, *arguments)` in this thread and helpers, and returns when all are done.

    Parameters
    ----------
    kernel
        A kernel that releases the GIL.
    work
        Multiplications to do, roughly; few of them are left to this thread alone.
    counters
        Number of counters, all 0 at the start.
    """
    zeros = np.zeros(counters, np.int64)
    n_helpers = at_once() - 1 if work >= HELPS_FROM and not _is_busy() else 0
    helpers = [_helpers().submit(kernel, zeros, *arguments) for _ in range(n_helpers)]
    try:
        kernel(zeros, *arguments)
    finally:
        for helper in helpers:
            helper.cancel()  # one that has not begun would find nothing left to do
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


def in_order(function: Callable[[Item], Result], items: Iterable[Item], *, device: torch.device) -> Iterator[Result]:
    """`function` of each item, in the order of the items, without gradients; on the CPU, several at a time.

    torch has one thread in a call, so chunks of cells that do not depend on each other keep the other cores busy. The
    results are the same to the bit for any number of threads. Memory holds one item more than there are threads.
    """
    n_threads = at_once() if device.type == "cpu" and not _is_busy() else 1
    if n_threads == 1:
        with torch.no_grad():
            yield from map(function, items)
        return
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(_helpers().submit(_alone, function, item))
            if len(waiting) > n_threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for later in waiting:
            later.cancel()
        for later in waiting:
            if not later.cancelled():
                later.exception()


_here = threading.local()


def _is_busy() -> bool:
    """Whether this thread works on an item of `in_order`, whose kernels get no helpers."""
    return getattr(_here, "is_busy", False)


def _alone(function: Callable[[Item], Result], item: Item) -> Result:
    if torch.get_num_threads() != 1:  # OpenMP's number belongs to the thread
        torch.set_num_threads(1)
    _here.is_busy = True
    try:
        with torch.no_grad():
            return function(item)
    finally:
        _here.is_busy = False


@cache
def _helpers() -> ThreadPoolExecutor:
    """The threads, which sleep between kernels; they are started when they are first needed."""
    return ThreadPoolExecutor(max_workers=256, thread_name_prefix="scvae-kernel")


in_child(_helpers.cache_clear)
