"""Progress: one line in a notebook and in a terminal, and a line now and then in a log file."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

from .distributed import ranks

LINES = 4  # at most, of one bar, in a log file
QUIET = 10.0  # seconds before a log file hears of a run that is not done

_passing: ContextVar[bool] = ContextVar("_passing", default=False)


class Bar(Protocol):
    """What the training loop tells of its progress to."""

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        """Says something besides, shown with the next update."""

    def update(self) -> object:
        """One more is done."""

    def close(self) -> None:
        """No more will be done."""


class Log:
    """A bar for a file, where nothing can be taken back: whole lines, few of them.

    A line at each quarter of the whole, if the last one was `QUIET` seconds ago, and one at the end.

    Parameters
    ----------
    file
        Where to write.
    total, initial
        How many there are to do, and how many are done.
    unit
        What is counted.
    leave
        Whether to write a line at the end.
    """

    def __init__(self, file: TextIO, *, total: int, initial: int, unit: str, leave: bool) -> None:
        self.file, self.total, self.done, self.unit, self.leave = file, total, initial, unit, leave
        self.said = ""
        self.started = self.spoke = time.monotonic()

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        self.said = s

    def update(self) -> None:
        before, self.done = self.done, self.done + 1
        passed = LINES * self.done // self.total > LINES * before // self.total
        if passed and self.done < self.total and time.monotonic() - self.spoke >= QUIET:
            self._write()

    def close(self) -> None:
        if self.leave:
            self._write()

    def _write(self) -> None:
        self.spoke = time.monotonic()
        said = f"; {self.said}" if self.said else ""
        seconds = f"{self.spoke - self.started:.1f} s"
        self.file.write(f"scvae: {self.done}/{self.total} {self.unit} in {seconds}{said}\n")
        self.file.flush()


def progress_bar(total: int, *, unit: str, initial: int = 0, leave: bool = True, verbose: bool) -> Bar:
    """A bar on stderr; it says nothing if not `verbose`, and nothing stays of it if not `leave`.

    Parameters
    ----------
    total, initial
        How many there are to do, and how many are done.
    unit
        What is counted.
    leave
        Whether the line stays when all is done; never within `passing`.
    verbose
        Whether to show anything.
    """
    leave = leave and not _passing.get()
    verbose = verbose and sys.stderr is not None and ranks().is_first
    if verbose and not _redraws(sys.stderr):
        return Log(sys.stderr, total=total, initial=initial, unit=unit, leave=leave)
    bar: Bar = _tqdm()(total=total, initial=initial, desc="scvae", unit=unit, leave=leave, disable=not verbose)
    return bar


@contextmanager
def passing() -> Iterator[None]:
    """Bars made within are parts of a longer work, and leave no line."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)


def _redraws(file: TextIO) -> bool:
    """Whether a line can be written over: in a terminal, and in a notebook."""
    return "ipykernel.zmqshell" in sys.modules or file.isatty()


def _tqdm() -> Any:
    """The bar for where we are, with no warning where ipywidgets are missing: it is then drawn in text, on one line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm
