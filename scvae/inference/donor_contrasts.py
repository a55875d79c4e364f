"""Mean expression of each gene in groups of donors and the contrasts between groups, in one pass over the cells.

The mean of a unit, the cells of one donor on one side, is that of `scvae.inference.differential`, and so is its
variance over cells. `scvae.inference.donors` compares the units.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from ..data.cells import Cells
from .contrast import Contrast, Side, overdispersion
from .differential import LEAST_CELLS, Strata, Sums, mean_proportion, side_of, sums_of
from .donor_design import Design, DesignError, design_of
from .donors import Difference, Units, difference, size_factors
from .fitted import FittedModel


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DonorContrast:
    """Contrast of two groups of donors; estimates are 0 and errors 1 for genes that were not tested.

    Parameters
    ----------
    contrast
        The estimates, their standard errors, and both sides, with means over donors.
    tail_error
        Errors that give ratios with normal tails.
    donor_sd
        Standard deviation of donors in log mean (natural logarithm).
    design
        Who was compared with whom.
    """

    contrast: Contrast
    tail_error: Float[np.ndarray, " genes"]
    donor_sd: Float[np.ndarray, " genes"]
    design: Design


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """The cells of one donor in one batch and group, and their sums."""

    donor: int
    batch: int
    group: int
    sums: Sums


def donor_contrasts(
    model: FittedModel,
    cells: Cells,
    codes: Int[np.ndarray, " cells"],
    donors: tuple[Int[np.ndarray, " cells"], Sequence[str]],
    pairs: Sequence[tuple[int, int | None]],
    tested: Bool[np.ndarray, " genes"],
    *,
    least: float = 0.0,
    beta: float | None = None,
) -> list[DonorContrast | str]:
    """Compares groups of donors.

    Parameters
    ----------
    model, cells, codes, pairs, beta
        As in `scvae.inference.differential.contrasts`.
    donors
        Donor of each cell, -1 for a cell to leave out, and the names of the donors.
    tested
        Genes to compare.
    least
        Fewest counts of a gene to compare, over all compared donors together.

    Returns
    -------
    list
        For each pair its contrast, or the reason why there is none.
    """
    of_donor, names = donors
    used = np.flatnonzero((cells.library > 0) & (codes >= 0) & (of_donor >= 0))
    parts = _parts(model, cells, codes, of_donor, used, beta)
    batches = model.schema.batch.categories if model.schema.batch is not None else [""]
    found: list[DonorContrast | str] = []
    for group, reference in pairs:
        sides = [
            [part for part in parts if part.group == group],
            [part for part in parts if part.group != group and reference in (None, part.group)],
        ]
        sizes = np.zeros((len(names), len(batches), 2), np.int64)
        for side, own in enumerate(sides):
            for part in own:
                sizes[part.donor, part.batch, side] += part.sums.n_cells
        try:
            design = design_of(sizes, names, batches, least=LEAST_CELLS)
        except DesignError as error:
            found.append(str(error))
        else:
            found.append(_compared(design, sides, tested, least))
    return found


def _parts(
    model: FittedModel,
    cells: Cells,
    codes: Int[np.ndarray, " cells"],
    of_donor: Int[np.ndarray, " cells"],
    used: Int[np.ndarray, " used"],
    beta: float | None,
) -> list[_Part]:
    if not len(used):
        return []
    typical = mean_proportion(cells, used)
    positions = defaultdict(list)
    for cell in used.tolist():
        positions[int(of_donor[cell]), int(cells.group[cell]), int(codes[cell])].append(cell)
    return [
        _Part(donor=donor, batch=batch, group=group, sums=sums_of(model, cells, np.array(own), typical, beta))
        for (donor, batch, group), own in sorted(positions.items())
    ]


def _compared(
    design: Design, sides: list[list[_Part]], tested: Bool[np.ndarray, " genes"], least: float
) -> DonorContrast:
    units = []
    for donor, on_side, weight in zip(design.donor, design.on_side, design.weight, strict=True):
        own = defaultdict(list)
        for part in sides[0 if on_side else 1]:
            if part.donor == donor and weight[part.batch] > 0:
                own[part.batch if design.stratified else 0].append(part.sums)
        strata = Strata(
            weights=[float(weight[batch]) if design.stratified else 1.0 for batch in own],
            sums=[sum(sums[1:], start=sums[0]) for sums in own.values()],
        )
        units.append(side_of(strata))
    group, reference = (_over_donors(units, design.on_side == which) for which in (True, False))
    tested = tested & (group.counts + reference.counts >= max(least, 1.0))
    estimate, donor_sd = np.zeros((2, len(tested)))
    error, tail_error = np.ones((2, len(tested)))
    if tested.any():
        of = _difference(design, units, tested)
        estimate[tested], error[tested] = of.estimate, of.error
        tail_error[tested], donor_sd[tested] = of.tail_error, of.donor_sd
    contrast = Contrast(estimate=estimate, error=error, group=group, reference=reference)
    return DonorContrast(contrast=contrast, tail_error=tail_error, donor_sd=donor_sd, design=design)


def _difference(design: Design, units: list[Side], tested: Bool[np.ndarray, " genes"]) -> Difference:
    count = np.stack([unit.mean[tested] / unit.unit[tested] for unit in units])
    exposure = np.stack([1.0 / unit.unit[tested] for unit in units])
    return difference(
        Units(
            count=count,
            exposure=exposure * size_factors(count, exposure)[:, None],
            spread=np.stack([overdispersion(unit)[tested] for unit in units]),
            on_side=design.on_side,
            block=design.block,
        )
    )


def _over_donors(units: list[Side], chosen: Bool[np.ndarray, " units"]) -> Side:
    """One side: means over donors, counts and cells of all of them together."""
    own = [unit for unit, is_chosen in zip(units, chosen, strict=True) if is_chosen]
    n = sum(unit.n_cells for unit in own)
    return replace(
        own[0],
        mean=np.mean([unit.mean for unit in own], 0),
        model_mean=np.mean([unit.model_mean for unit in own], 0),
        counts=np.sum([unit.counts for unit in own], 0),
        squares=np.sum([unit.squares for unit in own], 0),
        detected=np.sum([unit.detected * unit.n_cells for unit in own], 0) / n,
        n_cells=n,
        mean_library=sum(unit.mean_library * unit.n_cells for unit in own) / n,
    )
