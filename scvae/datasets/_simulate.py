"""`simulate`: cells simulated from a random model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, get_args

import numpy as np
import pandas as pd
from anndata import AnnData

from ..common.checks import check_bool, check_not_negative, check_positive, check_positive_int, check_probability
from ..common.rng import SeedLike, numpy_generator, seed_of
from ._cells import Cells, cells_of_types, cells_on_branches
from ._decoder import Decoder
from ._laws import Head, count_law, draw_counts, draw_gaussian
from ._proteins import add_proteins
from ._random import Codes, Stream, Streams, equal_groups, log_normal, numbered

N_TYPES = 5
SCALE_SD = 0.3  # standard deviation of the log scale of a Gaussian head over genes
CHECKS: dict[str, Callable[[object, str], float]] = {
    "n_cells": check_positive_int,
    "n_genes": check_positive_int,
    "n_latent": check_positive_int,
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
OPTIONAL = ("n_types", "n_branches", "n_proteins")  # positive integers, or None


def simulate(
    *,
    n_cells: int = 1000,
    n_genes: int = 500,
    n_latent: int = 5,
    n_types: int | None = None,
    n_branches: int | None = None,
    n_batches: int = 1,
    n_proteins: int | None = None,
    programs: bool = False,
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
    r"""Simulates cells from a random model and stores the ground truth with them.

    .. math::
        z_i \sim N(0, I), \quad
        f_{ig} = b_g + B_{s_i g} + \sum_h W_{hg}\, \mathrm{relu}(a_h + \sum_k z_{ik} V_{kh}), \quad
        \rho_i = \mathrm{softmax}(f_i)

    With library size l, ``nb`` is NB(mean l rho, inverse dispersion theta), ``zinb`` the same with extra zeros,
    ``poisson`` is Poisson(l rho), ``bernoulli`` is 1 with odds l rho, and ``gaussian`` is N(f, scale^2).

    With several types, z is a mixture: the centres of types are drawn from N(0, type_share I), and the cells of a type
    vary around their centre with variance 1 - type_share, so that z still follows the model's prior on average over
    centres. Types and batches have equal sizes (within one cell) and are independent of each other.

    With branches, cells follow a trunk that splits at pseudotime 0.5; pseudotime is uniform in [0, 1]. The tips of
    trunk and branches are equally far from each other, and cells vary around the path with variance 1 - type_share in
    every direction. The variance of z is again 1 on average over dimensions, but larger along the branches.

    With proteins, cells are also stained with antibodies, as in CITE-seq. Each protein is carried by 10 to 60 % of the
    cells, chosen by a threshold on a nonlinear function of z, and adds foreground to the background of every cell.
    Counts are NB(mean = size x offset of the batch x (background + carried x foreground), inverse dispersion 10).

    Apart from the gene data, each part depends only on the seed and its own arguments: the same `n_cells`, `n_latent`,
    `n_types` or `n_branches`, `n_batches`, `type_share` and seed give the same cells. A second call with
    ``likelihood="bernoulli"`` and other genes thus simulates the accessible peaks of the cells of the first.

    Parameters
    ----------
    n_cells, n_genes
        Numbers of cells and genes.
    n_latent
        Number of dimensions of z.
    n_types
        Number of cell types; 1 for no types. None for 5, or for no types if there are branches.
    n_branches
        Number of branches into which a trajectory splits, at most `n_latent`; 1 for a single line; None for cell types
        instead of a trajectory.
    n_batches
        Number of batches; 1 for no batch effect.
    n_proteins
        Number of surface proteins to simulate in the same cells; None for none.
    programs
        Whether each gene depends on one dimension of z alone, its programme; with ``n_types=1``, programmes are
        independent of each other. The first has n_latent times as many genes as the last.
    likelihood
        ``"nb"``, ``"zinb"``, ``"poisson"``, ``"gaussian"`` or ``"bernoulli"``.
    mean_library, library_sd
        Mean over cells of the library size (counts per cell), which is log-normal, and standard deviation of its log.
        Fewer counts, or more genes, give more zeros.
    type_share
        Share of the variance of z that is between types, or along branches, in [0, 1].
    signal
        Standard deviation over cells of a gene's f, in nats.
    expression_sd
        Standard deviation over genes of the baseline b, in nats; a larger one gives more zeros.
    batch_effect
        Standard deviation over genes (and proteins) of the offset B of a batch, in nats.
    inverse_dispersion, inverse_dispersion_sd
        Median over genes of theta, which is log-normal, and standard deviation of its log.
    zero_probability
        Probability of an extra zero (``"zinb"``).
    noise
        Median over genes of the scale (``"gaussian"``); its log has standard deviation 0.3.
    truth
        Whether to store the proportions (for ``"gaussian"`` the means) of all cells and genes. With False no dense
        cells x genes array is created, except the data of ``"gaussian"``.
    rng
        Seed or numpy Generator. The same seed gives the same bytes on the same machine.

    Returns
    -------
    AnnData
        cells x genes. Slots: `X` (CSR float32; ``"gaussian"``: dense float32); `obsm["z"]` (cells x n_latent);
        `obs["cell_type"]` and `obs["batch"]` (categorical); `obs["library"]` (not for ``"gaussian"``);
        `var["program"]` (dimension of z of each gene), if `programs`;
        `var["inverse_dispersion"]` (``"nb"``, ``"zinb"``) or `var["scale"]` (``"gaussian"``);
        `layers["rho"]`, or `layers["mean"]` for ``"gaussian"``, if `truth`; `uns["simulation"]` with all parameters,
        the seed, `type_centres`, and under `decoder` the weights V, a, W, b and B of the formula as `hidden_weight`,
        `hidden_bias`, `output_weight`, `output_bias` and `batch_offset`.

        With branches, instead of types: `obs["branch"]` ("trunk", "branch_0", …); `obs["pseudotime"]`; `uns["iroot"]`
        (index of the cell with the smallest pseudotime, used by `scanpy.tl.dpt`); and
        `uns["simulation"]["branch_tips"]` (trunk and branches x n_latent).

        With proteins: `obsm["protein"]` (counts), `obsm["protein_mean"]` (their expected values) and
        `obsm["protein_foreground"]` (share of the means that is foreground), each a float32 table, cells x n_proteins.

    Raises
    ------
    TypeError, ValueError
        If an argument has a wrong type or is out of range, or both `n_types` and `n_branches` are given.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=50, n_batches=2, rng=1)
    >>> adata.layers["rho"].shape
    (200, 50)
    >>> cells = scvae.datasets.simulate(n_cells=200, n_branches=2, n_proteins=10, rng=1)
    >>> cells.obsm["protein"].shape
    (200, 10)
    """
    parameters = _checked(locals())
    seed = seed_of(rng)
    stream = partial(numpy_generator, seed)
    batches = equal_groups(n_cells, n_batches, stream(Stream.BATCHES))
    cells = _cells(n_cells, n_latent, n_types, n_branches, type_share, stream)
    of_genes = _programs(n_latent, n_genes) if programs else None
    decoder = Decoder.draw(
        *(n_latent, n_genes, n_batches, signal, expression_sd, batch_effect, stream(Stream.DECODER)), programs=of_genes
    )
    adata = AnnData(
        obs=pd.DataFrame(
            cells.obs | {"batch": numbered("batch", batches, n_batches)}, index=[f"cell_{i}" for i in range(n_cells)]
        ),
        var=pd.DataFrame(index=[f"gene_{g}" for g in range(n_genes)]),
        obsm={"z": cells.z},
        uns=cells.uns,
    )
    if of_genes is not None:
        adata.var["program"] = of_genes
    kept = np.empty((n_cells, n_genes), np.float32) if truth else None
    if likelihood == "gaussian":
        scale = log_normal(noise, SCALE_SD, n_genes, stream(Stream.GENES))
        adata.X = draw_gaussian(decoder, cells.z, batches, scale, kept, stream)
        adata.var["scale"] = scale
    else:
        theta = log_normal(inverse_dispersion, inverse_dispersion_sd, n_genes, stream(Stream.GENES))
        median = mean_library * np.exp(-(library_sd**2) / 2)
        library = log_normal(median, library_sd, n_cells, stream(Stream.LIBRARY))
        law = count_law(likelihood, theta, zero_probability)
        adata.X = draw_counts(law, decoder, cells.z, batches, library, kept, stream)
        adata.obs["library"] = library
        if law.inverse_dispersion is not None:
            adata.var["inverse_dispersion"] = theta
    if kept is not None:
        adata.layers["mean" if likelihood == "gaussian" else "rho"] = kept
    if n_proteins is not None:
        add_proteins(adata, n_proteins, batches, n_batches, batch_effect, stream)
    adata.uns["simulation"] = parameters | cells.recorded | {"seed": seed, "decoder": asdict(decoder)}
    return adata


def _programs(n_latent: int, n_genes: int) -> Codes:
    """The dimension of z of each gene."""
    round_of = np.repeat(np.arange(n_latent), np.arange(n_latent, 0, -1))
    return np.resize(round_of, n_genes)


def _checked(given: dict[str, Any]) -> dict[str, Any]:
    """The checked arguments as they are recorded, without those that are None."""
    heads = get_args(Head)
    if given["likelihood"] not in heads:
        raise ValueError(f"likelihood is {given['likelihood']!r}; pass one of {', '.join(map(repr, heads))}")
    parameters: dict[str, Any] = {name: check(given[name], name) for name, check in CHECKS.items()}
    parameters |= {name: check_positive_int(given[name], name) for name in OPTIONAL if given[name] is not None}
    if "n_branches" in parameters:
        if "n_types" in parameters:
            raise ValueError(
                f"n_types is {given['n_types']} and n_branches is {given['n_branches']}; cells have either types "
                "or branches: pass one of the two"
            )
        if parameters["n_branches"] > parameters["n_latent"]:
            raise ValueError(
                f"n_branches is {given['n_branches']} and n_latent is {given['n_latent']}; each branch needs a "
                "dimension: pass fewer branches or more dimensions"
            )
    return parameters | {"likelihood": given["likelihood"], "programs": check_bool(given["programs"], "programs")}


def _cells(
    n_cells: int, n_latent: int, n_types: int | None, n_branches: int | None, type_share: float, stream: Streams
) -> Cells:
    if n_branches is not None:
        return cells_on_branches(n_cells, n_latent, n_branches, type_share, stream)
    return cells_of_types(n_cells, n_latent, N_TYPES if n_types is None else n_types, type_share, stream)
