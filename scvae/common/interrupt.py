"""Handling of Ctrl-C in one of several processes, so that all of them stop together."""

from __future__ import annotations

import signal
import threading
import time
from types import TracebackType
from typing import Any, Self, final

from .checks import warn
from .distributed import ranks


class Interrupted(KeyboardInterrupt):
    """Raised in all processes after Ctrl-C in one of them."""


@final
class Interrupt:
    """Holds Ctrl-C back until all processes can stop at the same step. A second Ctrl-C, a second later, acts at once.

    Outside the main thread, where Python does not allow signal handlers, it has no effect.

    Attributes
    ----------
    is_held_back
        Whether to hold Ctrl-C back; a single process can stop anywhere and need not.
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
