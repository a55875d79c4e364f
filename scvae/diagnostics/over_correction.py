"""The over-correction audit: how much of what differs between batches is removed, and whether that is a condition.

Expression is compared before and after the correction, within groups of similar cells: sums of counts, and expected
values decoded as the mean over all batches. What two random halves of the cells agree on is not noise, so squares are
products of the halves.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
import torch
from jaxtyping import Bool, Float, Int

from ..common.rng import numpy_generator
from ..data.batches import chunks
from ..data.cells import Cells
from ..inference.decoding import Target, expression, posterior_draws
from ..inference.fitted import FittedModel
from ..kernels.context import working_on
from ..likelihoods.base import dense
from .neighbours import as_igraph, graph_of, leiden, nearest

HALVES, SHUFFLED = 38, 61  # streams of the random numbers that split the cells and shuffle the conditions
SHUFFLES = 19  # so that a condition without an effect is larger than all of them in 1 of 20 cases
RESOLUTION = 0.5  # of the groups of similar cells
FEWEST_CELLS = 10  # of a side in each half
FEWEST_COUNTS = 50.0  # of a gene in a group of cells
HALF = 0.5  # count added before logarithms are taken
AT_ONCE = 2**19  # cells x genes in one pass
TINY = 1e-30


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OverCorrection:
    """What the correction for batches has removed.

    Parameters
    ----------
    condition_key
        Column of the condition.
    removed
        Share of the squared log differences between a batch and the other batches that the correction removes, for each
        batch and group of similar cells; NaN where there are too few cells or no difference.
    group
        Group of similar cells of each cell in the sample.
    condition_size
        Root mean square of the log differences between conditions in the counts, in nats.
    corrected_size
        The same in corrected expression.
    chance
        The largest `condition_size` of 19 shuffles of the conditions within batches; NaN if confounded.
    kept
        Share of the differences between conditions that corrected expression keeps (slope of the corrected ones on
        those of the counts); NaN if there are none.
    backed
        Share of the corrected differences that the counts show, too; NaN if there are none.
    tracked
        Correlation of what was removed with the differences between conditions.
    confounded
        Whether no batch has cells of several conditions.
    excess
        Squared differences between conditions over those expected from batches of one condition; infinite if a
        condition has a single batch, and NaN if batches have several conditions.
    """

    condition_key: str
    removed: Float[np.ndarray, "batches groups"]
    group: Int[np.ndarray, " cells"]
    condition_size: float
    corrected_size: float
    chance: float
    kept: float
    backed: float
    tracked: float
    confounded: bool
    excess: float

    @property
    def conditions_differ(self) -> bool:
        """Whether the counts of the conditions differ by more than those of shuffled ones; also if confounded."""
        return self.confounded or self.condition_size > self.chance


@dataclass(frozen=True, slots=True, eq=False)
class _Sums:
    """Sums of counts (of two halves) and of corrected values over the cells of each batch, condition and group."""

    counts: Float[np.ndarray, "halves batches conditions groups genes"]
    library: Float[np.ndarray, "halves batches conditions groups"]
    corrected: Float[np.ndarray, "batches conditions groups genes"]
    n_cells: Int[np.ndarray, "halves batches conditions groups"]


def over_correction(
    model: FittedModel,
    cells: Cells,
    embedding: Float[np.ndarray, "cells latent"],
    condition: Int[np.ndarray, " cells"],
    *,
    condition_key: str,
    beta: float,
    seed: int,
) -> OverCorrection:
    """Audits a sample of cells.

    Parameters
    ----------
    model
        A model of counts with batches.
    cells
        The sample.
    embedding
        Its posterior means, in the coordinates of the metric.
    condition
        Condition of each cell, -1 for none.
    condition_key
        Name of the column of the condition.
    beta
        The β examined.
    seed
        Seed of the clusters and halves.
    """
    group = leiden(as_igraph(graph_of(nearest(embedding))), resolution=RESOLUTION, seed=seed)
    used = np.flatnonzero(condition >= 0)
    batches, batch = np.unique(cells.group, return_inverse=True)
    half = numpy_generator(seed, HALVES).permutation(len(cells)) % 2
    shape = (2, len(batches), int(condition.max()) + 1, int(group.max()) + 1)
    of_cell = np.stack([half, batch, condition, group])[:, used]
    counts = _counts(cells, used)
    sums = _summed(counts, cells.library[used], of_cell, shape)
    sums = replace(sums, corrected=_corrected(model, cells, used, of_cell, shape, batches, beta))
    confounded = not bool(((sums.n_cells.sum((0, 3)) > 0).sum(1) > 1).any())
    n_batches, _, n_groups = sums.n_cells.shape[1:]
    removed = np.full((n_batches, n_groups), np.nan)
    by_batch = {(b, g): _of_batch(sums, b, g) for b in range(n_batches) for g in range(n_groups)}
    for place, found in by_batch.items():
        if found is not None:
            one, two, corrected = found
            square = float((one * two).mean())
            removed[place] = 1.0 - float((corrected * (one + two) / 2).mean()) / square if square > TINY else np.nan
    products, shown = np.zeros(3), []
    compared = _of_conditions(sums, range(n_groups), confounded=confounded)
    if not compared:  # each group has one condition: then all cells together
        of_cell[3], shape = 0, (*shape[:3], 1)
        compared = _of_conditions(_together(sums), range(1), confounded=confounded)
    for one, two, corrected in compared:
        mean = (one + two) / 2
        products += [(corrected * mean).sum(), (corrected**2).sum(), len(one)]
        shown.append((mean - corrected, mean))
    both, corrected2, n = products
    counts2 = sum(float((one * two).sum()) for one, two, _ in compared)
    chance = float("nan")
    if not confounded:
        rng = numpy_generator(seed, SHUFFLED)
        shuffled = (_summed(counts, cells.library[used], _shuffled(of_cell, rng), shape) for _ in range(SHUFFLES))
        chance = max(_size(_of_conditions(of, range(shape[3]), confounded=False)) for of in shuffled)
    return OverCorrection(
        condition_key=condition_key,
        removed=removed,
        group=group,
        condition_size=_size(compared),
        corrected_size=float(np.sqrt(corrected2 / max(n, 1.0))),
        chance=chance,
        kept=float(both / counts2) if counts2 > TINY else float("nan"),
        backed=float(both / corrected2) if corrected2 > TINY else float("nan"),
        tracked=_correlation(*map(np.concatenate, zip(*shown, strict=True))) if shown else float("nan"),
        confounded=confounded,
        excess=_excess(sums) if confounded else float("nan"),
    )


def _counts(cells: Cells, used: Int[np.ndarray, " used"]) -> sp.csr_array:
    """The counts of the used cells, used x genes."""
    size = max(1, AT_ONCE // cells.rows.n_genes)
    parts = [dense(cells.batch(used[part]).x).double().cpu().numpy() for part in chunks(len(used), size)]
    return sp.csr_array(sp.vstack([sp.csr_array(part) for part in parts]))


def _summed(
    counts: sp.csr_array,
    library: Float[np.ndarray, " used"],
    of_cell: Int[np.ndarray, "4 used"],
    shape: tuple[int, int, int, int],
) -> _Sums:
    """The sums of the counts; those of corrected values are 0. `of_cell`: half, batch, condition and group."""
    place, n_places = np.ravel_multi_index(tuple(of_cell), shape), int(np.prod(shape))
    members = sp.csr_array((np.ones(len(place)), (place, np.arange(len(place)))), shape=(n_places, len(place)))
    return _Sums(
        counts=(members @ counts).toarray().reshape(*shape, -1),
        library=np.bincount(place, library.astype(float), n_places).reshape(shape),
        corrected=np.zeros((*shape[1:], counts.shape[1])),
        n_cells=np.bincount(place, minlength=n_places).reshape(shape),
    )


def _corrected(
    model: FittedModel,
    cells: Cells,
    used: Int[np.ndarray, " used"],
    of_cell: Int[np.ndarray, "4 used"],
    shape: tuple[int, int, int, int],
    batches: Int[np.ndarray, " batches"],
    beta: float,
) -> Float[np.ndarray, "batches conditions groups genes"]:
    """Sums of corrected values."""
    place = np.ravel_multi_index(tuple(of_cell[1:]), shape[1:])
    sums = np.zeros((int(np.prod(shape[1:])), cells.rows.n_genes))
    target = Target(batches=tuple(int(b) for b in batches), library=1.0)
    with torch.no_grad(), working_on(model.device):
        for drawn in posterior_draws(model, cells.taken(used), n_samples=0, seed=0, beta=beta):
            (values,) = expression(model, drawn, target)
            np.add.at(sums, place[drawn.positions], values.double().cpu().numpy())
    return sums.reshape(*shape[1:], -1)


def _shuffled(of_cell: Int[np.ndarray, "4 used"], rng: np.random.Generator) -> Int[np.ndarray, "4 used"]:
    """The same with the conditions shuffled among the cells of each batch."""
    half, batch, condition, group = of_cell
    mixed = np.empty_like(condition)
    mixed[np.lexsort((rng.random(len(batch)), batch))] = condition[np.argsort(batch, kind="stable")]
    return np.stack([half, batch, mixed, group])


def _size(compared: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> float:
    """Root mean square of what both halves of the counts agree on."""
    total = sum(float((one * two).sum()) for one, two, _ in compared)
    return float(np.sqrt(max(total, 0.0) / max(sum(len(one) for one, _, _ in compared), 1)))


def _of_batch(sums: _Sums, batch: int, group: int) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Log differences of one batch from the others, in two halves of the counts and corrected."""
    here = np.arange(sums.n_cells.shape[1]) == batch
    a, b = (slice(None), here), (slice(None), ~here)
    return _differences(
        [sums.counts[side][..., group, :].sum((1, 2)) for side in (a, b)],
        [sums.library[side][..., group].sum((1, 2)) for side in (a, b)],
        [sums.corrected[side[1]][..., group, :].sum((0, 1)) for side in (a, b)],
        [sums.n_cells[side][..., group].sum((1, 2)) for side in (a, b)],
    )


