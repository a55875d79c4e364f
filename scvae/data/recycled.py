"""Large arrays whose memory is used again: fresh memory costs about as much time as decoding into it."""

from __future__ import annotations

import threading
import weakref
from typing import Any, final

import numpy as np
from numpy.typing import DTypeLike, NDArray

SLACK = 1.05  # windows of as many cells differ a little in their number of values
MOST_SPARE = 2  # indices and values of a window: while one is in use, another is read


@final
class Recycled:
    """Hands out arrays, and the memory of one again when neither it nor a view of it is held by anyone."""

    def __init__(self) -> None:
        self._spare: list[NDArray[np.uint8]] = []
        self._lock = threading.Lock()

    def empty(self, n: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of `n` elements that may hold anything."""
        n_bytes = n * np.dtype(dtype).itemsize
        with self._lock:
            fitting = [i for i, memory in enumerate(self._spare) if len(memory) >= n_bytes]
            memory = self._spare.pop(fitting[0]) if fitting else np.empty(int(SLACK * n_bytes) + 1, np.uint8)
        # the base of a view is the last array on the way to the memory, here always this one: it outlives its views
        array = np.frombuffer(memory.data, dtype, count=n)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: NDArray[np.uint8]) -> None:
        """Keeps the largest; may be called wherever the last reference goes, within `empty` too."""
        self._spare.append(memory)
        if len(self._spare) > MOST_SPARE:
            self._spare.sort(key=len)
            del self._spare[0]
