"""Destinations of tables of expected values, written in chunks of cells: arrays, sparse matrices or a zarr store."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from jaxtyping import Float, Int

from ..common.files import as_path, check_folder, folder_written_whole

Tables = Mapping[str, Float[np.ndarray, "cells genes"]]  # by name: expected values, and the ends of their intervals

MEAN = "mean"
STORE_CHUNK = 2**20  # cells x genes of one chunk of a store, 4 MB before compression


class Destination(ABC):
    """Receives tables in consecutive chunks of cells."""

    @abstractmethod
    def add(self, positions: Int[np.ndarray, " cells"], tables: Tables) -> None:
        """Adds the tables of the cells at `positions`, which follow those of the last call."""


@final
class Arrays(Destination):
    """Dense tables in memory."""

    def __init__(self, names: tuple[str, ...], n_cells: int, n_genes: int) -> None:
        self.tables = {name: np.empty((n_cells, n_genes), np.float32) for name in names}

    def add(self, positions: Int[np.ndarray, " cells"], tables: Tables) -> None:
        for name, table in tables.items():
            self.tables[name][positions] = table


@final
class SparseMatrices(Destination):
    """Sparse tables in memory, all with the entries whose expected value is above a threshold."""

    def __init__(self, names: tuple[str, ...], threshold: float) -> None:
        self.threshold = threshold
        self.pieces: dict[str, list[sp.csr_matrix]] = {name: [] for name in names}

    @property
    def tables(self) -> dict[str, sp.csr_matrix]:
        """The tables of all cells added so far."""
        return {name: sp.vstack(pieces, format="csr") for name, pieces in self.pieces.items()}

    def add(self, positions: Int[np.ndarray, " cells"], tables: Tables) -> None:
        for name, piece in above(tables, self.threshold).items():
            self.pieces[name].append(piece)


@final
class Store(Destination):
    """A zarr store that anndata can read: expected values in X, the ends of their intervals in layers.

    It is written in zarr's format 2, which every version of zarr reads.
    """

    def __init__(
        self, folder: Path, names: tuple[str, ...], cells: pd.Index, genes: pd.Index, threshold: float | None
    ) -> None:
        import zarr
        from anndata import AnnData
        from anndata.io import write_elem

        self.threshold = threshold
        self.places = {name: "X" if name == MEAN else f"layers/{name}" for name in names}
        version = zarr_version(2)
        self.root: Any = zarr.open_group(str(folder), mode="w", **version)
        write_elem(self.root, "/", AnnData(obs=pd.DataFrame(index=cells), var=pd.DataFrame(index=genes)))
        self.arrays: dict[str, Any] = {}
        if threshold is None:
            rows = max(1, STORE_CHUNK // len(genes))
            shape = (len(cells), len(genes))
            for name, place in self.places.items():
                self.arrays[name] = zarr.open_array(
                    store=str(folder),
                    path=place,
                    mode="w",
                    shape=shape,
                    chunks=(rows, len(genes)),
                    dtype="f4",
                    **version,
                )
                self.arrays[name].attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})

    def add(self, positions: Int[np.ndarray, " cells"], tables: Tables) -> None:
        if self.threshold is None:
            for name, table in tables.items():
                self.arrays[name][int(positions[0]) : int(positions[-1]) + 1] = table
            return
        from anndata.io import sparse_dataset, write_elem

        for name, piece in above(tables, self.threshold).items():
            place = self.places[name]
            if positions[0] == 0:
                write_elem(self.root, place, piece)
            else:
                sparse_dataset(self.root[place]).append(piece)


def above(tables: Tables, threshold: float) -> dict[str, sp.csr_matrix]:
    """The entries of the tables whose expected value is above the threshold."""
    rows, columns = np.nonzero(tables[MEAN] > threshold)
    indptr = np.searchsorted(rows, np.arange(len(tables[MEAN]) + 1)).astype(np.int64)
    return {
        name: sp.csr_matrix((table[rows, columns], columns.astype(np.int64), indptr), shape=table.shape)
        for name, table in tables.items()
    }


def check_store(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    """`path` as a Path, if a store can be written there.

    Raises
    ------
    FileNotFoundError
        If the folder of `path` does not exist.
    FileExistsError
        If `path` exists and is not a zarr store, or if `overwrite` is false.
    ImportError
        If zarr is not installed.
    """
    path = Path(os.path.realpath(as_path(path)))
    try:
        import zarr  # noqa: F401
    except ImportError as error:
        raise ImportError("path= needs zarr, which is not installed; run: pip install zarr") from error
    check_folder(path)
    if path.exists() and not is_store(path):
        raise FileExistsError(f"{path} exists and is not a zarr store; pass another path.")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; pass overwrite=True to replace it.")
    return path


def is_store(path: Path) -> bool:
    """Whether this folder is a zarr store."""
    return any((path / name).is_file() for name in (".zgroup", "zarr.json"))


def zarr_version(number: int) -> dict[str, Any]:
    """Arguments for zarr to write its format 2 or 3; without a choice before its own version 3."""
    import zarr

    return {"zarr_format": number} if int(zarr.__version__.partition(".")[0]) >= 3 else {}


@contextmanager
def store(
    path: Path, names: tuple[str, ...], cells: pd.Index, genes: pd.Index, threshold: float | None
) -> Iterator[Store]:
    """A store that appears at `path` if the block succeeds, and not at all otherwise."""
    with folder_written_whole(path) as folder:
        yield Store(folder, names, cells, genes, threshold)
