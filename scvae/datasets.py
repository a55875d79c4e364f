"""Data to try things on: real counts that come with the package, and cells drawn from the model itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import anndata
import numpy as np
import pandas as pd
from anndata import AnnData
from numpy.typing import NDArray
from scipy import sparse

from ._checks import check_not_negative, check_positive, check_positive_int, check_probability
from ._rng import SeedLike, numpy_generator, seed_of

__all__ = ["pbmc3k", "simulate"]

Head = Literal["nb", "zinb", "poisson", "gaussian", "bernoulli"]
Floats = NDArray[np.float32]

WIDTH = 128  # hidden units of the random decoder
BLOCK = 2_000_000  # cells x genes held at a time while drawing
SCALE_SD = 0.3  # standard deviation of the log scale of a Gaussian head over genes
# E[relu(u)] and Var[relu(u)] for u ~ N(0, 1), by which the decoder's output is centred and scaled
RELU_MEAN = 1 / np.sqrt(2 * np.pi)
RELU_VARIANCE = 0.5 - 1 / (2 * np.pi)
# one random stream a purpose, so that a change to one leaves the others alone
TYPES, BATCHES, LATENT, DECODER, LIBRARY, GENES, VALUES = range(7)
CHECKS: dict[str, Callable[[object, str], float]] = {
    "n_cells": check_positive_int,
    "n_genes": check_positive_int,
    "n_latent": check_positive_int,
    "n_types": check_positive_int,
    "n_batches": check_positive_int,
    "mean_library": check_positive,
    "library_sd": check_not_negative,
    "type_share": check_probability,
    "signal": check_not_negative,
    "expression_sd": check_not_negative,
    "batch_effect": check_not_negative,
    "inverse_dispersion": check_positive,
    "inverse_dispersion_sd": check_not_negative,
    "zero_probability": check_probability,
    "noise": check_positive,
}


def pbmc3k() -> AnnData:
    """3k peripheral blood mononuclear cells from a healthy donor (10x Genomics, CC BY 4.0).

    The file comes with the package; nothing is downloaded.

    Returns
    -------
    AnnData
        2,700 cells x 32,738 genes. Slots: `X` raw counts (CSR, float32); `obs["cell_type"]` nine labels, from
        a clustering, one of them "unlabelled" (62 cells); `var["gene_ids"]` Ensembl identifiers.

    Raises
    ------
    FileNotFoundError
        If the file did not come along with the package.

    References
    ----------
    https://www.10xgenomics.com/datasets/3-k-pbm-cs-from-a-healthy-donor-1-standard-1-1-0

    Examples
    --------
    >>> adata = scvae.datasets.pbmc3k()
    >>> adata.shape
    (2700, 32738)
    """
    adata = anndata.read_h5ad(_bundled("pbmc3k.h5ad"))
    adata.X = sparse.csr_matrix(adata.X, dtype=np.float32)
    return adata


def simulate(
    *,
    n_cells: int = 1000,
    n_genes: int = 500,
    n_latent: int = 5,
    n_types: int = 5,
    n_batches: int = 1,
    likelihood: Head = "nb",
    mean_library: float = 1000.0,
    library_sd: float = 0.3,
    type_share: float = 0.7,
    signal: float = 0.7,
    expression_sd: float = 1.5,
    batch_effect: float = 0.3,
    inverse_dispersion: float = 3.0,
    inverse_dispersion_sd: float = 0.5,
    zero_probability: float = 0.1,
    noise: float = 0.5,
    truth: bool = True,
    rng: SeedLike = 0,
) -> AnnData:
    r"""Cells drawn from the model itself, with everything that made them on record.

    .. math::
        z_i \sim N(0, I), \quad
        f_{ig} = b_g + B_{s_i g} + \sum_h W_{hg}\, \mathrm{relu}(a_h + \sum_k z_{ik} V_{kh}), \quad
        \rho_i = \mathrm{softmax}(f_i)

    and with library l: ``nb`` is NB(mean l rho, inverse dispersion theta), ``zinb`` the same with extra zeros,
    ``poisson`` is Poisson(l rho), ``bernoulli`` is 1 with odds l rho, and ``gaussian`` is N(f, scale^2).

    With several types, z is a mixture: the centres of types are drawn from N(0, type_share I) and the cells of a type
    spread around theirs with variance 1 - type_share, so that z still has the model's prior on average over centres.
    Types and batches are of equal size (to one cell) and independent of each other.

    Parameters
    ----------
    n_cells, n_genes
        Size of the data.
    n_latent
        Dimensions of z.
    n_types, n_batches
        Cell types and batches; 1 for none.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"gaussian"`` or ``"bernoulli"``.
    mean_library, library_sd
        Mean over cells of the library (counts per cell), which is log-normal, and standard deviation of its log.
        Fewer counts, or more genes, give more zeros.
    type_share
        Share of the variance of z that lies between types, in [0, 1].
    signal
        Standard deviation over cells of a gene's f, in nats.
    expression_sd
        Standard deviation over genes of the baseline b, in nats; a larger one gives more zeros.
    batch_effect
        Standard deviation over genes of the offset B of a batch, in nats.
    inverse_dispersion, inverse_dispersion_sd
        Median over genes of theta, which is log-normal, and standard deviation of its log.
    zero_probability
        Probability of an extra zero (``"zinb"``).
    noise
        Median over genes of the scale (``"gaussian"``); its log has standard deviation 0.3.
    truth
        Store the proportions (for ``"gaussian"`` the means) of all cells and genes. With False no cells x genes array
        is ever made, except the data of ``"gaussian"``.
    rng
        Seed or numpy Generator. The same seed gives the same bytes on the same machine.

    Returns
    -------
    AnnData
        cells x genes. Slots: `X` (CSR float32; ``"gaussian"``: dense float32); `obsm["z"]` (cells x n_latent);
        `obs["cell_type"]` and `obs["batch"]` (categorical); `obs["library"]` (not for ``"gaussian"``);
        `var["inverse_dispersion"]` (``"nb"``, ``"zinb"``) or `var["scale"]` (``"gaussian"``);
        `layers["rho"]`, or `layers["mean"]` for ``"gaussian"``, if `truth`; `uns["simulation"]` with all parameters,
        the seed, `type_centres`, and under `decoder` the weights V, a, W, b and B of the formula as `hidden_weight`,
        `hidden_bias`, `output_weight`, `output_bias` and `batch_offset`.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of range.

    Examples
    --------
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=50, n_batches=2, rng=1)
    >>> adata.layers["rho"].shape
    (200, 50)
    """
    if likelihood not in get_args(Head):
        raise ValueError(f"likelihood is {likelihood!r}; pass one of {', '.join(map(repr, get_args(Head)))}")
    given = locals()
    parameters = {name: check(given[name], name) for name, check in CHECKS.items()}

    seed = seed_of(rng)
    stream = partial(numpy_generator, seed)
    types, batches = _codes(n_cells, n_types, stream(TYPES)), _codes(n_cells, n_batches, stream(BATCHES))
    centres = stream(LATENT, 0).normal(0, np.sqrt(type_share), (n_types, n_latent)).astype(np.float32)
    z = _latent(types, centres, type_share, stream(LATENT, 1))
    decoder = _Decoder.draw(n_latent, n_genes, n_batches, signal, expression_sd, batch_effect, stream(DECODER))
    adata = AnnData(
        obs=pd.DataFrame(
            {"cell_type": _categories("type", types, n_types), "batch": _categories("batch", batches, n_batches)},
            index=[f"cell_{i}" for i in range(n_cells)],
        ),
        var=pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)]),
        obsm={"z": z},
    )
    kept = np.empty((n_cells, n_genes), np.float32) if truth else None
    if likelihood == "gaussian":
        scale = _log_normal(noise, SCALE_SD, n_genes, stream(GENES))
        adata.X = _draw_gaussian(decoder, z, batches, scale, kept, stream)
        adata.var["scale"] = scale
    else:
        theta = _log_normal(inverse_dispersion, inverse_dispersion_sd, n_genes, stream(GENES))
        median = mean_library * np.exp(-(library_sd**2) / 2)
        library = _log_normal(median, library_sd, n_cells, stream(LIBRARY))
        law = _count_law(likelihood, theta, zero_probability)
        adata.X = _draw_counts(law, decoder, z, batches, library, kept, stream)
        adata.obs["library"] = library
        if law.inverse_dispersion is not None:
            adata.var["inverse_dispersion"] = theta
    if kept is not None:
        adata.layers["mean" if likelihood == "gaussian" else "rho"] = kept
    adata.uns["simulation"] = parameters | {
        "likelihood": likelihood,
        "seed": seed,
        "type_centres": centres,
        "decoder": asdict(decoder),
    }
    return adata


@dataclass(frozen=True, eq=False, slots=True)
class _Decoder:
    """One hidden layer of relu units and an offset per batch, from z to f of each gene."""

    hidden_weight: Floats  # latent x width
    hidden_bias: Floats  # width
    output_weight: Floats  # width x genes
    output_bias: Floats  # genes
    batch_offset: Floats  # batches x genes

    @classmethod
    def draw(
        cls,
        n_latent: int,
        n_genes: int,
        n_batches: int,
        signal: float,
        expression_sd: float,
        batch_effect: float,
        rng: np.random.Generator,
    ) -> _Decoder:
        """Random weights such that over z ~ N(0, I) a gene's f has mean `output_bias` as drawn and sd `signal`."""

        def normal(sd: float, *shape: int) -> Floats:
            return (sd * rng.standard_normal(shape, np.float32)).astype(np.float32)

        # each hidden unit sees N(0, 1): a direction of unit length
        hidden = normal(1.0, n_latent, WIDTH)
        hidden /= np.linalg.norm(hidden, axis=0)
        output = normal(signal / np.sqrt(WIDTH * RELU_VARIANCE), WIDTH, n_genes)
        bias = normal(expression_sd, n_genes) - np.float32(RELU_MEAN) * output.sum(0)
        offset = normal(batch_effect if n_batches > 1 else 0.0, n_batches, n_genes)
        return cls(hidden, np.zeros(WIDTH, np.float32), output, bias, offset)

    def __call__(self, z: Floats, batches: NDArray[np.int64]) -> Floats:
        """f, cells x genes."""
        features = np.maximum(z @ self.hidden_weight + self.hidden_bias, 0)
        f: Floats = features @ self.output_weight
        f += self.output_bias
        if len(self.batch_offset) > 1:
            f += self.batch_offset[batches]
        return f


