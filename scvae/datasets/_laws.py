"""Distributions of the simulated values, drawn block by block from the decoder's output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy import sparse

from ._decoder import Decoder
from ._random import Codes, Floats, Stream, Streams

Head = Literal["nb", "zinb", "poisson", "gaussian", "bernoulli"]

BLOCK = 2_000_000  # cells x genes in memory while drawing


@dataclass(frozen=True, eq=False, slots=True)
class CountLaw:
    """Counts with a given mean, drawn at a cost proportional to the number of non-zeros.

    Every distribution here is a Poisson number of clusters of counts: clusters of size 1 for the Poisson distribution,
    of logarithmic size for the negative binomial (Quenouille 1949), and "at least one cluster" for the Bernoulli
    distribution, whose odds are the mean. A block of cells thus needs one Poisson number for all its clusters, which
    are then assigned to cells and genes in proportion to their rates.
    """

    inverse_dispersion: Floats | None  # genes; None: no overdispersion
    zero_probability: float = 0.0
    binary: bool = False

    def draw(self, mean: Floats, rng: np.random.Generator) -> sparse.csr_matrix:
        """One draw of each entry of `mean` (cells x genes)."""
        theta = self.inverse_dispersion
        rate = mean if theta is None else theta * np.log1p(mean / theta)
        if self.binary:
            rate = np.log1p(mean)
        cumulative = np.cumsum(rate.ravel(), dtype=np.float64)
        total = cumulative[-1]
        spots = np.sort(rng.random(rng.poisson(total))) * total
        where = np.minimum(np.searchsorted(cumulative, spots, side="right"), rate.size - 1)
        entries, first = np.unique(where, return_index=True)
        counts = np.ones(len(where), np.float32)
        if theta is not None:
            at = mean.ravel()[where].astype(np.float64)
            counts = rng.logseries(at / (at + theta[where % len(theta)])).astype(np.float32)
        counts = np.add.reduceat(counts, first) if len(first) else counts
        if self.binary:
            counts.fill(1)
        if self.zero_probability > 0:
            kept = rng.random(len(entries)) >= self.zero_probability
            entries, counts = entries[kept], counts[kept]
        rows, columns = np.divmod(entries, mean.shape[1])
        indptr = np.searchsorted(rows, np.arange(len(mean) + 1))
        return sparse.csr_matrix((counts, columns.astype(np.int32), indptr), shape=mean.shape)


def count_law(likelihood: Head, theta: Floats, zero_probability: float) -> CountLaw:
    """The distribution of a head's counts; `theta` is the inverse dispersion of each gene, if the head has one."""
    laws = {
        "nb": CountLaw(theta),
        "zinb": CountLaw(theta, zero_probability),
        "poisson": CountLaw(None),
        "bernoulli": CountLaw(None, binary=True),
    }
    return laws[likelihood]


def draw_counts(
    law: CountLaw,
    decoder: Decoder,
    z: Floats,
    batches: Codes,
    library: Floats,
    kept: Floats | None,
    stream: Streams,
) -> sparse.csr_matrix:
    """Draws the counts of all cells, block by block; stores the proportions in `kept`."""
    drawn = []
    for number, rows in enumerate(_blocks(len(z), len(decoder.output_bias))):
        rho = decoder(z[rows], batches[rows])
        rho -= rho.max(1, keepdims=True)
        np.exp(rho, out=rho)
        rho /= rho.sum(1, keepdims=True)
        if kept is not None:
            kept[rows] = rho
        rho *= library[rows, None]
        drawn.append(law.draw(rho, stream(Stream.VALUES, number)))
    return sparse.vstack(drawn, format="csr")


def draw_gaussian(
    decoder: Decoder,
    z: Floats,
    batches: Codes,
    scale: Floats,
    kept: Floats | None,
    stream: Streams,
) -> Floats:
    """Draws the values of all cells, block by block; stores the means in `kept`."""
    values = np.empty((len(z), len(scale)), np.float32)
    for number, rows in enumerate(_blocks(*values.shape)):
        mean = decoder(z[rows], batches[rows])
        if kept is not None:
            kept[rows] = mean
        values[rows] = mean + scale * stream(Stream.VALUES, number).standard_normal(mean.shape, np.float32)
    return values


def _blocks(n_cells: int, n_genes: int) -> list[slice]:
    size = max(1, BLOCK // n_genes)
    return [slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]
