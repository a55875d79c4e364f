"""Atomic writing of files and folders, and safetensors files that hold tensors with a JSON record."""

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


def as_path(path: str | os.PathLike[str]) -> Path:
    """`path` as a Path; a ``~`` at its beginning is the home folder, as in a shell."""
    return Path(os.path.expanduser(path))  # noqa: PTH111 (the method of Path raises an error for ~name of no user)


def check_place(path: str | os.PathLike[str]) -> Path:
    """`path` with links followed, if a file can be written there.

    Raises
    ------
    FileNotFoundError
        If the folder of `path` does not exist.
    IsADirectoryError
        If `path` is a folder.
    FileExistsError
        If `path` is neither a file nor a folder, such as a pipe or a device.
    """
    path = as_path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; pass the name of a file in it.")
    check_folder(path)
    place = Path(os.path.realpath(path))  # a pipe such as /dev/stdout has no real path that exists
    if (path.exists() and not path.is_file()) or place.is_symlink():
        raise FileExistsError(
            f"{path} is no regular file (but a pipe, a device or a link to itself); pass another path."
        )
    check_folder(place)
    return place


def check_folder(path: Path) -> None:
    """Raises FileNotFoundError if the folder that `path` is to be in does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist, so {path.name} cannot be written there.")


@contextmanager
def written_whole(path: str | os.PathLike[str], *, may_replace: bool = True) -> Iterator[Path]:
    """A temporary path beside `path`; it is renamed to `path` if the block succeeds and removed otherwise.

    Links are followed. Without `may_replace`, a file that has appeared at `path` in the meantime is an error.
    """
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
        _refuse_replacing(path, may_replace)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: str | os.PathLike[str], *, may_replace: bool = True) -> Iterator[Path]:
    """A temporary folder beside `path`; it replaces `path` if the block succeeds and is removed otherwise.

    An earlier folder at `path` is removed only when the new one is complete. Links are followed.
    """
    path = Path(os.path.realpath(path))
    with tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent) as name:
        made, earlier = Path(name) / "new", Path(name) / "old"
        made.mkdir()
        yield made
        _refuse_replacing(path, may_replace)
        if path.exists():
            path.rename(earlier)
        made.rename(path)


def _refuse_replacing(path: Path, may_replace: bool) -> None:
    if path.exists() and not may_replace:
        raise FileExistsError(f"{path} was written by another program in the meantime and is left as it is.")


def write_tensors(path: str | os.PathLike[str], tensors: dict[str, Tensor], kind: str, record: dict[str, Any]) -> None:
    """Writes tensors and a record that JSON can hold; `kind` is stored as the format of the file."""
    metadata = {"format": kind, "format_version": str(FORMAT_VERSION), "record": json.dumps(record)}
    with written_whole(path) as temporary:
        save_file({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, temporary, metadata)


def read_tensors(path: str | os.PathLike[str], kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads a file that `write_tensors` wrote.

    Raises
    ------
    FileNotFoundError
        If the file does not exist.
    ValueError
        If the file is damaged, is of another kind, or was written in a newer format.
    """
    path = as_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            _check_metadata(path, metadata, kind)
            tensors: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, json.loads(metadata["record"])
    except (SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is truncated or not a safetensors file ({error}); write it again.") from error


def _check_metadata(path: Path, metadata: dict[str, str], kind: str) -> None:
    if metadata.get("format") != kind:
        raise ValueError(
            f"{path} is a safetensors file, but its format is {metadata.get('format')!r}; expected {kind!r}."
        )
    version = int(metadata["format_version"])
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} was written in format {version} of {kind}; this scvae reads up to {FORMAT_VERSION}: update scvae."
        )
