"""Writes simulated cells with many genes, sorted by type, to three files, block by block to limit memory."""

from __future__ import annotations

import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import write_elem
from scipy import sparse

import scvae

N_GENES = 20_000
MEDIAN_COUNTS, LOG_SPREAD, SHAPE = 6_000, 0.35, 2.0  # of library sizes (first two); of the gamma noise of each gene
BLOCK = 500  # cells
ZARR_CHUNK, ZARR_SHARD = 2**15, 2**22
FILES = {"h5ad gzip": "gzip.h5ad", "h5ad": "plain.h5ad", "zarr sharded": "sharded.zarr"}


def profiles() -> tuple[np.ndarray, list[str]]:
    """Share of each gene in the counts of each cell type of the bundled set (types x genes), and the types."""
    source = scvae.datasets.pbmc3k()
    counts = source.X.tocsr()
    genes = np.argsort(-np.asarray(counts.sum(0)).ravel(), kind="stable")[:N_GENES]
    labels = source.obs["cell_type"].astype(str).to_numpy()
    types = [name for name in np.unique(labels) if name != "unlabelled"]
    means = np.stack([np.asarray(counts[labels == name][:, genes].sum(0)).ravel() for name in types]) + 0.02
    return means / means.sum(1, keepdims=True), types


def blocks(n_cells: int) -> tuple[list[str], list[tuple[str, int]]]:
    """Type and size of each block of cells, sorted by type, in the proportions of the bundled set."""
    _, types = profiles()
    labels = scvae.datasets.pbmc3k().obs["cell_type"].astype(str)
    shares = labels[labels != "unlabelled"].value_counts(normalize=True)
    edges = np.round(np.cumsum([0.0, *(shares[name] for name in types)]) * n_cells).astype(int)
    cut = []
    for name, start, stop in zip(types, edges[:-1], edges[1:], strict=True):
        cut += [(name, min(BLOCK, stop - first)) for first in range(start, stop, BLOCK)]
    return types, cut


def make(folder: Path, n_cells: int) -> None:
    """Writes the files that do not exist yet."""
    folder.mkdir(parents=True, exist_ok=True)
    if all((folder / name).exists() for name in FILES.values()):
        return
    share, types = profiles()
    rng = np.random.default_rng(0)
    _, cut = blocks(n_cells)
    lengths, labels = [], []
    with tempfile.TemporaryDirectory(dir=folder) as name:
        columns, values = Path(name) / "indices", Path(name) / "data"
        with columns.open("wb") as of_columns, values.open("wb") as of_values:
            for label, n in cut:
                library = MEDIAN_COUNTS * np.exp(rng.normal(0, LOG_SPREAD, (n, 1)))
                noise = rng.gamma(SHAPE, 1 / SHAPE, (n, N_GENES))
                drawn = sparse.csr_matrix(rng.poisson(library * noise * share[types.index(label)]))
                lengths.append(np.diff(drawn.indptr))
                labels += [label] * n
                of_columns.write(drawn.indices.astype("<i4").tobytes())
                of_values.write(drawn.data.astype("<f4").tobytes())
        indptr = np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
        arrays = {"indices": np.memmap(columns, "<i4"), "data": np.memmap(values, "<f4")}
        obs = pd.DataFrame({"cell_type": pd.Categorical(labels)}, index=[f"cell_{i}" for i in range(n_cells)])
        var = pd.DataFrame(index=[f"gene_{i}" for i in range(N_GENES)])
        for kind, file in FILES.items():
            write(folder / file, kind, anndata.AnnData(obs=obs, var=var), indptr, arrays)


def write(path: Path, kind: str, names: anndata.AnnData, indptr: np.ndarray, arrays: dict[str, np.ndarray]) -> None:
    """Writes one file: h5ad with anndata's default chunks, zarr with the chunks and shards of annbatch's converter."""
    shape = np.array([names.n_obs, names.n_vars])
    attributes = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0", "shape": shape.tolist()}
    if kind.startswith("zarr"):
        root = zarr.open_group(path, mode="w", zarr_format=3)
        write_elem(root, "/", names)
        group = root.create_group("X", overwrite=True)
        group.attrs.update(attributes)
        group.create_array("indptr", data=indptr)
        for name, array in arrays.items():
            made = group.create_array(
                name, shape=array.shape, dtype=array.dtype, chunks=(ZARR_CHUNK,), shards=(ZARR_SHARD,)
            )
            for start in range(0, len(array), ZARR_SHARD):
                made[start : start + ZARR_SHARD] = array[start : start + ZARR_SHARD]
        return
    with h5py.File(path, "w") as file:
        write_elem(file, "/", names)
        if "X" in file:
            del file["X"]
        group = file.create_group("X")
        group.attrs.update(attributes | {"shape": shape})
        group.create_dataset("indptr", data=indptr)
        for name, array in arrays.items():
            options = {"compression": "gzip"} if "gzip" in kind else {}
            made = group.create_dataset(name, shape=array.shape, dtype=array.dtype, chunks=True, **options)
            step = made.chunks[0] * 64
            for start in range(0, len(array), step):
                made[start : start + step] = array[start : start + step]
