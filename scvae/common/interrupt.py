"""Ctrl-C ends a training and keeps what it has; in several processes, all of them stop at the same step."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType
from typing import Any, Self, final

from .checks import warn
from .distributed import ranks


class Interrupted(KeyboardInterrupt):
    """Ctrl-C in one of several processes, on which all have agreed."""


@final
class Interrupt:
    """A block that Ctrl-C ends, after which the program goes on.

    One process can stop anywhere. Several can only stop at the same step: there Ctrl-C is remembered until they ask for
    it (`asked_at`) and raise `Interrupted` in all of them. A second Ctrl-C, a second later, is not held back.
    Outside the main thread, where Python handles no signals, Ctrl-C is never heard of.

    Attributes
    ----------
    stopped
        Whether the block was ended so.
    asked_at
        When Ctrl-C was held back.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.asked_at: float | None = None
        self._several = ranks().world > 1
        self._earlier: Any = None

    def __enter__(self) -> Self:
        if self._several and threading.current_thread() is threading.main_thread():
            self._earlier = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None) -> bool:
        if self._earlier is not None:
            signal.signal(signal.SIGINT, self._earlier)
        # of several, one that stopped by itself is an error: the others know nothing of it
        self.stopped = kind is not None and issubclass(kind, Interrupted if self._several else KeyboardInterrupt)
        return self.stopped

    def warn(self, message: str) -> None:
        """A warning that is given once, by the first of several processes."""
        if ranks().is_first:
            warn(message)

    def _ask(self, *_: object) -> None:
        now = time.monotonic()
        if self.asked_at is not None and now - self.asked_at > 1.0:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now
