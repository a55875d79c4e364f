"""Recognises values that are a transform of counts, from some of their cells.

Three signs are looked for in the values and in what the inverse of each transform makes of them:

* Integers, where the values were none: the counts were transformed.
* The same sum over all genes in every cell, or one of a few (of files that were normalised one by one): the counts were
  normalised, then transformed. The depths of real cells differ by tens of per cent.
* In each cell, whole multiples of the smallest value, which is the count 1 over the cell's size factor: likewise. This
  sign stays when a matrix is cut to some genes, whose sums differ.

Counts that a correction has multiplied by a fraction, one for all or one for each cell, gene or value, have none of
these signs, or are told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .rows import reduce_rows, row_sums

MOST = 0.9  # of the cells have to show a sign
EQUAL, NEARLY_EQUAL = 0.001, 0.01  # relative difference of sums; half precision changes a sum by less than the latter
FEWEST_SUMS = 3  # two cells can have the same depth by chance
FEWEST_CELLS = 20  # with fewer, multiples are not evidence
FEWEST_VALUES = 10  # of a cell; with fewer, sums or largest values are equal by chance
TOLERANCE = 0.01  # of a unit; a random number passes with a probability of 2 %, a cell full of them hardly ever
LARGEST = 8  # larger integers are not resolved within the tolerance in half precision
APART = 0.05  # from an integer: nearer values are also near one after some inverses
CHANCE = 1e-5  # that numbers without a pattern are as near to integers
LARGEST_COUNT = 2.0**30  # an inverse that gives more is ruled out
ONE = 1.0 - 1e-6, 1.0 + 1e-6

Values = NDArray[np.float64]


class Inverse(NamedTuple):
    """What undoes a transform, in words and as a function."""

    words: str
    apply: Callable[[Values], Values]


INVERSES: Final = {
    "": Inverse("its values", lambda values: values),
    "log-": Inverse("exp(value) - 1", np.expm1),
    "log2-": Inverse("2^value - 1", lambda values: np.exp2(values) - 1.0),
    "log10-": Inverse("10^value - 1", lambda values: np.power(10.0, values) - 1.0),
    "square-root-": Inverse("value^2", np.square),
    "arcsinh-": Inverse("sinh(value)", np.sinh),
    "twice-log-": Inverse("exp(exp(value) - 1) - 1", lambda values: np.expm1(np.expm1(values))),
}


class Transform(NamedTuple):
    """What values look like, as in "X looks log-normalised", and by which sign."""

    name: str
    sign: str


class Multiples(NamedTuple):
    """Whether the values of each cell are whole multiples of its smallest one, up to `LARGEST`.

    Parameters
    ----------
    unit
        Smallest value of each cell.
    n_units
        How many values of each cell are the smallest.
    tested, found
        Cells with other multiples than 1, and those of them in which all are integers.
    inexact
        Mean distance from an integer, over the latter cells.
    """

    unit: Values
    n_units: Values
    tested: NDArray[np.bool_]
    found: NDArray[np.bool_]
    inexact: float

    def hold(self, explained: NDArray[np.bool_] | None = None) -> bool:
        """Whether they are integers in most cells, if there are enough; cells `explained` otherwise do not count."""
        tested = self.tested if explained is None else self.tested & ~explained
        return bool(tested.sum() >= FEWEST_CELLS and np.mean(self.found[tested]) >= MOST)


def recognised(indptr: NDArray[np.int64], values: Values, *, genes_reach_one: bool) -> Transform | None:
    """The transform that some cells show; None if they show none.

    Parameters
    ----------
    indptr, values
        The cells as compressed rows, with their values in all genes: positive, and not all integers in any cell.
    genes_reach_one
        Whether the largest value of each gene is 1.
    """
    multiples = _multiples(indptr, values)
    if not _is_one(multiples.unit) and np.mean(values == np.rint(values)) < 0.5:
        for what, is_so in (("gene", genes_reach_one), ("cell", _cells_reach_one(indptr, values))):
            if is_so:
                return Transform("scaled", f"the largest value of each {what} is 1")
    if multiples.hold() and not _follow_depths(multiples, row_sums(indptr, values)):
        return None  # the squares of multiples are multiples, too, so no inverse is tried
    candidates = []  # several inverses may nearly fit, e.g. exp where sinh is right
    for prefix, inverse in INVERSES.items():
        with np.errstate(over="ignore"):
            plain = inverse.apply(values)
        if plain.max() > LARGEST_COUNT:
            continue
        if _are_integers(values, plain):
            return Transform(f"{prefix}transformed", f"{inverse.words} is an integer for each value, the count")
        if _are_integers(values / values.min(), plain / plain.min()):
            sign = f"{inverse.words} is, for each value, a whole multiple of {plain.min():.4g}"
            return Transform(f"{prefix}transformed", sign)
        inexact, sums = _sums_in_words(indptr, plain)
        if sums:
            candidates.append((inexact, Transform(f"{prefix}normalised", f"{inverse.words} sum to {sums}")))
        units = _multiples(indptr, plain)
        if units.hold(explained=multiples.found if prefix else None):
            sign = f"in each cell, {inverse.words} are whole multiples of a number that differs between cells"
            candidates.append((1.0 + units.inexact, Transform(f"{prefix}normalised", sign)))
    return min(candidates)[1] if candidates else None


def _cells_reach_one(indptr: NDArray[np.int64], values: Values) -> bool:
    largest = reduce_rows(np.maximum, indptr, values, 0.0)[np.diff(indptr) >= FEWEST_VALUES]
    return len(largest) >= FEWEST_CELLS and bool(values.max() <= ONE[1] and np.mean(largest >= ONE[0]) >= MOST)


def _are_integers(values: Values, plain: Values) -> bool:
    """Whether the inverse makes integers of the values that are none, more than by chance."""
    tested = plain[(np.abs(values - np.rint(values)) > APART) & (plain <= LARGEST)]
    if len(tested) == 0:
        return False
    whole = np.rint(tested)
    distance = np.quantile(np.abs(tested - whole), 0.99)
    return bool(distance <= TOLERANCE and (2.0 * distance) ** len(np.unique(whole)) < CHANCE)


def _sums_in_words(indptr: NDArray[np.int64], values: Values) -> tuple[float, str]:
    """How far the sums of the cells are from equal, relatively, and what they are, if equal or of a few values."""
    sums = row_sums(indptr, values)
    if len(sums) < FEWEST_SUMS or _is_one(reduce_rows(np.minimum, indptr, values, np.inf)):
        return 1.0, ""  # a few counts of one unit often have equal sums
    low, middle, high = np.percentile(sums, [5, 50, 95])
    if high - low <= middle * (EQUAL if len(sums) < FEWEST_CELLS else NEARLY_EQUAL):
        return (high - low) / middle, f"about {middle:.6g} in every cell"
    sums = np.sort(sums[np.diff(indptr) >= FEWEST_VALUES])
    if len(sums) and np.mean(_near(sums, EQUAL) >= max(FEWEST_SUMS + 1, 0.05 * len(sums))) >= MOST:
        return 1.0, f"one of a few numbers in every cell (e.g. {sums[len(sums) // 2]:.6g})"
    return 1.0, ""


def _is_one(units: Values) -> bool:
    """Whether most cells have the same unit."""
    return bool(_near(np.sort(units), TOLERANCE).max() > 0.5 * len(units))


def _near(ordered: Values, distance: float) -> NDArray[np.intp]:
    """How many of some ascending numbers are within a relative distance of each one, itself included."""
    above = np.searchsorted(ordered, ordered * (1.0 + distance), side="right")
    return above - np.searchsorted(ordered, ordered * (1.0 - distance), side="left")


def _multiples(indptr: NDArray[np.int64], values: Values) -> Multiples:
    unit = reduce_rows(np.minimum, indptr, values, np.inf)
    multiple = values / np.repeat(unit, np.diff(indptr))
    multiple[multiple > LARGEST] = 0.0
    distance = reduce_rows(np.maximum, indptr, np.abs(multiple - np.rint(multiple)), 0.0)
    tested = reduce_rows(np.maximum, indptr, multiple, 0.0) > 1.5
    n_units = row_sums(indptr, np.abs(multiple - 1.0) <= TOLERANCE)
    found = tested & (distance <= TOLERANCE)
    return Multiples(unit, n_units, tested, found, float(distance[found].mean()) if found.any() else 1.0)


def _follow_depths(multiples: Multiples, sums: Values) -> bool:
    """Whether the units come from a normalisation, rather than being the fractions of counts that a correction kept.

    The units of a normalisation fall in proportion to the depths; fractions do not depend on them, and are at most 1.
    """
    sure = multiples.found & (multiples.n_units >= 3)  # the smallest value of other cells may be the count 2
    unit, sums = multiples.unit[sure], sums[sure]
    if len(unit) < FEWEST_CELLS or _is_one(unit):
        return False
    if np.mean(unit > 1.0 + TOLERANCE) > 0.25:
        return True
    x, y = np.log(unit), np.log(sums / unit)
    x, y = x - x.mean(), y - y.mean()
    slope = (x @ y) / (x @ x)
    error = np.sqrt(np.mean((y - slope * x) ** 2) / (x @ x))
    return bool(slope + 3.0 * error < -0.5)
