"""Reading of an AnnData into cells: the modelled genes, their values and the conditions of each cell."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pandas as pd
import scipy.sparse as sp
from anndata import AnnData
from numpy.typing import NDArray
from pandas.api.extensions import ExtensionArray

from ..common.checks import check_adata, is_raw, speaking_of
from ..config import View
from .cells import Cells
from .coarse_labels import with_coarse
from .containers import (
    Stored,
    blocks,
    dense_chunks,
    gather,
    is_dense,
    masked,
    matrix_of,
    name_of,
    var_names_of,
    without_duplicates,
)
from .covariates import codes_of, covariate_names, learn_columns, numbers_of, size_factors, warn_of_far
from .genes import columns_of, find_genes, gene_mask, refuse_duplicates
from .labels import LABEL_WEIGHT, Labels, learn_labels
from .on_disk import Joined, on_disk
from .rows import DenseRows, Rows, SparseRows
from .schema import RNA, Kind, Schema
from .stored_rows import StoredRows
from .value_check import ValueCheck, WholeNumbers, check_finite

MEMORY = 1e9  # bytes that the values of cells on disk may fill


class SchemaLayer(enum.Enum):
    """Stands for "the layer that the fit read", since None already means `X`."""

    SAME = "same"


SAME_LAYER: Final = SchemaLayer.SAME


@dataclass(frozen=True, slots=True, eq=False)
class DataKeys:
    """The layer, genes and columns of an AnnData that a fit reads.

    Parameters
    ----------
    layer
        The layer to read; None for `X`, and ``"raw"`` for `adata.raw`, in which the genes of `adata` are found by name.
    mask_var
        The genes to model: a bool column of `var`, one bool per gene, or None for the column "highly_variable" if there
        is one and all genes otherwise. For counts and binary data, genes that are 0 in all cells are also left out.
    batch_key
        Column of `obs`, always read as categories.
    covariate_keys
        More columns of `obs`: numbers are standardised, everything else is read as categories.
    size_factor_key
        Column of `obs` with positive numbers, on any scale, that replace the library size; None for the sum over the
        modelled genes.
    labels_key
        Column of `obs` with the labels that the fit listens to; None for none.
    unlabelled
        Value of this column in cells without a label, besides missing values.
    label_weight
        Weight of the label term.
    label_hierarchy
        The tree of labels of which some are coarser names of others, as in `scvae.fit`; None for none.
    views
        Further measurements of the cells, by name.
    name
        The name of the first.
    """

    layer: str | None = None
    mask_var: str | Sequence[bool] | NDArray[Any] | ExtensionArray | pd.Series | None = None
    batch_key: str | None = None
    covariate_keys: Sequence[str] | str = ()
    size_factor_key: str | None = None
    labels_key: str | None = None
    unlabelled: str | None = None
    label_weight: float = LABEL_WEIGHT
    label_hierarchy: object = None
    views: Mapping[str, View] = field(default_factory=dict)
    name: str = RNA


def read_fit(
    adata: AnnData, data: DataKeys, *, kind: Kind, matrix: Joined | None = None, memory: float = MEMORY
) -> tuple[Schema, Cells]:
    """Reads the cells of a fit, and the schema that later data must follow.

    Parameters
    ----------
    adata
        Cells x genes, in memory or backed; not changed, and not referred to afterwards. A CSR matrix in memory is used
        without a copy unless a mask drops most of it or its rows are not sorted, so it must not be changed while the
        cells are in use.
    data
        The layer, genes and columns to read.
    kind
        "counts", "binary" or "real".
    matrix
        The values, if they are not in `adata`.
    memory
        Bytes that values read from disk may take: if those of the modelled genes need more, they stay on disk.

    Returns
    -------
    tuple
        The schema and the cells.

    Raises
    ------
    MissingKeyError
        If a layer or column does not exist.
    ValueError
        If a value, mask, name or column cannot be used; the message names the cell and gene.
    TypeError
        If a container or type cannot be read.

    Warns
    -----
    UserWarning
        If some counts are fractions but show no transform, or if a category has a single cell.
    """
    check_adata(adata)
    layer, size_factor_key = data.layer, data.size_factor_key
    keys = covariate_names(data.batch_key, data.covariate_keys)
    if kind == "real" and size_factor_key is not None:
        raise ValueError("size_factor_key has no meaning for real values; leave it out, or pass counts")
    chosen = columns_of(adata, layer, gene_mask(adata, data.mask_var))
    batch, categorical, numeric = learn_columns(adata, data.batch_key, keys)
    factors = None if size_factor_key is None else size_factors(adata, size_factor_key)
    labels = learned_labels(adata, data)
    values = matrix_of(adata, layer) if matrix is None else matrix
    var_names = var_names_of(adata, layer)
    if kind == "real" and _is_dense_in_memory(values, len(chosen), memory):
        genes = chosen
        refuse_duplicates(var_names, var_names[genes])
        rows: Rows = _read_dense(values, genes, adata, layer, kind_is_open=True)
        library, scale = np.ones(adata.n_obs, dtype=np.float32), 1.0
    else:
        mask = _as_mask(chosen, values)
        check = ValueCheck(kind, layer, adata, mask, kind_is_open=True, searched=matrix and matrix.first)
        stored = _read_stored(values, check, mask, memory)
        genes = chosen if kind == "real" else chosen[check.seen[chosen]]
        if len(genes) == 0:
            raise ValueError(f"{name_of(layer)} is 0 in all modelled genes ({len(chosen):,}); check layer and mask_var")
        refuse_duplicates(var_names, var_names[genes])
        rows = _rows(stored, genes, check, memory)
        check.finish()
        scale = 1.0 if factors is None else float(check.library.sum() / factors.sum())
        library = _library(check, kind, factors, scale)
    names = tuple(str(name) for name in var_names[genes])
    schema = Schema(names, kind, layer, batch, categorical, numeric, size_factor_key, scale, labels)
    return schema, with_labels(_cells(adata, schema, rows, library), adata, schema)


def learned_labels(adata: AnnData, data: DataKeys, known: Labels | None = None) -> Labels | None:
    """The labels that a fit is asked to listen to, after those already `known` to a model.

    Errors and warnings are those of `learn_labels` and `with_coarse`.
    """
    if data.labels_key is None:
        return known
    labels = learn_labels(adata, data.labels_key, data.unlabelled, data.label_weight, known)
    if data.label_hierarchy is None:
        return labels
    return with_coarse(labels, data.label_hierarchy, adata, 0 if known is None else len(known.names))


def with_labels(cells: Cells, adata: AnnData, schema: Schema) -> Cells:
    """The cells with their labels, if the schema has any; errors of `Labels.codes`."""
    return cells if schema.labels is None else replace(cells, labels=schema.labels.codes(adata))


def read_query(
    adata: AnnData,
    schema: Schema,
    *,
    layer: str | SchemaLayer | None = SAME_LAYER,
    matrix: Joined | None = None,
    memory: float = MEMORY,
) -> Cells:
    """Reads cells in the same way as those of the fit. Genes are found by name.

    Parameters
    ----------
    adata
        Cells x genes, in any order of genes; further genes are ignored.
    schema
        The schema of the fit.
    layer
        The layer to read, None for `X`; by default, the layer that the fit read.
    matrix, memory
        As in `read_fit`.

    Returns
    -------
    Cells
        The cells, with the genes in the order of the schema. Missing genes are recorded as missing, not as zeros. The
        library size is the sum over the genes present; a size factor is assumed to refer to these genes too.

    Raises
    ------
    ValueError
        If fewer than half of the modelled genes are present (for real values: if any is missing), a gene name to look
        up occurs twice, a category is unknown, or a value cannot be used.
    MissingKeyError, TypeError
        As in `read_fit`.

    Warns
    -----
    UserWarning
        If some modelled genes are missing, some counts are fractions, or numeric covariates are far from the fit's.
    """
    check_adata(adata)
    layer = schema.layer if isinstance(layer, SchemaLayer) else layer
    values = matrix_of(adata, layer) if matrix is None else matrix
    if is_raw(adata, layer):
        with speaking_of("adata.raw"):
            genes = find_genes(adata.raw, schema)
    else:
        genes = find_genes(adata, schema)
    factors = None if schema.size_factor_key is None else size_factors(adata, schema.size_factor_key)
    if schema.kind == "real" and _is_dense_in_memory(values, len(genes), memory):
        rows: Rows = _read_dense(values, genes, adata, layer, kind_is_open=False)
        cells = _cells(adata, schema, rows, np.ones(adata.n_obs, dtype=np.float32))
        warn_of_far(cells.numeric, adata, schema)
        return cells
    mask = _as_mask(genes[genes >= 0], values)
    check = ValueCheck(schema.kind, layer, adata, mask, kind_is_open=False, searched=matrix and matrix.first)
    rows = _rows(_read_stored(values, check, mask, memory), genes, check, memory)
    check.finish()
    missing = np.flatnonzero(genes < 0)
    library = _library(check, schema.kind, factors, schema.size_factor_scale)
    cells = _cells(adata, schema, rows, library, missing if len(missing) else None)
    warn_of_far(cells.numeric, adata, schema)
    return cells


def read_columns(adata: AnnData, layer: str | None, mask: NDArray[np.bool_]) -> sp.csr_matrix:
    """The stored values of the genes of `mask`, modelled or not: float32, cells x these genes.

    Raises
    ------
    ValueError
        If `adata.raw` is to be read, and lacks some of these genes.
    """
    matrix, columns = matrix_of(adata, layer), columns_of(adata, layer, mask)
    source = None if sp.issparse(matrix) else on_disk(matrix, name_of(layer))
    wanted = _as_mask(columns, matrix)
    pieces = [masked(block, wanted) for block in (blocks(matrix) if source is None else source.blocks())]
    found = gather(pieces, matrix.shape)
    whole = sp.csr_matrix((found.values.astype(np.float32), found.columns, found.indptr), shape=matrix.shape)
    return whole[:, columns]


def _cells(
    adata: AnnData,
    schema: Schema,
    rows: Rows,
    library: NDArray[np.float32],
    missing: NDArray[np.int64] | None = None,
) -> Cells:
    return Cells(
        rows=rows,
        library=library,
        codes=codes_of(adata, schema),
        numeric=numbers_of(adata, schema),
        names=adata.obs_names.copy(),
        has_batch=schema.batch is not None,
        missing=missing,
    )


def _as_mask(columns: NDArray[np.intp], matrix: Any) -> NDArray[np.bool_]:
    mask = np.zeros(matrix.shape[1], dtype=bool)
    mask[columns] = True
    return mask


def _library(check: ValueCheck, kind: Kind, factors: NDArray[np.float64] | None, scale: float) -> NDArray[np.float32]:
    if kind == "real":
        return np.ones(len(check.library), dtype=np.float32)
    return (check.library if factors is None else factors * scale).astype(np.float32)


def _read_stored(matrix: Any, check: ValueCheck, mask: NDArray[np.bool_], memory: float) -> Stored | Joined:
    """All rows after a check of every value: a CSR matrix in memory by reference, any other as a copy cut to the mask.

    Rows on disk stay there if the modelled values would take more than `memory` bytes.
    """
    if sp.issparse(matrix):
        matrix, is_sorted = without_duplicates(matrix)
        for block in blocks(matrix):
            check.add(block)
        return Stored(matrix.indptr, matrix.indices, matrix.data, is_sorted)
    source = on_disk(matrix, check.name)
    pieces, size = [], 0
    for block in blocks(matrix) if source is None else source.blocks():
        check.add(block)
        if source is None or size <= memory:
            pieces.append(masked(block, mask))
            size += pieces[-1].columns.nbytes + pieces[-1].values.nbytes
            if source is not None and size > memory:
                pieces.clear()
    if source is not None and size > memory:
        return source
    return gather(pieces, matrix.shape)


def _rows(
    stored: Stored | Joined, genes: NDArray[np.intp], check: ValueCheck, memory: float
) -> SparseRows | StoredRows:
    """The rows of the modelled genes; `genes` are columns of the matrix, -1 for a gene that it lacks."""
    n_columns = len(check.seen)
    column_map = np.full(n_columns, -1, dtype=np.int32)
    here = np.flatnonzero(genes >= 0)
    column_map[genes[here]] = here
    if isinstance(stored, Joined):
        return StoredRows(stored, column_map, len(genes), n_kept=check.n_kept, memory=memory)
    rows = SparseRows(
        stored.indptr,
        stored.columns,
        stored.values,
        n_columns,
        column_map=None if np.array_equal(genes, np.arange(n_columns)) else column_map,
        n_genes=len(genes),
        is_sorted=stored.is_sorted,
    )
    # a copy is worth its memory if it is less than half of the values, over whose rest every batch would skip, or if
    # every batch would be sorted
    return rows.compact(check.n_kept) if not rows.is_sorted or check.n_kept < check.n_stored / 2 else rows


def _is_dense_in_memory(matrix: Any, n_genes: int, memory: float) -> bool:
    """Whether the matrix is dense and in memory, or fits in memory."""
    if isinstance(matrix, Joined) or not is_dense(matrix):
        return False
    return isinstance(matrix, np.ndarray) or 4 * matrix.shape[0] * n_genes <= memory


def _read_dense(
    matrix: Any, genes: NDArray[np.intp], adata: AnnData, layer: str | None, *, kind_is_open: bool
) -> DenseRows:
    """Real values of some columns as float32; the array itself if it already has these columns and this type."""
    is_all = np.array_equal(genes, np.arange(matrix.shape[1]))
    is_kept = is_all and isinstance(matrix, np.ndarray) and matrix.dtype == np.float32
    name, var_names, whole = name_of(layer), var_names_of(adata, layer), WholeNumbers()
    values = matrix if is_kept else np.empty((adata.n_obs, len(genes)), dtype=np.float32)
    for start, chunk in dense_chunks(matrix):
        with np.errstate(over="ignore"):  # a value beyond float32 becomes infinite, which `check_finite` refuses
            narrow = chunk.astype(np.float32, copy=False)
        check_finite(narrow, start, name, adata.obs_names, var_names)
        whole.add(narrow)
        if not is_kept:
            values[start : start + len(chunk)] = narrow[:, genes]
    whole.finish(name, kind_is_open=kind_is_open)
    return DenseRows(values)
