"""What the commands do with files: whether they can be read and written, and copies with results in them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData


def check_input(path: Path) -> None:
    """Refuses a path that is no file."""
    if path.is_dir():
        zarr = ", e.g. anndata.read_zarr(...).write_h5ad(...)" if path.suffix == ".zarr" else ""
        raise IsADirectoryError(f"the input {path} is a folder; pass an h5ad file{zarr}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass an h5ad file")


def check_paths_differ(outputs: Mapping[str, Path | None]) -> None:
    """Refuses one path for two outputs."""
    seen: dict[Path, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{other} and {name} are both {path}; give each its own file")


def check_output(path: Path, source: Path, *, force: bool, may_replace_input: bool = True) -> None:
    """Refuses a path that could not be written later, before anything long begins."""
    if path.is_dir():
        raise IsADirectoryError(f"the output {path} is a folder; pass the name of a file")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; make it first, {path.name} goes there")
    if path.exists() and path.samefile(source):
        if not may_replace_input:
            raise ValueError(f"{path} is the input; pass another file")
        if not force:
            raise FileExistsError(f"the output {path} is the input; pass another file, or --force to replace it")
    if path.exists() and not force:
        raise FileExistsError(f"the output {path} exists; pass --force to replace it")
    check_writable(path.parent)


def check_picture(path: Path) -> None:
    """Refuses a name whose ending is no format that matplotlib writes."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise ValueError(f"{path} ends in no format of a picture; end it in .{', .'.join(formats)}")


def check_writable(folder: Path) -> None:
    """Refuses a folder in which no file can be made."""
    try:
        # permission bits do not tell of read-only file systems, so try it
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write in the folder {folder} ({error.strerror}); pass another") from error


@contextmanager
def opened(path: Path, layer: str | None) -> Iterator[AnnData]:
    """The cells of an h5ad file whose `layer` (None: `X`) can be read; `X` stays on disk and is read in pieces."""
    from anndata import read_h5ad

    from .data.containers import matrix_of

    try:
        adata = read_h5ad(path, backed="r")
        can_be_added_to = all(hasattr(adata.file[group], "keys") for group in ("obsm", "uns") if group in adata.file)
        if "X" not in adata.file:
            adata.file.close()
            adata = read_h5ad(path)
    except Exception as error:  # which one depends on where in the file anndata was stopped
        raise ValueError(f"cannot read {path} as an h5ad file: {error}") from error
    try:
        if not can_be_added_to:
            raise ValueError(f"{path} has the format of anndata before 0.7; write it again with a newer one")
        try:
            matrix_of(adata, layer)
        except TypeError as error:  # here the file is at fault; later it would be the program
            raise ValueError(f"{path}: {error}") from error
        yield adata
    finally:
        adata.file.close()


def write_copy(source: Path, target: Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the file `source` with `results` (group, then key) added as `target`: all else stays as it is stored.

    None takes a key away.
    """
    import h5py  # type: ignore[import-untyped]
    from anndata.io import write_elem

    from ._files import written_whole

    with written_whole(target) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            for group, values in results.items():
                if group not in file:
                    write_elem(file, group, {})
                for key, value in values.items():
                    if value is not None:
                        write_elem(file[group], key, value)
                    elif key in file[group]:
                        del file[group][key]
