"""The expected expression of cells, in memory or on disk: means over posterior draws, and intervals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.cells import Cells
from ..data.destinations import MEAN, Destination
from ..kernels.context import working_on
from ..kernels.team import in_order
from .decoding import Drawn, Target, expression, posterior_draws
from .fitted import FittedModel

ENDS = ("lower", "upper")
SORTED_TWICE = 3  # tables in memory per draw of an interval: the draw, and two while sorting


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Denoising:
    """What to denoise, and how; see `scvae.tl.denoise`."""

    columns: np.ndarray  # positions of the genes wanted among the modelled genes, in the order of the table
    target: Target
    n_samples: int
    interval: float | None
    threshold: float | None
    seed: int
    beta: float | None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tables."""
        return (MEAN,) if self.interval is None else (MEAN, *ENDS)


def denoised_into(destination: Destination, model: FittedModel, cells: Cells, request: Denoising) -> None:
    """Decodes all cells, chunk by chunk."""
    share = len(request.columns) / len(model.genes)
    n_tables = 1.0 if request.interval is None else 1.0 + SORTED_TWICE * request.n_samples * share
    draws = posterior_draws(
        model, cells, n_samples=request.n_samples, seed=request.seed, beta=request.beta, n_tables=n_tables
    )

    def of_chunk(drawn: Drawn) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        tables = expression(model, drawn, request.target)
        if request.interval is None:
            found = {MEAN: _mean(tables, len(drawn.z))}
        else:
            found = _with_interval(torch.stack(list(tables)), request.interval)
        return drawn.positions, {name: table.cpu().numpy() for name, table in found.items()}

    with torch.no_grad(), working_on(model.device):
        for positions, tables in in_order(of_chunk, draws, device=model.device):
            destination.add(positions, tables)


def _mean(draws: Iterator[Float[Tensor, "cells chosen"]], n: int) -> Float[Tensor, "cells chosen"]:
    total = next(draws)
    for draw in draws:
        total += draw
    return total / n


def _with_interval(draws: Float[Tensor, "draws cells chosen"], interval: float) -> dict[str, Tensor]:
    """Mean over draws, and the two quantiles that bound the interval."""
    ordered = draws.sort(dim=0).values
    ends = {}
    for name, probability in zip(ENDS, (0.5 - interval / 2, 0.5 + interval / 2), strict=True):
        place = probability * (len(draws) - 1)
        below = min(math.floor(place), len(draws) - 2)
        ends[name] = torch.lerp(ordered[below], ordered[below + 1], place - below)
    return {MEAN: draws.mean(0), **ends}


def scale_rows(counts: sp.csr_matrix, library_size: float, library: Float[np.ndarray, " cells"]) -> None:
    """Scales counts in place to a library size; those of a cell without counts in modelled genes become 0."""
    share = np.divide(library_size, library, out=np.zeros_like(library), where=library > 0)
    counts.data *= np.repeat(share, np.diff(counts.indptr))


def with_measured(
    denoised: Float[np.ndarray, "cells modelled"] | sp.csr_matrix, measured: sp.csr_matrix, others: np.ndarray
) -> Float[np.ndarray, "cells genes"] | sp.csr_matrix:
    """One table of all genes, from those denoised and the `others`; sparse where this takes less memory."""
    n_cells, n_genes = measured.shape[0], len(others)
    order = np.argsort(np.concatenate([np.flatnonzero(~others), np.flatnonzero(others)]))
    n_stored = measured.nnz + n_cells * (n_genes - measured.shape[1])
    if sp.issparse(denoised) or 2 * n_stored < n_cells * n_genes:  # each value is stored with its column
        table = sp.hstack([sp.csr_matrix(denoised), measured], format="csr")[:, order]
        table.sort_indices()
        return table
    table = np.empty((n_cells, n_genes), np.float32)
    table[:, ~others], table[:, others] = denoised, measured.toarray()
    return table
