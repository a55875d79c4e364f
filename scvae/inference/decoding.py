"""Draws of the latent variables of cells, and their decoding for all or some genes, in any batch.

Call these functions within `torch.no_grad()` and `working_on(model.device)`. They work in chunks, so memory does not
grow with cells x genes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.checks import listing
from ..common.rng import numpy_generator
from ..data.batches import Batch
from ..data.cells import Cells
from ..likelihoods import Distribution
from .fitted import FittedModel
from .posterior import batches_of, posterior_of

NOISE = 50  # stream of the random numbers that draw the latent
NOISE_BLOCK = 16  # cells that share a generator, so that draws do not depend on the size of the chunks
TABLE = 2**20  # cells x genes of one decoded table, 4 MB
CATEGORIES_LISTED = 20


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Drawn:
    """Some cells and draws of their latent variables.

    Parameters
    ----------
    positions
        Positions of the cells.
    batch
        The cells, on the device of the model, at the requested β.
    z
        Draws from the posterior q(z | x) of each cell; the posterior mean alone if no draws were requested.
    """

    positions: Int[np.ndarray, " cells"]
    batch: Batch
    z: Float[Tensor, "draws cells latent"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Target:
    """The genes, batches and library size for which cells are decoded.

    Parameters
    ----------
    genes
        Positions among the model's genes; None for all genes.
    batches
        Codes of the batches in which every cell is decoded, one after the other; empty for each cell's own batch.
    library
        Library size (for binary data: depth) of all cells; None for each cell's own.
    """

    genes: Int[Tensor, " chosen"] | None = None
    batches: tuple[int, ...] = ()
    library: float | None = None


def posterior_draws(
    model: FittedModel, cells: Cells, *, n_samples: int, seed: int, beta: float | None = None, n_tables: float = 1.0
) -> Iterator[Drawn]:
    """Draws of the latent variables of all cells, in order and in chunks.

    Parameters
    ----------
    model
        A fitted model.
    cells
        Cells as `read_query` returns them.
    n_samples
        Number of draws per cell; 0 for the posterior mean.
    seed
        Seed of the draws. Those of a cell depend on the seed, the position of the cell and `n_samples` only.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    n_tables
        Number of tables (chunk x modelled genes) held in memory at a time; more tables make the chunks smaller.
    """
    blocks = int(TABLE / (cells.rows.n_genes * n_tables)) // NOISE_BLOCK
    for positions, batch in batches_of(model, cells, NOISE_BLOCK * max(1, blocks), beta=beta):
        posterior = posterior_of(model, batch, beta=beta)
        z = posterior.mean[None]
        if n_samples:
            noise = posterior_noise(positions, n_samples, model.n_latent, seed)
            z = posterior.reparameterize(torch.from_numpy(noise).to(z.device))
        yield Drawn(positions=positions, batch=batch, z=z)


def posterior_noise(
    positions: Int[np.ndarray, " cells"], n_samples: int, n_latent: int, seed: int
) -> Float[np.ndarray, "draws cells latent"]:
    """Standard normal noise of consecutive cells; the first position must be a multiple of `NOISE_BLOCK`."""
    shape = (n_samples, NOISE_BLOCK, n_latent)
    blocks = range(int(positions[0]) // NOISE_BLOCK, int(positions[-1]) // NOISE_BLOCK + 1)
    noise = [numpy_generator(seed, NOISE, block).standard_normal(shape, np.float32) for block in blocks]
    return np.concatenate(noise, axis=1)[:, : len(positions)]


def decode(
    model: FittedModel, z: Float[Tensor, "cells latent"], batch: Batch, genes: Int[Tensor, " chosen"] | None = None
) -> Distribution:
    """p(x | z, s) of some genes, or of all genes of the model, measured or not: a dense table."""
    features = model.network.features(z, batch)
    return model.network.likelihood.distribution(features, model.network.whole(features, batch), genes)


def expression(model: FittedModel, drawn: Drawn, target: Target) -> Iterator[Float[Tensor, "cells chosen"]]:
    """Expected values of each draw, averaged over the batches of `target` (see `Likelihood.expected`)."""
    network, batches = model.network, placed(drawn.batch, target)

    def expected(z: Float[Tensor, "cells latent"], batch: Batch) -> Float[Tensor, "cells chosen"]:
        features = network.features(z, batch)
        batch = network.whole(features, batch) if target.library is None else batch
        return network.likelihood.expected(features, batch, target.genes)

    for z in drawn.z:
        total = expected(z, batches[0])
        for batch in batches[1:]:
            total = total + expected(z, batch)
        yield total / len(batches)


def placed(batch: Batch, target: Target) -> list[Batch]:
    """The cells in each batch of `target`, with the library size of `target`."""
    if target.library is not None:
        batch = dataclasses.replace(batch, library=torch.full_like(batch.library, target.library))
    return [_in_batch(batch, code) for code in target.batches] or [batch]


def gene_positions(
    model: FittedModel, genes: Sequence[str] | pd.Index | np.ndarray, measured: pd.Index
) -> Int[np.ndarray, " chosen"]:
    """Positions of the given genes among the model's genes; `measured` are the genes of the cells at hand.

    Raises
    ------
    ValueError
        If `genes` is empty, names a gene twice or names one that the model does not have; the message tells genes
        outside the mask of the fit from others.
    TypeError
        If `genes` is a single string or not a list.
    """
    if isinstance(genes, str):
        raise TypeError(f"genes is the string {genes!r}; pass a list of names, e.g. [{genes!r}]")
    if not isinstance(genes, Iterable):
        raise TypeError(f"genes is {genes!r}; pass a list of names, e.g. {[str(model.genes[0])]}")
    names = pd.Index([str(gene) for gene in genes], dtype=object)
    if len(names) == 0:
        raise ValueError("genes is empty; pass at least one gene, or leave it out for all genes")
    twice = names[names.duplicated()].unique()
    if len(twice):
        raise ValueError(f"genes names {listing(twice)} more than once; name each gene once")
    found = model.genes.get_indexer(names)
    unknown, outside = names[found < 0], names[(found < 0) & names.isin(measured.astype(str))]
    if len(unknown) > len(outside):
        raise ValueError(
            f"genes has {listing(unknown.drop(outside))}, unknown to the model; choose among its {len(model.genes):,} "
            "genes, listed in model.genes"
        )
    if len(outside):
        raise ValueError(
            f"genes has {listing(outside)}, in adata but not modelled: the model has {len(model.genes):,} genes, those "
            "in the mask_var of its fit (by default var['highly_variable']) with counts. Fit with a mask_var that has "
            "them, too, or pass all_genes=True for a layer in which genes that are not modelled are as measured"
        )
    positions: Int[np.ndarray, " chosen"] = found.astype(np.int64)
    return positions


def batch_codes(model: FittedModel, names: Any, argument: str) -> tuple[int, ...]:
    """Codes of one or several batches of the model.

    Raises
    ------
    ValueError
        If the model has no batches, or if `names` is empty, repeats a batch or has one that the model does not know.
    """
    column = model.schema.batch
    if column is None:
        raise ValueError(f"{argument} has no effect: the model was fitted without batch_key; leave it out")
    several = isinstance(names, Iterable) and not isinstance(names, str)
    chosen = pd.Series(list(names) if several else [names], dtype=object)
    codes = column.codes(chosen)
    unknown = chosen[codes < 0]
    if len(unknown):
        raise ValueError(
            f"{argument} has {listing(unknown)}, unknown to the model; the batches of {column.key!r} are "
            f"{listing(column.categories, CATEGORIES_LISTED)}"
        )
    if len(codes) == 0 or len(set(codes)) < len(codes):
        raise ValueError(f"{argument} names {listing(chosen)}; name one or several batches, each once")
    return tuple(codes.tolist())


def _in_batch(batch: Batch, code: int) -> Batch:
    codes = batch.codes.clone()
    codes[:, 0] = code
    return dataclasses.replace(batch, codes=codes)
