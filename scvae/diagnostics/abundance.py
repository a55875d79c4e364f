"""Differential abundance: where in an embedding cells of a group are more frequent than donors differ by chance.

As in Milo (Dann et al. 2022), cells are counted in overlapping neighbourhoods, and in each the counts of the donors are
compared. The comparison is that of `scvae.inference.donors`: a random effect of the donor, whose variance is moderated
over all neighbourhoods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..common.rng import numpy_generator
from ..inference.donor_design import Design, design_of
from ..inference.donors import Units, difference, weighted_fdr
from ..inference.nearest import nearest_cells

CENTRES = 62  # stream of the random numbers that choose the centres
PER_UNIT = 5  # cells of a neighbourhood for each donor and side, as Milo advises
FEWEST, LARGEST = 30, 0.1  # cells of a neighbourhood: at least, and at most as a share of all cells
MOST_CENTRES, CENTRE_SHARE = 1_000, 0.05  # all cells if there are few, else a share of them
SMOOTHED = 5  # centres that a cell takes its value from
TINY = np.finfo(np.float64).tiny


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Abundance:
    """Log odds that a cell is of the group and not of the reference, if the two were equally frequent overall.

    Parameters
    ----------
    centre
        Positions of the cells at the centres of the neighbourhoods, among all cells.
    log_odds, error, p_value, fdr, donor_sd
        For each neighbourhood: natural logarithm of the odds and its standard error; p-value; false discovery rate,
        weighted by the distance to its last neighbour; standard deviation of donors in log frequency.
    cells, cell_log_odds, cell_error, cell_fdr
        Positions of the compared cells, and their values: means over the nearest centres (the error: at most), and the
        rate of the nearest centre.
    n_neighbors
        Number of cells in a neighbourhood.
    design
        Who was compared with whom.
    """

    centre: Int[np.ndarray, " centres"]
    log_odds: Float[np.ndarray, " centres"]
    error: Float[np.ndarray, " centres"]
    p_value: Float[np.ndarray, " centres"]
    fdr: Float[np.ndarray, " centres"]
    donor_sd: Float[np.ndarray, " centres"]
    cells: Int[np.ndarray, " cells"]
    cell_log_odds: Float[np.ndarray, " cells"]
    cell_error: Float[np.ndarray, " cells"]
    cell_fdr: Float[np.ndarray, " cells"]
    n_neighbors: int
    design: Design


def abundance(
    embedding: Float[np.ndarray, "all latent"],
    on_side: Int[np.ndarray, " all"],
    donor: Int[np.ndarray, " all"],
    batch: Int[np.ndarray, " all"],
    *,
    donors: Sequence[str],
    batches: Sequence[str],
    n_neighbors: int | None,
    seed: int,
) -> Abundance:
    """Compares the donors in the neighbourhoods of some cells.

    Parameters
    ----------
    embedding
        Coordinates of all cells.
    on_side
        0 for a cell of the group, 1 for one of the reference, -1 for a cell to leave out.
    donor, batch
        Donor of each cell (-1 for a cell to leave out) and its batch.
    donors, batches
        Their names.
    n_neighbors
        Number of cells in a neighbourhood; None for `PER_UNIT` for each donor and side, within bounds.
    seed
        Seed of the choice of the centres.

    Raises
    ------
    DesignError
        If the donors cannot be compared.
    ValueError
        If `n_neighbors` exceeds the number of compared cells.
    """
    kept = (on_side >= 0) & (donor >= 0)
    sizes = np.zeros((len(donors), len(batches), 2), np.int64)
    np.add.at(sizes, (donor[kept], batch[kept], on_side[kept]), 1)
    design = design_of(sizes, donors, batches, least=1)
    unit = _unit_of(design, on_side, donor, batch, kept)
    cells = np.flatnonzero(unit >= 0)
    n, n_units = len(cells), len(design.donor)
    if n_neighbors is None:
        n_neighbors = max(min(max(FEWEST, PER_UNIT * n_units), int(LARGEST * n)), 2)
    if n_neighbors > n:
        raise ValueError(f"n_neighbors is {n_neighbors}, but {n:,} cells are compared; pass a smaller number")
    n_centres = min(n, max(MOST_CENTRES, int(CENTRE_SHARE * n)))
    centre = cells[np.sort(numpy_generator(seed, CENTRES).permutation(n)[:n_centres])]
    distance, index = nearest_cells(embedding[cells], embedding[centre], n_neighbors)
    within = unit[cells][index]
    count = np.stack([(within == u).sum(1) for u in range(n_units)]).astype(float)
    exposure = np.repeat(np.bincount(unit[cells], minlength=n_units)[:, None].astype(float), n_centres, axis=1)
    of = difference(
        Units(
            count=count,
            exposure=exposure,
            spread=np.zeros_like(count),
            on_side=design.on_side,
            block=design.block,
        )
    )
    fdr = weighted_fdr(of.log_p, 1.0 / np.maximum(distance[:, -1], TINY))
    around = nearest_cells(embedding[centre], embedding[cells], SMOOTHED)[1]
    return Abundance(
        centre=centre,
        log_odds=of.estimate,
        error=of.error,
        p_value=np.exp(of.log_p),
        fdr=fdr,
        donor_sd=of.donor_sd,
        cells=cells,
        cell_log_odds=of.estimate[around].mean(1),
        cell_error=of.error[around].mean(1),  # of a mean of dependent values: at most the mean of their errors
        cell_fdr=fdr[around[:, 0]],
        n_neighbors=n_neighbors,
        design=design,
    )


def _unit_of(
    design: Design,
    on_side: Int[np.ndarray, " all"],
    donor: Int[np.ndarray, " all"],
    batch: Int[np.ndarray, " all"],
    kept: Bool[np.ndarray, " all"],
) -> Int[np.ndarray, " all"]:
    """Number of the unit of each cell, -1 for cells that are not compared."""
    unit = np.full(len(donor), -1)
    for number, (of_donor, is_group, weight) in enumerate(
        zip(design.donor, design.on_side, design.weight, strict=True)
    ):
        unit[kept & (donor == of_donor) & (on_side == int(not is_group)) & (weight[batch] > 0)] = number
    return unit
