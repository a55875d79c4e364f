"""Files that appear whole or not at all, and tensors with a JSON record in one safetensors file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

FORMAT_VERSION = 1


def check_place(path: str | os.PathLike[str]) -> Path:
    """`path`, if a file can be written there.

    Raises
    ------
    FileNotFoundError
        If its folder does not exist.
    IsADirectoryError
        If it is a folder.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist, so {path.name} cannot be written there.")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the name of a file in it.")
    return path


@contextmanager
def written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to it when the block ends well and removed when it does not."""
    path = check_place(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)  # mkstemp makes the file private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes its place when the block ends well and vanishes when it does not.

    What was there before goes only when the new folder is whole.
    """
    path = Path(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as name:
        made, earlier = Path(name) / "new", Path(name) / "old"
        made.mkdir()
        yield made
        if path.exists():
            path.rename(earlier)
        made.rename(path)


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], kind: str, record: dict[str, Any]) -> None:
    """Writes tensors and a JSON-able record; `kind` says what the file is."""
    metadata = {"format": kind, "format_version": str(FORMAT_VERSION), "record": json.dumps(record)}
    with written_whole(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads what `write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is broken, is of another kind, or was written in a newer format.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata, kind)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata["record"])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or is no safetensors file ({error}); write it again.") from error


def _check_metadata(path: Path, metadata: dict[str, str], kind: str) -> None:
    if metadata.get("format") != kind:
        raise ValueError(f"{path} is a safetensors file, but no {kind} (its format is {metadata.get('format')!r}).")
    version = int(metadata["format_version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written in format {version} of {kind}; this scvae reads up to {FORMAT_VERSION}: update scvae."
        )
