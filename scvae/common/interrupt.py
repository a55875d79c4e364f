"""Ctrl-C in one of several processes, at which all of them stop together."""

from __future__ import annotations

import signal
import threading
import time
from typing import Any


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in one of several processes, on which all have agreed."""


class Interrupt:
    """Remembers Ctrl-C until all processes can stop at the same step; a second one, a second later, is not held back.

    Outside the main thread, where Python lets nobody handle signals, it never hears of one.

    Parameters
    ----------
    is_held_back
        Whether it does so at all: one process can stop anywhere.
    """

    def __init__(self, *, is_held_back: bool = False) -> None:
        self.is_held_back = is_held_back and threading.current_thread() is threading.main_thread()
        self.asked_at: float | None = None
        self.earlier: Any = None

    def hold_back(self) -> None:
        """From here on."""
        if self.is_held_back:
            self.earlier = signal.signal(signal.SIGINT, self._ask)

    def release(self) -> None:
        """Ctrl-C does again what it did before."""
        if self.is_held_back:
            signal.signal(signal.SIGINT, self.earlier)

    def _ask(self, *_: object) -> None:
        now = time.monotonic()
        if self.asked_at is not None and now - self.asked_at > 1.0:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now
