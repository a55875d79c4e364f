"""Writing of results into the files of the cells; each file gets all results or none, and its values are not moved."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..common.keys import Keys
from ..common.provenance import superseded
from .destinations import zarr_version
from .in_place import changed_in_place
from .sources import Source
from .turns import turn

FRAMES = ("obs", "var")  # groups that are tables, with their columns in an order
Results = Mapping[str, Mapping[str, Any]]  # group, then key; None removes a key


def write_back(
    source: Source,
    *,
    obsm: list[str],
    varm: list[str],
    uns: list[str],
    var: list[str] | None = None,
    obs: list[str] | None = None,
) -> None:
    """Writes slots of `source.adata` into the files; each file gets the part for its own cells and genes.

    A key of `obsm` or `varm` that `source.adata` lacks is removed from the files. Columns `var` cover all genes.

    Raises
    ------
    BlockingIOError
        If a file is open in this process, or stays open in another one.
    OSError
        If a file cannot be written to, or has other cells or genes by now.
    """
    adata, start = source.adata, 0
    for path, names, genes in zip(source.files, source.cells, source.genes, strict=True):
        cells = slice(start, start + len(names))
        start += len(names)
        places = adata.var_names.astype(str).get_indexer(genes.astype(str))
        here = (places >= 0)[:, None]
        results: dict[str, dict[str, Any]] = {
            "obsm": {key: np.asarray(adata.obsm[key])[cells] if key in adata.obsm else None for key in obsm},
            "varm": {
                key: np.where(here, np.asarray(adata.varm[key])[places], 0) if key in adata.varm else None
                for key in varm
            },
            "uns": {key: adata.uns[key] for key in uns},
            "obs": {key: adata.obs[key].array[cells] for key in obs or ()},
            "var": {key: _of_genes(adata.var[key].to_numpy(), places) for key in var or ()},
        }
        write = _write_zarr if path.is_dir() else _write_h5ad
        write(path, results, {"obs": names, "var": genes})


def add_results(file: Any, results: Results) -> None:
    """Writes results into the groups of an open h5ad file or zarr store."""
    from anndata.io import write_elem

    for group, values in results.items():
        if group not in file:
            write_elem(file, group, {})
        for key, value in values.items():
            if value is not None:
                write_elem(file[group], key, value)
            elif key in file[group]:
                del file[group][key]
            if group in FRAMES:
                order = [name for name in file[group].attrs["column-order"] if name != key]
                file[group].attrs["column-order"] = order if value is None else [*order, key]


def superseding(file: Any, results: Results) -> dict[str, dict[str, Any]]:
    """The results, and what they replace in an open file: slots of another model are removed, its record is kept."""
    from anndata.io import read_elem

    every = {group: dict(values) for group, values in results.items()}
    for key, record in results.get("uns", {}).items():
        keys = Keys(key)
        if keys.mean not in every.get("obsm", {}):
            continue
        made_by = record[keys.models][keys.mean]
        found = superseded(keys, made_by, lambda group: file.get(group, {}), read_elem)
        both = {name: found.record[name] | record[name] for name in (keys.models, keys.checksums)}
        every["uns"][key] = found.record | record | both
        for group, names in found.slots.items():
            every[group] = dict.fromkeys(names) | every.get(group, {})
    return every


def _of_genes(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    empty: Any = False if values.dtype == bool else np.nan
    found: np.ndarray = np.where(places >= 0, values[places], empty)
    return found


def _check_names(path: Path, file: Any, read: Mapping[str, pd.Index]) -> None:
    """Raises OSError if the cells or genes are not those that were read, in their order."""
    from anndata.io import read_elem

    for group, names in read.items():
        here = read_elem(file[group][file[group].attrs["_index"]])
        if not pd.Index(np.asarray(here, object)).astype(str).equals(names.astype(str)):
            raise OSError(f"{path} has other {group}_names than when it was read, so nothing was written into it")


def _write_h5ad(path: Path, results: Results, names: Mapping[str, pd.Index]) -> None:
    import h5py

    with changed_in_place(path) as changes, h5py.File(changes, "r+") as file:
        _check_names(path, file, names)
        add_results(file, superseding(file, results))


def _write_zarr(path: Path, results: Results, names: Mapping[str, pd.Index]) -> None:
    """Writes each element to a temporary folder, which then replaces the old element."""
    import zarr

    path = Path(os.path.realpath(path))
    folder = tempfile.TemporaryDirectory(prefix=f".{path.stem}.", dir=path.parent)
    with turn(path, to_write=True), folder as name:
        aside = Path(name)
        _check_names(path, zarr.open_group(str(path), mode="r"), names)
        version = zarr_version(3 if (path / "zarr.json").is_file() else 2)
        made = zarr.open_group(str(aside / "new"), mode="w", **version)
        with _quiet():
            results = superseding(zarr.open_group(str(path), mode="r"), results)
            for group in FRAMES:
                if results.get(group):
                    shutil.copytree(path / group, aside / "new" / group)
            add_results(made, {group: values for group, values in results.items() if values})
        for group, values in results.items():
            if not values:
                continue
            if group in FRAMES or not (path / group).is_dir():
                _exchange(aside / "new" / group, path / group, aside / "old")
                continue
            for key, value in values.items():
                _exchange(None if value is None else aside / "new" / group / key, path / group / key, aside / "old")
        with _quiet():
            if _is_consolidated(path):
                zarr.consolidate_metadata(str(path))


def _exchange(new: Path | None, place: Path, aside: Path) -> None:
    """Replaces one folder by another, by renaming; None only removes it."""
    aside.mkdir(exist_ok=True)
    if place.exists():
        place.rename(aside / f"{len(list(aside.iterdir()))}")
    if new is not None:
        new.rename(place)


def _is_consolidated(path: Path) -> bool:
    if (path / ".zmetadata").is_file():
        return True
    record = path / "zarr.json"
    return record.is_file() and bool(json.loads(record.read_text(encoding="utf-8")).get("consolidated_metadata"))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of zarr and anndata on formats; the store keeps its own
        yield
