"""Transfers labels from a reference to a query by neighbours in the latent space, with uncertainty and outlier scores.

The probability of label c is p_c = (sum_j w_j [y_j = c] + a / C) / (sum_j w_j + a) over the nearest reference cells,
with w_j = exp(-d_j^2 / (2 s^2)). Far from all reference cells it tends to 1 / C. The bandwidth s and the prior weight a
maximise the likelihood of the reference's own labels. Each reference cell is predicted from all others, and weighted by
how often query cells have it as a neighbour (Shimodaira 2000, "Improving predictive inference under covariate shift").

The outlier score of a cell is averaged over the query cells that are most like it. For the measurements behind both
choices see "Why the defaults are what they are" in `benchmarks/README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from .naming import Judges
from .nearest import nearest_cells

N_NEIGHBOURS = 30
N_PEERS = 20  # query cells whose outlier scores are averaged, including the cell itself
NEAR, MOST_WIDENING = 0.25, 1.5
N_NEAREST = 5  # neighbours in the mean distance of a cell
FEWEST_OF_LABEL = 20  # with fewer cells, a label has no distance distribution of its own
MOST_JUDGED = 5_000  # reference cells used to choose bandwidth and prior weight, and to compare distances with
WIDTHS = tuple(float(2.0**power) for power in np.arange(-2.0, 2.5, 0.5))  # times the median distance of near neighbours
PRIOR_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False, slots=True)
class Transfer:
    """Label probabilities and outlier score of each query cell.

    Parameters
    ----------
    probability
        Probability of each label.
    outlier
        Fraction of the reference cells that are closer to their neighbours than the query cell is to its own, after
        `widening`; mean over the cell and its peers. The fraction within the cell's most probable label is used if it
        is larger, because a distance that is large for a dense cell type is small for a sparse one.
    judges
        Reference cells that query cells have as neighbours, each predicted from all others; None from a classifier.
    """

    probability: Float[np.ndarray, "cells labels"]
    outlier: Float[np.ndarray, " cells"]
    judges: Judges | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """The nearest labelled cells of each cell, sorted by distance.

    Parameters
    ----------
    distance
        Euclidean distances to these neighbours.
    place
        Positions of the neighbours among the labelled cells.
    label
        Labels of the neighbours, 0 .. C - 1.
    """

    distance: Float[np.ndarray, "cells neighbours"]
    place: Int[np.ndarray, "cells neighbours"]
    label: Int[np.ndarray, "cells neighbours"]

    @property
    def nearness(self) -> Float[np.ndarray, " cells"]:
        """Mean distance to the `N_NEAREST` nearest neighbours."""
        mean: Float[np.ndarray, " cells"] = self.distance[:, :N_NEAREST].mean(1)
        return mean

    def probability(self, n_labels: int, *, bandwidth: float, prior: float) -> Float[np.ndarray, "cells labels"]:
        """Label probabilities by the formula of this module, with s = `bandwidth` and a = `prior`."""
        weight = np.exp(-0.5 * (self.distance / bandwidth) ** 2)
        total = np.stack([(weight * (self.label == c)).sum(1) for c in range(n_labels)], axis=1)
        return np.asarray((total + prior / n_labels) / (weight.sum(1, keepdims=True) + prior))


def transfer(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
    peers: Int[np.ndarray, "cells peers"],
    batch: Int[np.ndarray, " cells"] | None = None,
) -> Transfer:
    """Label probabilities and outlier scores of query cells.

    Parameters
    ----------
    reference
        Latent positions of at least two labelled cells.
    label
        Labels of the reference cells, 0 .. C - 1.
    query
        Latent positions of the cells to label.
    peers
        Positions, in the query, of each cell and of the query cells most similar to it in measured expression.
    batch
        Code of the batch of each query cell; None for a single batch.
    """
    n_labels = int(label.max()) + 1
    found = nearest_labelled(reference, label, query)
    # each reference cell, or every step-th one, is predicted from all others
    step = -(-len(reference) // MOST_JUDGED)
    judged = np.arange(0, len(reference), step)
    own = all_but_itself(reference, label, judged)
    visits = np.bincount(found.place[:, :N_NEAREST].ravel() // step, minlength=len(judged))
    unit = float(np.median(own.nearness)) or 1.0
    choices = [{"bandwidth": unit * width, "prior": weight} for width in WIDTHS for weight in PRIOR_WEIGHTS]
    row, truth = np.arange(len(judged)), label[judged]
    gains = [visits @ np.log(own.probability(n_labels, **choice)[row, truth]) for choice in choices]
    best = choices[int(np.argmax(gains))]
    probability = found.probability(n_labels, **best)
    judges = Judges(own.probability(n_labels, **best)[visits > 0], np.eye(n_labels, dtype=bool)[truth[visits > 0]])
    outlier = outlier_scores(own.nearness, truth, found.nearness, probability.argmax(1), peers, batch)
    return Transfer(probability=probability, outlier=outlier, judges=judges)


def outlier_scores(
    own: Float[np.ndarray, " judged"],
    truth: Int[np.ndarray, " judged"],
    far: Float[np.ndarray, " cells"],
    likely: Int[np.ndarray, " cells"],
    peers: Int[np.ndarray, "cells peers"],
    batch: Int[np.ndarray, " cells"] | None = None,
) -> Float[np.ndarray, " cells"]:
    """The outlier score of each query cell: see `Transfer`. Each batch is widened by itself.

    Parameters
    ----------
    own, far
        Distances of reference cells and of query cells to the nearest reference cells.
    truth, likely
        Labels of the reference cells, and most probable labels of the query cells.
    peers, batch
        As in `transfer`.
    """
    scale, batch = np.empty(len(far)), np.zeros(len(far), np.int64) if batch is None else batch
    for code in np.unique(batch):
        here = batch == code
        judged = here if here.sum() >= FEWEST_OF_LABEL else np.ones(len(far), bool)
        scale[here] = widening(own, truth, far[judged], likely[judged])
    far = far / scale
    outlier = _quantile(own, far)
    for c in range(int(truth.max()) + 1):
        same, mine = own[truth == c], likely == c
        if len(same) >= FEWEST_OF_LABEL:
            outlier[mine] = np.maximum(outlier[mine], _quantile(same, far[mine]))
    score: Float[np.ndarray, " cells"] = outlier[peers].mean(1)
    return score


def widening(
    own: Float[np.ndarray, " judged"],
    label: Int[np.ndarray, " judged"],
    far: Float[np.ndarray, " cells"],
    likely: Int[np.ndarray, " cells"],
    *,
    most: float | None = None,
) -> float:
    """The factor by which a whole query is farther from the reference than the reference cells are from each other.

    The ratio of the lower quartiles of both distances, each relative to the median of its label; cell types that the
    reference lacks hardly affect it. Limited to 1 .. `most`
    (`MOST_WIDENING` by default), so that a query of only such types stays far.

    Parameters
    ----------
    own, far
        Distances of reference cells and of query cells to the nearest reference cells.
    label, likely
        Labels of the reference cells, and most probable labels of the query cells.
    """
    typical = np.full(max(label.max(), likely.max()) + 1, np.median(own))
    for c in np.unique(label):
        typical[c] = np.median(own[label == c])
    typical = np.maximum(typical, np.finfo(np.float64).tiny)
    inner, outer = np.quantile(own / typical[label], NEAR), np.quantile(far / typical[likely], NEAR)
    return float(np.clip(outer / inner, 1.0, most or MOST_WIDENING)) if inner > 0 else 1.0


def _quantile(among: Float[np.ndarray, " some"], values: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    """Fraction of the numbers in `among` that are below each value."""
    share: Float[np.ndarray, " cells"] = np.searchsorted(np.sort(among), values) / len(among)
    return share


def nearest_labelled(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
) -> Labelled:
    """The nearest reference cells of each query cell."""
    distance, place = nearest_cells(reference, query, N_NEIGHBOURS)
    return Labelled(distance, place, label[place])


def all_but_itself(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    judged: Int[np.ndarray, " judged"],
) -> Labelled:
    """The nearest neighbours of some reference cells among the other reference cells."""
    distance, place = nearest_cells(reference, reference[judged], N_NEIGHBOURS + 1)
    # the search finds the cell itself; among many identical cells, any of them may be left out in its place
    itself = place == judged[:, None]
    itself[~itself.any(1), -1] = True
    distance, place = (found[~itself].reshape(len(judged), -1) for found in (distance, place))
    return Labelled(distance, place, label[place])
