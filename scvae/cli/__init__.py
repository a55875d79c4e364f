"""The command-line interface."""

from .commands import main

__all__ = ["main"]
