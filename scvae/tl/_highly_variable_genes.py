"""`highly_variable_genes`: selects genes to model without loading the counts into memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from ..common.checks import check_positive, check_positive_int, is_mudata, is_raw
from ..data.containers import Block, blocks, matrix_of, name_of, renumbered
from ..data.covariates import categories_of
from ..data.gene_variance import best_genes, gene_variances
from ..data.genes import columns_of
from ..data.modalities import modality_of, obs_of
from ..data.on_disk import on_disk
from ..data.schema import RNA
from ..data.sources import Paths, Source, opened
from ..data.value_check import ValueCheck
from ..data.write_back import write_back
from ..kernels.context import computing

if TYPE_CHECKING:
    from mudata import MuData

COLUMNS = ("highly_variable", "highly_variable_rank", "means", "variances", "variances_norm")


@computing()
def highly_variable_genes(
    adata: AnnData | MuData | Paths | Source,
    *,
    n_top_genes: int = 2000,
    batch_key: str | None = None,
    layer: str | None = None,
    modality: str | None = None,
    span: float = 0.3,
) -> None:
    """Marks the genes that vary more between cells than other genes of the same mean, from raw counts.

    Uses the measure of Stuart et al. (2019), as ``scanpy.pp.highly_variable_genes(flavor="seurat_v3")`` does, in two
    passes over counts that may stay on disk. `scvae.fit` models the marked genes by default.

    Parameters
    ----------
    adata
        Raw counts, cells x genes, files, as in `scvae.fit`, or a MuData.
    n_top_genes
        Number of genes to mark.
    batch_key
        Column of `adata.obs` with the batch. Genes are ranked within each batch and selected by their median rank over
        the batches in which they are among the first `n_top_genes`; ties go to the gene with more such batches. With
        several files, ``"file"`` ranks genes within each file.
    layer
        Layer with the counts; None for `X`, ``"raw"`` for `adata.raw`, in which genes are found by name.
    modality
        For a MuData, the modality whose genes to mark, by its own cells alone; None for ``"rna"``.
    span
        Share of the genes used at each point of the smooth fit of variance against mean.

    Returns
    -------
    None
        Columns written to ``adata.var``, to `var` of the modality, or into the files (where genes not found in all
        files are not marked):

        ``highly_variable``
            bool.
        ``highly_variable_rank``
            float, 0 for the most variable; NaN for genes not among the first `n_top_genes` of any batch.
        ``means``, ``variances``
            float, of the counts.
        ``variances_norm``
            float, variance of the standardised counts, averaged over batches.

    Raises
    ------
    ValueError
        If the values are not raw counts, a batch is missing or has a single cell, or an argument is out of range; if
        there is no such modality; MissingKeyError if a column or layer does not exist.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> scvae.tl.highly_variable_genes(adata, n_top_genes=40)
    >>> int(adata.var["highly_variable"].sum())
    40
    """
    n_top_genes, span = check_positive_int(n_top_genes, "n_top_genes"), check_positive(span, "span")
    if span > 1:
        raise ValueError(f"span is {span:g}; pass a share of the genes, above 0 and up to 1")
    obs: AnnData | None = None
    if is_mudata(adata):
        whole, adata = adata, modality_of(adata, RNA if modality is None else modality)
        obs = AnnData(obs=obs_of(whole, adata).loc[adata.obs_names])
    elif modality is not None:
        raise ValueError(f"modality is {modality!r}, but adata is no MuData; leave it out")
    with opened(adata, layer, to_change=True) as source:
        cells = source.adata
        codes = _batches(cells if obs is None else obs, batch_key)
        matrix = matrix_of(cells, layer) if source.matrix is None else source.matrix
        stored = on_disk(matrix, name_of(layer))
        place = np.full(matrix.shape[1], -1)
        place[columns_of(cells, layer, np.ones(cells.n_vars, dtype=bool))] = np.arange(cells.n_vars)
        first = source.matrix and source.matrix.first
        check = ValueCheck("counts", layer, cells, place >= 0, kind_is_open=False, searched=first)
        is_first = True

        def a_pass() -> Iterator[Block]:
            nonlocal is_first
            for block in blocks(matrix) if stored is None else stored.blocks():
                if is_first:
                    check.add(block)
                yield renumbered(block, place) if is_raw(cells, layer) else block
            if is_first:
                check.finish()
            is_first = False

        found = gene_variances(a_pass, codes, cells.n_vars, span=span)
        chosen, rank, _ = best_genes(found.standardised, n_top_genes)
        share = np.bincount(codes) / len(codes)
        mean = share @ found.mean
        n = len(codes)
        within = (np.bincount(codes) - 1) @ found.variance + np.bincount(codes) @ (found.mean - mean) ** 2
        values = (chosen, rank, mean, within / (n - 1), found.standardised.mean(0))
        for name, column in zip(COLUMNS, values, strict=True):
            cells.var[name] = column
    write_back(source, obsm=[], varm=[], uns=[], var=list(COLUMNS))


def _batches(adata: AnnData, key: str | None) -> np.ndarray:
    """Batch of each cell; a single batch without a key."""
    if key is None:
        if adata.n_obs < 2:
            raise ValueError("adata has a single cell, so genes have no variance; pass more cells")
        return np.zeros(adata.n_obs, np.int64)
    batch = categories_of(adata, key)
    codes = batch.codes(adata.obs[key])
    single = np.flatnonzero(np.bincount(codes) < 2)
    if len(single):
        name = batch.categories[single[0]]
        raise ValueError(f"adata.obs[{key!r}] has a single cell of {name!r}; merge or remove such batches")
    return codes