def _together(sums: _Sums) -> _Sums:
    """All cells as one group."""
    return _Sums(
        counts=sums.counts.sum(3, keepdims=True),
        library=sums.library.sum(3, keepdims=True),
        corrected=sums.corrected.sum(2, keepdims=True),
        n_cells=sums.n_cells.sum(3, keepdims=True),
    )


def _of_conditions(sums: _Sums, groups: range, *, confounded: bool) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The differences of each condition in each group that has enough cells of it and of the others."""
    places = [(c, g) for c in range(sums.n_cells.shape[2]) for g in groups]
    found = [_of_condition(sums, c, g, confounded=confounded) for c, g in places]
    return [one for one in found if one is not None]


def _of_condition(
    sums: _Sums, condition: int, group: int, *, confounded: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Log differences of one condition from the others: within batches, or over all of them if none has several."""
    here = np.arange(sums.n_cells.shape[2]) == condition
    n_batches = sums.n_cells.shape[1]
    parts = [np.ones(n_batches, bool)] if confounded else [np.arange(n_batches) == b for b in range(n_batches)]
    found, weights = [], []
    enough = sums.counts[..., group, :].sum((0, 1, 2)) >= FEWEST_COUNTS
    for part in parts:
        counts, library = sums.counts[:, part][..., group, :], sums.library[:, part][..., group]
        corrected, n = sums.corrected[part][..., group, :], sums.n_cells[:, part][..., group]
        sides = [here, ~here]
        one = _differences(
            [counts[:, :, side].sum((1, 2)) for side in sides],
            [library[:, :, side].sum((1, 2)) for side in sides],
            [corrected[:, side].sum((0, 1)) for side in sides],
            [n[:, :, side].sum((1, 2)) for side in sides],
            enough=enough,
        )
        if one is not None:
            a, b = (float(n[:, :, side].sum()) for side in sides)
            found.append(np.stack(one))
            weights.append(a * b / (a + b))
    if not found or not enough.any():
        return None
    one, two, after = np.average(found, axis=0, weights=weights)
    return one, two, after