@dataclass(frozen=True, eq=False, slots=True)
class _CountLaw:
    """Counts with a given mean, drawn at a cost that follows the non-zeros.

    Every law here is a Poisson number of clusters of counts: of size 1 for the Poisson law, of logarithmic size for the
    negative binomial (Quenouille 1949), and "any cluster at all" for the Bernoulli law, whose odds are the mean. So a
    block of cells needs one Poisson number for all its clusters, which then fall on cells and genes by their rates.
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


def _count_law(likelihood: Head, theta: Floats, zero_probability: float) -> _CountLaw:
    laws = {
        "nb": _CountLaw(theta),
        "zinb": _CountLaw(theta, zero_probability),
        "poisson": _CountLaw(None),
        "bernoulli": _CountLaw(None, binary=True),
    }
    return laws[likelihood]


def _draw_counts(
    law: _CountLaw,
    decoder: _Decoder,
    z: Floats,
    batches: NDArray[np.int64],
    library: Floats,
    kept: Floats | None,
    stream: Callable[..., np.random.Generator],
) -> sparse.csr_matrix:
    """Counts of all cells, block by block; the proportions go to `kept`."""
    drawn = []
    for number, rows in enumerate(_blocks(len(z), len(decoder.output_bias))):
        rho = decoder(z[rows], batches[rows])
        rho -= rho.max(1, keepdims=True)
        np.exp(rho, out=rho)
        rho /= rho.sum(1, keepdims=True)
        if kept is not None:
            kept[rows] = rho
        rho *= library[rows, None]
        drawn.append(law.draw(rho, stream(VALUES, number)))
    return sparse.vstack(drawn, format="csr")


def _draw_gaussian(
    decoder: _Decoder,
    z: Floats,
    batches: NDArray[np.int64],
    scale: Floats,
    kept: Floats | None,
    stream: Callable[..., np.random.Generator],
) -> Floats:
    """Values of all cells, block by block; the means go to `kept`."""
    values = np.empty((len(z), len(scale)), np.float32)
    for number, rows in enumerate(_blocks(*values.shape)):
        mean = decoder(z[rows], batches[rows])
        if kept is not None:
            kept[rows] = mean
        values[rows] = mean + scale * stream(VALUES, number).standard_normal(mean.shape, np.float32)
    return values


def _blocks(n_cells: int, n_genes: int) -> list[slice]:
    size = max(1, BLOCK // n_genes)
    return [slice(start, min(start + size, n_cells)) for start in range(0, n_cells, size)]


def _codes(n_cells: int, n_groups: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Group of each cell: groups of equal size (to one cell), in random order."""
    return rng.permutation(np.arange(n_cells, dtype=np.int64) % n_groups)


def _categories(name: str, codes: NDArray[np.int64], n_groups: int) -> pd.Categorical:
    return pd.Categorical.from_codes(codes, [f"{name}_{k}" for k in range(n_groups)])


def _latent(types: NDArray[np.int64], centres: Floats, share: float, rng: np.random.Generator) -> Floats:
    """The z of each cell: the centre of its type and a spread around it; without types, N(0, I)."""
    z = rng.standard_normal((len(types), centres.shape[1]), np.float32)
    if len(centres) > 1:
        z *= np.float32(np.sqrt(1 - share))
        z += centres[types]
    return z


def _log_normal(median: float, sd: float, size: int, rng: np.random.Generator) -> Floats:
    values: Floats = (median * np.exp(sd * rng.standard_normal(size))).astype(np.float32)
    return values


def _bundled(name: str) -> Path:
    """A file of the package's data: inside an installed wheel, or beside the package in its repository."""
    package = Path(__file__).parent
    places = [package / "_bundled" / name, package.parent / "data" / name]
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError(f"{name} is neither at {places[0]} nor at {places[1]}; install scvae-torch again")
