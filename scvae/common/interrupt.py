"""Ctrl-C ends a training and keeps its result; several processes stop together."""

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
    """A block that Ctrl-C ends; the program then continues after it.

    A single process can stop anywhere. Several must stop at the same step, so Ctrl-C is held back until the loop checks
    `asked_at` and raises `Interrupted` in all of them. A second Ctrl-C more than a second later acts immediately.
    Outside the main thread, where Python does not allow signal handlers, Ctrl-C is not held back.

    Attributes
    ----------
    stopped
        Whether Ctrl-C ended the block.
    asked_at
        When Ctrl-C was held back; None if it was not.
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
        # a KeyboardInterrupt in one of several processes is an error: the others have not stopped
        self.stopped = kind is not None and issubclass(kind, Interrupted if self._several else KeyboardInterrupt)
        return self.stopped

    def warn(self, message: str) -> None:
        """Warns once: of several processes, only rank 0 does."""
        if ranks().is_first:
            warn(message)

    def _ask(self, *_: object) -> None:
        now = time.monotonic()
        if self.asked_at is not None and now - self.asked_at > 1.0:
            raise KeyboardInterrupt
        self.asked_at = self.asked_at or now
