"""Progress: one line that is updated in a notebook or terminal, and a few lines in a log file."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, TextIO

from .distributed import ranks

LINES = 4  # at most, per bar, in a log file
QUIET = 10.0  # seconds, at least, between lines in a log file before the last

_passing: ContextVar[bool] = ContextVar("_passing", default=False)


class Bar(Protocol):
    """The interface through which loops report their progress."""

    def set_postfix_str(self, s: str, refresh: bool) -> None:
        """Sets the text shown after the bar from the next update on."""

    def update(self) -> object:
        """Advances the bar by one."""

    def close(self) -> None:
        """Ends the bar."""


class Log:
    """A bar for a log file, in which a line cannot be overwritten: it writes few, complete lines.

    It writes one at each quarter of the total, if the last was at least `QUIET` seconds ago, and one at the end.

    Parameters
    ----------
    file
        The file to write to.
    total, initial
        Number of units in total, and number already done.
    unit
        Name of the unit.
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
    """A bar on stderr.

    Parameters
    ----------
    total, initial
        Number of units in total, and number already done.
    unit
        Name of the unit.
    leave
        Whether the line stays at the end; never within `passing`.
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
    """A block whose bars are parts of a longer task and leave no line."""
    token = _passing.set(True)
    try:
        yield
    finally:
        _passing.reset(token)


def _redraws(file: TextIO) -> bool:
    """Whether a line can be overwritten, as in a terminal or a notebook."""
    return "ipykernel.zmqshell" in sys.modules or file.isatty()


def _tqdm() -> Any:
    """tqdm for the terminal or notebook, without its warning if ipywidgets is missing: it then uses a line of text."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from tqdm.auto import tqdm
    return tqdm
