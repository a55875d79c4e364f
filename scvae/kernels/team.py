"""Several threads in one compiled kernel, which share out its work by themselves.

A kernel gets a counter and claims pieces of its work with `fetch_add`, until none is left. How many threads do so, and
when each of them comes or pauses, has no influence on the result: what a piece is follows from the shape of the input.
No thread waits for another one to come, so on a busy machine a thread that gets no processor costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np

from .threads import in_child, of_call

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
    n_helpers = of_call() - 1 if work >= HELPS_FROM else 0
    helpers = [_helpers().submit(kernel, zeros, *arguments) for _ in range(n_helpers)]
    try:
        kernel(zeros, *arguments)
    finally:
        for helper in helpers:
            helper.cancel()  # one that has not begun would find nothing left to do
        for helper in helpers:
            if not helper.cancelled():
                helper.result()


@cache
def _helpers() -> ThreadPoolExecutor:
    """The threads, which sleep between kernels; they are started when they are first needed."""
    return ThreadPoolExecutor(max_workers=256, thread_name_prefix="scvae-kernel")


in_child(_helpers.cache_clear)
