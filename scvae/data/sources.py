"""Data in files: names and columns are read at once, values only when cells are taken."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from pandas.api.types import is_bool_dtype

from ..common.checks import RAW, check_adata, check_layer, is_mudata, listing, missing_key, warn
from ..common.files import as_path
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from .categories import as_text
from .containers import matrix_of, name_of, var_names_of
from .destinations import is_store
from .file_kinds import refuse_address, refuse_other_kinds, why_unreadable
from .gene_names import better_match
from .in_place import restore
from .modalities import modalities_of
from .on_disk import Joined, on_disk
from .turns import Reader, check_can_be_changed, is_open_here, turn

FILE = "file"  # column of obs: the file of each cell, if there are several
ENDINGS = (".h5ad", ".zarr")

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """An AnnData or files from which cells are read.

    Parameters
    ----------
    adata
        The user's AnnData. For files: names and columns of all cells and of the genes that the files share; for a
        single file, also its matrices on disk.
    matrix
        The values of several files; None if they are in `adata`.
    files
        The files, if there are any.
    cells
        Names of the cells of each file.
    genes
        Names of the genes of each file, in its own order.
    """

    adata: AnnData
    matrix: Joined | None = None
    files: tuple[Path, ...] = ()
    cells: tuple[pd.Index, ...] = ()
    genes: tuple[pd.Index, ...] = ()


def are_paths(given: object) -> TypeGuard[Paths]:
    """Whether the argument is one or several paths, rather than an AnnData."""
    if isinstance(given, str | os.PathLike):
        return True
    return isinstance(given, list | tuple) and all(isinstance(path, str | os.PathLike) for path in given)


@contextmanager
def opened(
    given: object,
    layer: str | None,
    *,
    to_change: bool = False,
    keys: Keys | None = None,
    first: str | None = None,
    slots: Sequence[str] = (),
) -> Iterator[Source]:
    """The source for an AnnData, for files (open during the block), or for a source, of which only the AnnData is kept.

    Parameters
    ----------
    given
        An AnnData, paths or a source.
    layer
        The layer that is needed; None for X.
    to_change
        Whether results will be written into the files.
    keys
        Slots of these results, whose record must not replace something else.
    first
        The first modality of a MuData; None if a MuData cannot be given.
    slots
        Slots of `obsm` to read from files, into memory, where they have them.

    Raises
    ------
    PermissionError, BlockingIOError
        If files are to be changed and one cannot be written to, or is open in this process or for writing in another.
    FileNotFoundError, ValueError
        If a file does not exist or cannot be read, or if the files share no genes.
    TypeError
        If `given` is neither an AnnData nor a path.
    MissingKeyError
        If a file does not have this layer.
    """
    if isinstance(given, Source):
        yield replace(given, files=(), cells=(), genes=())
        return
    if first is not None and is_mudata(given):
        with modalities_of(given, first) as adata:
            yield Source(check_adata(adata))
        return
    if not are_paths(given):
        yield Source(check_adata(given))
        return
    files = listed(given)
    for path in files if to_change else ():
        check_can_be_changed(path)
    with ExitStack() as stack:
        found = [_opened(path, stack, keys, slots) for path in files]
        for path, adata in zip(files, found, strict=True):
            check_adata(adata)
            try:
                check_layer(adata, layer)
            except ValueError as error:
                raise type(error)(f"{path}: {error}") from error
        if len(files) == 1:
            yield Source(found[0], None, files, (found[0].obs_names,), (found[0].var_names,))
        else:
            yield _joined(files, found, layer, slots)


def listed(given: Paths) -> tuple[Path, ...]:
    """The files of the given paths; a folder that is not a zarr store is replaced by its h5ad files and stores, sorted.

    Raises
    ------
    FileNotFoundError
        If a file does not exist, or if there are no files.
    ValueError
        If a file is given twice, or if two files have the same name.
    """
    paths = [as_path(path) for path in ([given] if isinstance(given, str | os.PathLike) else given)]
    files: list[Path] = []
    for path in paths:
        refuse_address(path)
        if path.is_dir() and not is_store(path):
            inside = sorted(entry for entry in path.iterdir() if entry.suffix in ENDINGS and entry.name[0] != ".")
            if not inside:
                is_10x = any(path.glob("*matrix.mtx*"))
                hint = f"; it holds a matrix of 10x: pass sc.read_10x_mtx({str(path)!r})" if is_10x else ""
                raise FileNotFoundError(f"the folder {path} has no file that ends in .h5ad or .zarr{hint}")
            files += inside
        elif not path.exists():
            raise FileNotFoundError(f"there is no file {path}; pass an h5ad file or a zarr store")
        elif not (path.is_file() or path.is_dir()):
            raise ValueError(f"{path} is a pipe or a device; pass an h5ad file or a zarr store")
        else:
            files.append(path)
    if not files:
        raise FileNotFoundError("no files were given; pass h5ad files, zarr stores or a folder of them")
    names = pd.Index([path.stem for path in files])
    if names.has_duplicates:
        raise ValueError(
            f"several files are named {listing(names[names.duplicated()].unique())}; the file name becomes part of the "
            "cell names, so rename all but one (or pass the file once)"
        )
    return tuple(files)


def entry_of_obsm(source: Source, key: str) -> Any:
    """An entry of `obsm`, of the cells of all files one after another.

    Raises
    ------
    MissingKeyError
        If the AnnData or a file does not have it.
    """
    from anndata.io import read_elem

    if not source.files:
        if key not in source.adata.obsm:
            raise missing_key("adata.obsm", key, list(source.adata.obsm))
        return source.adata.obsm[key]
    with ExitStack() as stack:
        groups = [_group(path, stack) for path in source.files]
        for path, group in zip(source.files, groups, strict=True):
            if key not in _keys(group, "obsm"):
                raise missing_key(f"obsm of {path}", key, _keys(group, "obsm"))
        return np.concatenate([np.asarray(read_elem(group["obsm"][key])) for group in groups])


def small(source: Source) -> AnnData:
    """The cells with their columns and results, without values and genes."""
    adata = source.adata
    obsm = {key: value for key, value in adata.obsm.items() if isinstance(value, np.ndarray)}
    return AnnData(obs=adata.obs.copy(), obsm=obsm, uns=dict(adata.uns))


def _opened(path: Path, stack: ExitStack, keys: Keys | None, slots: Sequence[str]) -> AnnData:
    """Names and columns of a file, and these slots of `obsm`, with its matrices left on disk."""
    from anndata.io import read_elem

    if path.is_file():
        restore(path)
    try:
        with turn(path, to_write=False), warnings.catch_warnings():
            group = _group(path, stack)
            refuse_other_kinds(group, path)
            warnings.simplefilter("ignore")  # of anndata on repeated names, which `intake` checks
            raw = {"X": _matrix(group["raw/X"]), "var": read_elem(group["raw/var"])} if "raw/var" in group else None
            obsm = {slot: read_elem(group[f"obsm/{slot}"]) for slot in slots if slot in _keys(group, "obsm")}
            adata = AnnData(obs=read_elem(group["obs"]), var=read_elem(group["var"]), raw=raw, obsm=obsm)
            places = {None: "X"} | {name: f"layers/{name}" for name in _keys(group, "layers")}
            for layer, place in places.items():
                if place not in group:
                    continue
                if layer is None:
                    adata.X = _matrix(group[place])
                else:
                    adata.layers[layer] = _matrix(group[place])
    except BlockingIOError:
        raise
    except Exception as error:  # the type depends on where in the file reading failed
        kind = "a zarr store" if path.is_dir() else "an h5ad file"
        raise ValueError(f"cannot read {path} as {kind} of anndata: {why_unreadable(path, error)}") from error
    if keys is not None and "uns" in group:
        check_replaceable(group["uns"], keys, str(path))
    return adata


def _matrix(element: Any) -> Any:
    from anndata.io import sparse_dataset

    return sparse_dataset(element) if hasattr(element, "keys") else element


def _keys(group: Any, name: str) -> list[str]:
    return list(group[name]) if name in group else []


def _group(path: Path, stack: ExitStack) -> Any:
    if path.is_dir():
        import zarr

        return zarr.open_group(str(path), mode="r")
    import h5py

    # changes that another handle of this process has not written yet are known to HDF5 only
    file = path if is_open_here(path) else stack.enter_context(Reader(path))
    return stack.enter_context(h5py.File(file, "r"))


def _joined(files: tuple[Path, ...], found: list[AnnData], layer: str | None, slots: Sequence[str]) -> Source:
    """Several files as one: the genes that all share, in the order of the first, and the cells, concatenated."""
    names = [pd.Index(adata.var_names.astype(str)) for adata in found]
    shared = _shared(files, [adata.var for adata in found], names)
    most = max(map(len, names))
    if len(shared) < most:
        warn(
            f"{len(shared):,} genes are in all {len(files):,} files and are used; up to {most - len(shared):,} genes "
            f"of a file are left out{_better(files, [adata.var for adata in found], names)}"
        )
    of_matrix = [pd.Index(var_names_of(adata, layer).astype(str)) for adata in found]
    genes = _shared(files, [adata.raw.var for adata in found], of_matrix) if layer == RAW else shared
    parts, first_cell = [], 0
    for path, adata, here in zip(files, found, of_matrix, strict=True):
        where = f"{name_of(layer)} of {path}"
        inner = on_disk(matrix_of(adata, layer), where)
        if inner is None:
            raise ValueError(f"{where} is stored by genes (CSC), so cells cannot be read from it; write it as CSR")
        columns = None if here.equals(genes) else genes.get_indexer(here).astype(np.int32)
        parts.append(replace(inner.parts[0], first_cell=first_cell, columns=columns))
        first_cell += adata.n_obs
    matrix = Joined(tuple(parts), len(genes), found[0])
    raw = {"X": matrix, "var": pd.DataFrame(index=genes)} if layer == RAW else None
    adata = AnnData(obs=_columns_of_cells(files, found), var=_columns_of_genes(files, found, shared), raw=raw)
    for slot in slots:
        if any(slot in each.obsm for each in found):
            adata.obsm[slot] = _slot_of_cells(slot, files, found)
    return Source(adata, matrix, files, tuple(each.obs_names for each in found), tuple(names))


def _shared(files: tuple[Path, ...], tables: list[pd.DataFrame], names: list[pd.Index]) -> pd.Index:
    """The genes that all files have, in the order of the first."""
    for path, here in zip(files, names, strict=True):
        twice = here[here.duplicated()].unique()
        if len(twice):
            raise ValueError(
                f"{path} has {len(twice):,} gene names more than once ({listing(twice, 5)}); genes of files are "
                "matched by name, so make the names unique first"
            )
    shared = names[0]
    for here in names[1:]:
        shared = shared[shared.isin(here)]
    if len(shared) == 0:
        raise ValueError(
            f"the {len(files):,} files share no gene: genes in {files[0]} are {listing(names[0], 3)}, those in "
            f"{files[-1]} are {listing(names[-1], 3)}; use the same kind of gene name in all files"
            f"{_better(files, tables, names)}"
        )
    return shared


def _better(files: tuple[Path, ...], tables: list[pd.DataFrame], names: list[pd.Index]) -> str:
    """The better names of the file that has the fewest genes of the first one, if it has better ones."""
    worst = min(range(1, len(files)), key=lambda number: names[number].isin(names[0]).sum())
    match = better_match(tables[worst], names[0])
    if match is None:
        return ""
    return f"; in {files[worst]}, {match.where('adata')} has {match.n:,} of the genes of {files[0]}"


def _columns_of_cells(files: tuple[Path, ...], found: list[AnnData]) -> pd.DataFrame:
    """Columns that all files have, and the file."""
    common = [key for key in found[0].obs if all(key in adata.obs for adata in found) and key != FILE]
    frames = []
    for path, adata in zip(files, found, strict=True):
        frame = adata.obs[common].copy()
        frame.index = _names_of_cells(path, adata)
        frame[FILE] = path.stem
        frames.append(frame)
    joined = pd.concat(frames)
    for key in [*common, FILE]:
        columns = [frame[key] for frame in frames]
        # pandas also makes numbers of truth values, if another file has numbers
        if joined[key].dtype == object or is_bool_dtype(joined[key]) != any(map(is_bool_dtype, columns)):
            joined[key] = pd.concat(list(map(as_text, columns))).astype("category")
        elif any(isinstance(column.dtype, pd.CategoricalDtype) for column in columns):
            joined[key] = joined[key].astype("category")  # concatenation loses categories that differ between files
    return joined


def _slot_of_cells(slot: str, files: tuple[Path, ...], found: list[AnnData]) -> Any:
    """A slot of `obsm` with the features that all files with this slot share; the cells of other files lack it.

    They have rows of NaN in it, or empty ones in a sparse matrix.
    """
    having = [adata for adata in found if slot in adata.obsm]
    values = [adata.obsm[slot] for adata in having]
    if all(isinstance(each, pd.DataFrame) for each in values):
        tables = values
    elif any(isinstance(each, pd.DataFrame) for each in values) or len({each.shape[1] for each in values}) > 1:
        kinds = (
            f"{each.shape[1]} features{' with names' if isinstance(each, pd.DataFrame) else ''}" for each in values
        )
        raise ValueError(
            f"obsm[{slot!r}] differs between the files ({', '.join(kinds)}); write it as a DataFrame in all of them, "
            "whose columns are matched by name"
        )
    elif all(map(sp.issparse, values)):
        n = values[0].shape[1]
        return sp.vstack([adata.obsm.get(slot, sp.csr_matrix((adata.n_obs, n))) for adata in found], format="csr")
    else:
        tables = [pd.DataFrame(each.toarray() if sp.issparse(each) else each) for each in values]
    shared = pd.concat(tables, join="inner", ignore_index=True)
    n_most = max(table.shape[1] for table in tables)
    if shared.shape[1] < n_most:
        warn(
            f"{shared.shape[1]:,} features of obsm[{slot!r}] are in all files that have it and are used; up to "
            f"{n_most - shared.shape[1]:,} features of a file are left out"
        )
    place = np.full(sum(adata.n_obs for adata in found), -1)
    there = np.repeat([slot in adata.obsm for adata in found], [adata.n_obs for adata in found])
    place[there] = np.arange(len(shared))
    whole = shared.reindex(place)
    whole.index = pd.Index(np.concatenate([_names_of_cells(*each) for each in zip(files, found, strict=True)]))
    return whole if isinstance(values[0], pd.DataFrame) else whole.to_numpy()


def _names_of_cells(path: Path, adata: AnnData) -> list[str]:
    """As in `anndata.concat(..., index_unique="-")`."""
    return [f"{name}-{path.stem}" for name in adata.obs_names]


def _columns_of_genes(files: tuple[Path, ...], found: list[AnnData], shared: pd.Index) -> pd.DataFrame:
    """Columns of the genes in which all files agree."""
    frames = [adata.var.set_axis(adata.var_names.astype(str)).loc[shared] for adata in found]
    keys = [key for key in frames[0] if all(key in frame and frame[key].equals(frames[0][key]) for frame in frames)]
    if "highly_variable" not in keys and any("highly_variable" in frame for frame in frames):
        raise ValueError(
            f"the {len(files):,} files do not agree on var['highly_variable']; select genes on all files together "
            "(scvae.tl.highly_variable_genes takes the files), or pass mask_var"
        )
    return frames[0][keys].copy()
