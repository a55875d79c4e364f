"""Which donors are compared with which: paired or not, within which batches, and who is left out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from ..common.checks import listing

LEAST_DONORS = 2  # on each side, or on both sides at once, to see how much donors differ
UNEVEN = 0.2  # share of the cells of a group in a batch above that of the reference, in designs that cannot remove it
SIDES = ("the group", "the reference")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Design:
    """The units of a comparison, each with the cells of one donor on one side.

    Parameters
    ----------
    donor, on_side, block
        Donor of each unit, whether it is of the group (else of the reference), and the block of units that it is
        compared within: a donor if the design is paired, else a batch or all units.
    weight
        Weight of each batch in each unit; 0 where its cells are not used.
    stratified
        Whether batches are averaged with these weights; if not, the cells of a unit are taken together.
    paired
        Whether each donor is on both sides.
    notes
        Who is left out and why, and what the design cannot remove.
    """

    donor: Int[np.ndarray, " units"]
    on_side: Bool[np.ndarray, " units"]
    block: Int[np.ndarray, " units"]
    weight: Float[np.ndarray, "units batches"]
    stratified: bool
    paired: bool
    notes: tuple[str, ...]

    @property
    def n_donors(self) -> tuple[int, int]:
        """Number of donors in the group and in the reference."""
        return int(self.on_side.sum()), int((~self.on_side).sum())


class DesignError(ValueError):
    """The donors cannot be compared; the message says why."""


def design_of(
    sizes: Int[np.ndarray, "donors batches sides"], donors: Sequence[str], batches: Sequence[str], *, least: int
) -> Design:
    """The design for these numbers of cells; side 0 is the group, side 1 the reference.

    A comparison is paired if the donors with cells on both sides are at least two, and at least half of those on the
    smaller side; donors on one side only are then left out. If it is not paired, a donor counts on the side with more
    of his or her cells. A batch matters only if it has cells of several units.

    Parameters
    ----------
    sizes
        Number of cells of each donor in each batch on each side.
    donors, batches
        Their names.
    least
        Cells that a donor must have on a side to count there.

    Raises
    ------
    DesignError
        If there are fewer than two donors on a side, or if batches and sides are confounded.
    """
    present: Bool[np.ndarray, "donors sides"] = sizes.sum(1) >= least
    on_sides, n_both = present.sum(0), int(_both(present).sum())
    for side, n in zip(SIDES, on_sides, strict=True):
        if n < LEAST_DONORS:
            few = _names(present[:, SIDES.index(side)], donors)
            cells = "a cell" if least == 1 else f"at least {least} cells"
            raise DesignError(f"{side} has {cells} of {n} donor(s), {few}, and at least {LEAST_DONORS} are needed")
    batch_matters = bool(((sizes > 0).sum((0, 2)) > 1).any())
    if n_both >= LEAST_DONORS and 2 * n_both >= on_sides.min():
        return _paired(sizes, present, donors, least, batch_matters=batch_matters)
    return _unpaired(sizes, present, donors, batches)


def _paired(
    sizes: Int[np.ndarray, "donors batches sides"],
    present: Bool[np.ndarray, "donors sides"],
    donors: Sequence[str],
    least: int,
    *,
    batch_matters: bool,
) -> Design:
    """Each donor with himself or herself, within the batches that have cells of both sides if batches matter."""
    both, notes = _both(present), []
    one_sided = present.any(1) & ~both
    if one_sided.any():
        notes.append(f"donors on one side only are left out: {_names(one_sided, donors)}")
    weight = np.ones(sizes.shape[:2])
    if batch_matters:
        a, b = sizes[..., 0], sizes[..., 1]
        weight = np.where(np.minimum(a, b) >= least, a * b / np.maximum(a + b, 1), 0.0)
        apart = both & (weight.sum(1) == 0)
        both &= ~apart
        if both.sum() < LEAST_DONORS:
            raise DesignError(
                f"group and batch are confounded: only {both.sum()} donor(s) have cells of both sides in one batch"
            )
        if apart.any():
            notes.append(f"donors whose two sides share no batch are left out: {_names(apart, donors)}")
    which = np.flatnonzero(both)
    donor = np.repeat(which, 2)
    return Design(
        donor=donor,
        on_side=np.arange(len(donor)) % 2 == 0,
        block=np.repeat(np.arange(len(which)), 2),
        weight=weight[donor],
        stratified=batch_matters,
        paired=True,
        notes=tuple(notes),
    )


def _unpaired(
    sizes: Int[np.ndarray, "donors batches sides"],
    present: Bool[np.ndarray, "donors sides"],
    donors: Sequence[str],
    batches: Sequence[str],
) -> Design:
    """Each donor on one side; within batches if each donor is in one batch and a batch has several donors."""
    both, notes = _both(present), []
    side = np.where(both, sizes.sum(1).argmax(1), present.argmax(1))
    which = np.flatnonzero(present.any(1))
    if both.any():
        notes.append(f"donors on both sides count on that with more cells: {_names(both, donors)}")
    own = sizes[which, :, side[which]]
    block = np.zeros(len(which), np.int64)
    if ((own > 0).sum(0) > 1).any():  # a batch has several donors
        has_both = _both(np.stack([(own[side[which] == s] > 0).any(0) for s in (0, 1)], axis=1))
        if not has_both.any():
            raise DesignError("group and batch are confounded: no batch has donors of both sides")
        if ((own > 0).sum(1) == 1).all():
            block = own.argmax(1)
            kept = has_both[block]
            if not kept.all():
                alone = np.unique(block[~kept])
                notes.append(
                    f"batches with donors of one side only are left out: {listing(batches[b] for b in alone)} with "
                    f"{listing(donors[d] for d in which[~kept])}"
                )
            which, own, block = which[kept], own[kept], np.unique(block[kept], return_inverse=True)[1]
            if len(which) - block.max() - 2 < 1:
                raise DesignError(
                    "group and batch are confounded: only one batch has donors of both sides, one of each, so that "
                    "nothing shows how much donors differ"
                )
        else:
            notes += _uneven(own, side[which], batches)
    return Design(
        donor=which,
        on_side=side[which] == 0,
        block=block,
        weight=np.sign(own).astype(float),
        stratified=False,
        paired=False,
        notes=tuple(notes),
    )


def _both(present: Bool[np.ndarray, "items sides"]) -> Bool[np.ndarray, " items"]:
    both: Bool[np.ndarray, " items"] = present[:, 0] & present[:, 1]
    return both


def _uneven(
    own: Int[np.ndarray, "units batches"], side: Int[np.ndarray, " units"], batches: Sequence[str]
) -> list[str]:
    """Names a batch that the sides have unequal shares of, where donors are in several batches."""
    share = own / own.sum(1, keepdims=True)
    a, b = share[side == 0].mean(0), share[side == 1].mean(0)
    worst = int(np.abs(a - b).argmax())
    if abs(a[worst] - b[worst]) <= UNEVEN:
        return []
    found = (
        f"group and batch are partly confounded: of the cells of a donor, batch {batches[worst]!r} has {a[worst]:.0%} "
        f"in the group and {b[worst]:.0%} in the reference. Donors are in several batches, so that differences between "
        "batches are not removed"
    )
    return [found]


def _names(chosen: Bool[np.ndarray, " donors"], donors: Sequence[str]) -> str:
    return listing(name for name, is_chosen in zip(donors, chosen, strict=True) if is_chosen)
