"""Files of the commands: checks that they can be read and written, and copies with results."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

H5AD, STORE = ".h5ad", ".zarr"  # endings of an output, and what they stand for


def check_input(path: Path, *, may_be_folder: bool = False) -> None:
    """Refuses a path that is neither a file nor, if allowed, a folder."""
    from ..data.file_kinds import refuse_address

    refuse_address(path)
    if path.is_dir() and may_be_folder:
        return
    if path.is_dir():
        zarr = ", e.g. anndata.read_zarr(...).write_h5ad(...)" if path.suffix == ".zarr" else ""
        raise IsADirectoryError(f"the input {path} is a folder; pass an h5ad file{zarr}")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; pass an h5ad file")


def check_paths_differ(outputs: Mapping[str, Path | None]) -> None:
    """Refuses the same path for two outputs."""
    seen: dict[Path, str] = {}
    for name, path in outputs.items():
        if path is None:
            continue
        other = seen.setdefault(path.resolve(), name)
        if other != name:
            raise ValueError(f"{other} and {name} are both {path}; pass different files")


def check_output(path: Path, source: Path, *, force: bool, may_replace_input: bool = True) -> None:
    """Refuses a path that cannot be written, before any long computation starts."""
    from ..common.files import check_folder, check_place
    from ..data.destinations import is_store

    if is_store(path) and path.suffix == STORE:
        check_folder(path)
    else:
        check_place(path)
    if path.exists() and path.samefile(source):
        if not may_replace_input:
            raise ValueError(f"{path} is the input; pass another file")
        if not force:
            raise FileExistsError(f"the output {path} is the input; pass another file, or --force to replace it")
    if path.exists() and not force:
        raise FileExistsError(f"the output {path} exists; pass --force to replace it")
    check_writable(path.parent)


def check_cells_output(path: Path, source: Path, *, force: bool, may_replace_input: bool = True) -> None:
    """The same of a file of cells, which must also not be open elsewhere."""
    from ..data.turns import check_can_be_changed

    if path.suffix not in (H5AD, STORE):
        raise ValueError(f"the output {path} would be a file of cells; end its name in {H5AD} or {STORE}")
    check_output(path, source, force=force, may_replace_input=may_replace_input)
    if path.exists():
        check_can_be_changed(path)


def check_picture(path: Path) -> None:
    """Refuses a name whose extension is not an image format of matplotlib."""
    from matplotlib.backend_bases import FigureCanvasBase

    formats = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in formats:
        raise ValueError(f"{path} is not an image file; end its name in .{', .'.join(formats)}")


def check_writable(folder: Path) -> None:
    """Refuses a folder in which no file can be created."""
    try:
        # permission bits do not show read-only file systems, so try to write
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise PermissionError(f"cannot write in the folder {folder} ({error.strerror}); pass another") from error


@contextmanager
def opened(path: Path, layer: str | None) -> Iterator[AnnData]:
    """Opens an h5ad file whose `layer` (None: `X`) can be read; `X` stays on disk and is read in chunks."""
    import h5py
    from anndata import read_h5ad

    from ..data.containers import matrix_of
    from ..data.file_kinds import refuse_other_kinds, why_unreadable
    from ..data.turns import let_others_add, turn

    try:
        with turn(path, to_write=False):
            with h5py.File(path, "r") as file:
                refuse_other_kinds(file, path)
            adata = read_h5ad(path, backed="r")
        if "X" not in adata.file:
            adata.file.close()
            adata = read_h5ad(path)
    except BlockingIOError:
        raise
    except Exception as error:  # the type depends on where in the file anndata failed
        raise ValueError(f"cannot read {path} as an h5ad file: {why_unreadable(path, error)}") from error
    try:
        if adata.isbacked:
            let_others_add(adata.file["obs"].file)
        try:
            matrix_of(adata, layer)
        except TypeError as error:  # at this point the cause is the file, not a bug
            raise ValueError(f"{path}: {error}") from error
        yield adata
    finally:
        adata.file.close()


class Results:
    """The cells that a command works on, and the destination of its results.

    Attributes
    ----------
    cells
        An AnnData; a source, whose AnnData receives the results; or the paths of files to write into.
    place
        Destination of the results, as text for the summary.
    n_cells
        Number of cells, set once the results are available.
    """

    def __init__(self, cells: Any, adata: AnnData | None, place: str) -> None:
        self.cells, self.place = cells, place
        self._adata = adata
        self.n_cells = 0
        self.found: dict[str, dict[str, Any]] = {}

    def take(self, results: Callable[[AnnData], dict[str, dict[str, Any]]]) -> None:
        """Stores the results, unless they are already in the files."""
        if self._adata is not None:
            self.found, self.n_cells = results(self._adata), self._adata.n_obs


@contextmanager
def results_of(
    inputs: list[Path],
    output: Path | None,
    layer: str | None,
    slots: Sequence[str],
    *,
    force: bool,
    is_writer: bool = True,
) -> Iterator[Results]:
    """Opens the input of a command, and writes its results if the block ends without an error.

    For one h5ad file, results go to a copy of it; for other inputs, to a file of the cells without values. Without an
    output, the command itself writes them into the inputs. Only one of several processes is the writer. Of several
    files, these slots of `obsm` are read, too.
    """
    from ..data import sources

    if output is None:
        files = sources.listed(inputs)
        with sources.opened(inputs, layer) as source:
            n_cells = source.adata.n_obs
        place = str(files[0]) if len(files) == 1 else f"{len(files):,} files"
        results = Results(inputs, None, place)
        results.n_cells = n_cells
        yield results
        return
    if len(inputs) == 1 and inputs[0].is_file():
        with opened(inputs[0], layer) as adata:
            results = Results(adata, adata, str(output))
            yield results
        if is_writer:
            write_copy(inputs[0], output, results.found, force=force)
        return
    with sources.opened(inputs, layer, slots=slots) as source:
        results = Results(source, source.adata, str(output))
        yield results
        if is_writer:
            _write(sources.small(source), output, force=force)


def write_copy(source: Path, target: Path, results: Mapping[str, Mapping[str, Any]], *, force: bool) -> None:
    """Copies the h5ad file `source` to `target` with `results` (group, then key) added and everything else unchanged.

    A result of None removes the key. A zarr store as a target has the cells in memory for a moment.
    """
    import h5py
    from anndata import read_h5ad

    from ..common.files import folder_written_whole, written_whole
    from ..data.write_back import add_results, superseding

    if target.suffix == STORE:
        with folder_written_whole(target, may_replace=force) as folder:
            root = _as_store(read_h5ad(source), folder)
            add_results(root, superseding(root, results))
        return
    with written_whole(target, may_replace=force) as temporary:
        shutil.copyfile(source, temporary)
        with h5py.File(temporary, "r+") as file:
            add_results(file, superseding(file, results))


def _write(adata: AnnData, target: Path, *, force: bool) -> None:
    from ..common.files import folder_written_whole, written_whole

    if target.suffix == STORE:
        with folder_written_whole(target, may_replace=force) as folder:
            _as_store(adata, folder)
        return
    with written_whole(target, may_replace=force) as temporary:
        adata.write_h5ad(temporary, compression="gzip")


def _as_store(adata: AnnData, folder: Path) -> Any:
    import zarr
    from anndata.io import write_elem

    from ..data.destinations import zarr_version

    root = zarr.open_group(str(folder), mode="w", **zarr_version(2))
    write_elem(root, "/", adata)
    return root
