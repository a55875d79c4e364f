"""`denoise`: the expected expression of each cell under a model."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ..common.checks import check_not_negative, check_positive, check_positive_int, plain
from ..common.keys import Keys, can_be_key
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of, write_made
from ..data.destinations import MEAN, Arrays, SparseMatrices, check_store, store
from ..data.intake import read_columns
from ..data.sources import Paths, are_paths, opened
from ..inference.cells import read_cells
from ..inference.decoding import Target, batch_codes, gene_positions
from ..inference.denoising import ENDS, Denoising, denoised_into, scale_rows, with_measured
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.views import check_view, facing
from ..kernels.context import computing
from ..likelihoods import BackgroundMixture, Bernoulli

if TYPE_CHECKING:
    from anndata import AnnData


@computing()
def denoise(
    adata: AnnData | Paths,
    model: FittedModel,
    *,
    genes: Sequence[str] | pd.Index | np.ndarray | None = None,
    all_genes: bool = False,
    library_size: float | Literal["observed"] | None = None,
    transform_batch: str | Sequence[str] | None = None,
    n_samples: int = 25,
    interval: float | None = None,
    threshold: float | None = None,
    path: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    view: str | None = None,
    also: Mapping[str, AnnData] | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
    copy: bool = False,
) -> AnnData | None:
    """Computes the expected expression of each cell, free of counting noise.

    This is the expected value E[ρ | x] of the proportions ρ = softmax(decoder(z, s)) under the posterior q(z | x),
    averaged over draws of z (Lopez et al. 2018, "Imputation"), at a library size of your choice. A gene with 0 counts
    in a cell gets its expected value in similar cells. The values are only as good as the model, and cells become more
    alike than they are: test for differences with `scvae.tl.rank_genes` or on the counts, not on denoised values
    (Andrews & Hemberg 2018).

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. Or files, as in `scvae.fit`: their values stay on
        disk, and the denoised values go to `path`.
    model
        A fitted model.
    genes
        Names of the genes to return, in this order; None for all modelled genes. Only these are kept, chunk by chunk,
        and for heads without a softmax (bernoulli, gaussian) only these are decoded.
    all_genes
        Whether to write a layer with every gene of `adata`: the modelled genes denoised, all others as measured. Their
        counts are scaled as the denoised values are: divided by the cell's library size and multiplied by
        `library_size`. Binary and real values stay as they are. Use it where a function needs a layer with any gene,
        e.g. ``sc.pl.umap(adata, color=genes, layer="scvae_denoised")``. Do not compare denoised with measured genes:
        only the latter have counting noise, and `transform_batch` does not move them. Not with `genes`, `interval` or
        `path`.
    library_size
        Counts: the total over the modelled genes that the values are scaled to; None for 1, which gives proportions.
        ``"observed"``: the cell's own library size (or size factor), which covers the genes measured; genes that
        `adata` lacks are added on top. Binary data: the depth at which to give each feature's probability; None for the
        (geometric) mean depth of the training cells. Not used for real values.
    transform_batch
        One of the model's batches, or several to average over: the expression expected had the cell been measured
        there. None for its own batch. Other covariates stay unchanged.
    n_samples
        Draws of z per cell; 0 decodes the posterior mean, which is faster and was about as close to the truth
        (benchmarks/denoise.py).
    interval
        A probability, e.g. 0.9: also write the bounds of the central interval that contains this share of the draws'
        expected values (quantiles, interpolated linearly between draws). It measures the uncertainty of the *expected*
        value that comes from knowing z only through one noisy profile. It is not an interval for counts, which have
        noise of their own (see `scvae.tl.sample`), and it treats the model's weights as known.
    threshold
        Drop values at or below it and build a sparse table (CSR), chunk by chunk. Interval bounds are kept where the
        expected value is kept. 0 or more; not for real values.
    path
        Folder for a zarr store that `anndata.read_zarr` reads: cells x genes wanted in `X` (compressed; sparse with a
        `threshold`), interval bounds in ``layers["lower"]`` and ``layers["upper"]``. It is written chunk by chunk and
        appears only when complete. `adata` is then not changed.
    overwrite
        Whether to replace an existing store at `path`.
    view
        For a model of several measurements, the name of the one to denoise (``"protein"``); None for the first. Genes
        are then its features, and z is drawn given all that a cell has. Cells that lack the view get expected values,
        too. With the likelihood ``"nb_mixture"``, values are expected counts of the foreground, without background.
    also
        As in `scvae.tl.embed`.
    beta
        For a model with a range of β, the β of posterior and decoder; None for 1 (if the range excludes 1, its
        geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    rng
        Seed or numpy Generator of the draws. The same seed gives a gene the same values whichever genes are requested.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. A table with exactly the genes of `adata` in their order is written as a layer; without
        `genes`, this is the case if the model has the same genes as `adata`, in any order, or with `all_genes`. Any
        other table goes to `obsm`. A table that an earlier call left in the other place is removed:

        ``layers["<key_added>_denoised"]``
            float32, cells x genes of `adata`; CSR with a `threshold`, and with `all_genes` if that takes less memory.
        ``obsm["<key_added>_denoised"]``
            float32 DataFrame, cells x genes wanted, with gene names as columns. With a `threshold` it is a CSR matrix,
            and if a gene has a "/" in its name, which files cannot hold in a column, an array; the gene names are then
            in ``uns["<key_added>"]["denoised"]["genes"]`` only.
        ``obsm["<key_added>_<view>_denoised"]``
            With a `view` other than the first: the same for its features, always in `obsm`; its settings are in
            ``uns["<key_added>"]["denoised_<view>"]``.
        ``…["<key_added>_denoised_lower"]``, ``…["<key_added>_denoised_upper"]``
            Bounds of the interval in the same form, if `interval` is given.
        ``uns["<key_added>"]["denoised"]``
            The settings: ``library_size``, ``transform_batch``, ``n_samples``, ``interval``, ``threshold``,
            ``beta``, ``seed`` and ``genes``, the names of the denoised genes.

    Raises
    ------
    ValueError
        As for `embed`; if the model does not know a gene or batch, or an argument is out of range or has no effect.
        `adata` is then unchanged.
    FileExistsError, FileNotFoundError
        If `path` exists or its parent folder does not.

    Notes
    -----
    ``"zinb"``: values are those of the negative binomial, before any count is lost to the additional zeros. They are
    taken for losses of the measurement, which are no expression; `scvae.tl.sample` draws them too.

    Without a table in memory (`path`, or `threshold`, or few `genes`), memory does not grow with cells x genes.

    A default fit stops when held-out *cells* gain no more; held-out molecules of the cells that it was fitted on gain
    for longer. A model made to denoise just these is better fitted to all of them: of about 2,000 to 3,000 cells,
    ``TrainingConfig(epochs=100, validation_fraction=0.0)`` gave 0.015 nats per molecule more (benchmarks/denoise.py,
    `scvae_long`).

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.denoise(adata, model)
    >>> adata.layers["scvae_denoised"].shape
    (200, 100)
    >>> scvae.tl.denoise(adata, model, genes=["gene_3", "gene_1"], library_size=10_000)
    >>> list(adata.obsm["scvae_denoised"])
    ['gene_3', 'gene_1']
    """
    check_model(model)
    check_without_skip(model, "scvae.tl.denoise")
    keys = Keys(key_added)
    interval = plain(interval)
    place = _checked_place(path, adata, overwrite=overwrite, copy=copy)
    turn, of_first = check_view(model, view), model
    model, view = facing(of_first, turn), None if turn is None else view
    if all_genes:
        _check_alone(genes=genes, interval=interval, path=path, view=view)
    schema = of_first.schema
    with opened(adata, schema.layer_of(layer), first=schema.name, slots=schema.slots) as source:
        cells_in = source.adata
        check_replaceable(cells_in.uns, keys)
        columns = _columns(cells_in, model, genes, all_genes=all_genes)
        request = Denoising(
            columns=columns,
            target=Target(
                genes=_chosen(columns, model),
                batches=() if transform_batch is None else batch_codes(model, transform_batch, "transform_batch"),
                library=_library(library_size, model),
            ),
            n_samples=_checked_samples(n_samples, interval),
            interval=interval,
            threshold=None if threshold is None else _checked_threshold(threshold, model),
            seed=seed_of(rng),
            beta=model.beta_of(beta),
        )
        cells = read_cells(cells_in, of_first, layer, source.matrix, also).turned(turn)
        wanted = model.genes[columns]
        if place is not None:
            with store(place, request.names, cells_in.obs_names, wanted, request.threshold) as on_disk:
                denoised_into(on_disk, model, cells, request)
            return None
        memory: Arrays | SparseMatrices = (
            Arrays(request.names, len(cells), len(wanted))
            if request.threshold is None
            else SparseMatrices(request.names, request.threshold)
        )
        denoised_into(memory, model, cells, request)
        tables: Mapping[str, Any] = memory.tables
        if all_genes and len(wanted) < cells_in.n_vars:
            others = ~cells_in.var_names.astype(str).isin(wanted)
            measured = read_columns(cells_in, schema.layer_of(layer), others)
            if schema.kind == "counts" and request.target.library is not None:
                scale_rows(measured, request.target.library, cells.library)
            tables = {MEAN: with_measured(tables[MEAN], measured, others)}
            wanted = cells_in.var_names.astype(str)
        target = target_of(cells_in, copy=copy)
        record = _record(model, request, library_size)
        layers, obsm = _places(target, keys, tables, wanted, view=view)
        write_made(
            target,
            keys,
            model.digest,
            layers=layers,
            obsm=obsm,
            record={keys.denoising if view is None else f"{keys.denoising}_{view}": record},
        )
    return target if copy else None


def _checked_place(path: str | os.PathLike[str] | None, adata: object, *, overwrite: bool, copy: bool) -> Path | None:
    """The store to write; None for `adata`."""
    place = None if path is None else check_store(path, overwrite=overwrite)
    if place is None and overwrite:
        raise ValueError("overwrite=True has no effect without path; leave it out")
    if place is not None and copy:
        raise ValueError("copy=True has no effect with path, because adata is not changed; leave it out")
    if place is None and are_paths(adata):
        raise ValueError(
            "denoised values are not written into the files; pass path='denoised.zarr', or pass an AnnData"
        )
    return place


def _columns(
    adata: AnnData, model: FittedModel, genes: Sequence[str] | pd.Index | np.ndarray | None, *, all_genes: bool
) -> np.ndarray:
    """Positions of the genes wanted: those named, or all modelled genes, in the order of `adata` if it has the same.

    With `all_genes` those that `adata` has, in its order.
    """
    if genes is not None:
        return gene_positions(model, genes, adata.var_names)
    columns: np.ndarray = model.genes.get_indexer(adata.var_names.astype(str))
    if all_genes:
        return columns[columns >= 0]
    return columns if _is_permutation(columns, len(model.genes)) else np.arange(len(model.genes))


def _check_alone(**others: object) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise ValueError(
            "all_genes=True writes a layer with every gene of adata, of which only the modelled ones have an interval; "
            f"leave out {' and '.join(given)}, or all_genes"
        )


def _places(
    adata: AnnData, keys: Keys, tables: Mapping[str, Any], wanted: pd.Index, view: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tables as layers if the genes are those of `adata`, else as obsm; None for those of earlier calls."""
    as_layers = view is None and wanted.equals(pd.Index(adata.var_names.astype(str)))
    names = keys.denoised_view(view)
    slots: dict[str, Any] = dict.fromkeys(names)
    nowhere = dict(slots)
    for name, table in tables.items():
        framed = isinstance(table, np.ndarray) and not as_layers and all(map(can_be_key, wanted))
        slot = names[(MEAN, *ENDS).index(name)]
        slots[slot] = pd.DataFrame(table, adata.obs_names, wanted, copy=False) if framed else table
    return (slots, nowhere) if as_layers else (nowhere, slots)


def _record(model: FittedModel, request: Denoising, library_size: object) -> dict[str, Any]:
    """The settings, in types that h5ad files can store."""
    known = model.schema.batch.categories if model.schema.batch else ()
    names = [known[code] for code in request.target.batches]
    return {
        "library_size": library_size if library_size == "observed" else request.target.library or "none",
        "transform_batch": np.array(names, dtype=str),
        "n_samples": request.n_samples,
        "interval": "none" if request.interval is None else request.interval,
        "threshold": "none" if request.threshold is None else request.threshold,
        "beta": request.beta,
        "seed": request.seed,
        "genes": np.array(model.genes[request.columns], dtype=str),
    }


def _is_permutation(columns: np.ndarray, n: int) -> bool:
    return np.array_equal(np.sort(columns), np.arange(n))


def _chosen(columns: np.ndarray, model: FittedModel) -> Tensor | None:
    """The columns on the device; None if they are all genes in the order of the model."""
    if np.array_equal(columns, np.arange(len(model.genes))):
        return None
    return torch.from_numpy(columns.astype(np.int64)).to(model.device)


def _library(library_size: object, model: FittedModel) -> float | None:
    """The library size to decode at; None for each cell's own."""
    head = model.network.likelihood
    if isinstance(head, BackgroundMixture):
        if library_size is not None:
            raise ValueError("library_size has no effect on counts with background ('nb_mixture'); leave it out")
        return None
    if model.schema.kind == "real":
        if library_size is not None:
            raise ValueError("library_size has no effect on real values (likelihood='gaussian'); leave it out")
        return None
    if isinstance(library_size, str):
        if library_size != "observed":
            raise ValueError(f"library_size is {library_size!r}; pass a number, 'observed', or leave it out")
        return None
    if library_size is not None:
        return check_positive(library_size, "library_size")
    return float(head.mean_log_depth.exp()) if isinstance(head, Bernoulli) else 1.0


def _checked_samples(n_samples: object, interval: float | None) -> int:
    """Checks `interval`, and that `n_samples` is large enough for it; returns `n_samples`."""
    n_samples = check_positive_int(n_samples, "n_samples", least=0)
    if interval is not None:
        if not 0 < check_not_negative(interval, "interval") < 1:
            raise ValueError(f"interval is {interval!r}; pass a probability between 0 and 1, e.g. 0.9")
        least = math.ceil(round(2 / (1 - interval), 6))
        if n_samples < least:
            raise ValueError(
                f"n_samples is {n_samples}, too few for the bounds of a {interval:g} interval; pass at least {least}"
            )
    return n_samples


def _checked_threshold(threshold: object, model: FittedModel) -> float:
    if model.schema.kind == "real":
        raise ValueError(
            "threshold is for counts and binary data, but the model is of real values (gaussian); leave it out"
        )
    return check_not_negative(threshold, "threshold")