def _differences(
    counts: list[np.ndarray],
    library: list[np.ndarray],
    corrected: list[np.ndarray],
    n_cells: list[np.ndarray],
    enough: Bool[np.ndarray, " genes"] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Log ratio of two sides for genes with enough counts; None if a side has too few cells."""
    (counts_a, counts_b), (library_a, library_b) = counts, library
    (corrected_a, corrected_b), (n_a, n_b) = corrected, n_cells
    if min(n_a.min(), n_b.min()) < FEWEST_CELLS:
        return None
    if enough is None:
        enough = counts_a.sum(0) + counts_b.sum(0) >= FEWEST_COUNTS
    if not enough.any():
        return None
    common = ((counts_a + counts_b).sum(0) / (library_a + library_b).sum())[enough]
    common = np.maximum(common, TINY)  # without any count, both sides are alike

    def logs(of: np.ndarray, size: np.ndarray) -> Float[np.ndarray, "halves genes"]:
        values: Float[np.ndarray, "halves genes"] = np.log((of[:, enough] + HALF) / (size[:, None] + HALF / common))
        return values

    one, two = logs(counts_a, library_a) - logs(counts_b, library_b)
    after = np.log(
        np.maximum(corrected_a[enough] / n_a.sum(), TINY) / np.maximum(corrected_b[enough] / n_b.sum(), TINY)
    )
    return one, two, after


def _excess(sums: _Sums) -> float:
    """Squared differences between conditions over those of batches within them, with one value for each batch."""
    counts, library = sums.counts.sum((0, 3)), sums.library.sum((0, 3))
    enough = counts.sum((0, 1)) >= FEWEST_COUNTS * counts.shape[0]
    owner = library.argmax(1)
    own = np.arange(len(owner))
    size = np.bincount(owner, minlength=counts.shape[1])
    if size[size > 0].min() < 2 or (size > 0).sum() < 2 or not enough.any():
        return float("inf")
    logs = np.log((counts[own, owner][:, enough] + HALF) / library[own, owner][:, None])
    level = np.stack([logs[owner == c].mean(0) for c in np.flatnonzero(size)])
    numbers, sizes = np.searchsorted(np.flatnonzero(size), owner), size[size > 0]
    within = ((logs - level[numbers]) ** 2).sum() / (len(owner) - len(sizes))
    between = (sizes[:, None] * (level - logs.mean(0)) ** 2).sum() / (len(sizes) - 1)
    return float(between / max(within, TINY))


def _correlation(a: Float[np.ndarray, " values"], b: Float[np.ndarray, " values"]) -> float:
    norm = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / norm) if norm > TINY else float("nan")
