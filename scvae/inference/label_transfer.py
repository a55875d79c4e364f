"""Labels of a reference carried over to a query by its neighbours in the latent space, and what they are worth.

The probability of label c is a kernel-weighted share of the nearest reference cells and of a prior that knows nothing,
p_c = (sum_j w_j [y_j = c] + a / C) / (sum_j w_j + a) with w_j = exp(-d_j^2 / (2 s^2)), so that it tends to 1 / C far
from all of them: a cell that resembles none is unsure of all labels. Bandwidth s and weight a are those that give the
reference's own labels the greatest likelihood, each cell judged by all others and counted as often as query cells have
it for a neighbour (Shimodaira 2000, "Improving predictive inference under covariate shift"): a part of the reference
where labels are mixed up does not make a query unsure that lies elsewhere. On seven held-out batches of four sets, and
five of them with a type missing, the expected calibration error was 0.06 on average; 0.07 with all cells counted alike
or judged by other batches alone.

Whether a cell is like any of the reference is asked of it together with the query cells that are most like it: one cell
of another technology lies as far off as one of another type; a group of them as far off is of another type, unless the
whole query is. With 37 types held out of the references of eight queries, one at a time, the score told their cells
from the others with an AUROC of 0.85 in the mean, and above 0.7 it called 52 % of them and 7 % of the others unknown.
Each cell alone had 0.78, and the same limit called 62 % and 22 % (by the encoder's posterior; with it, 53 % and 6 %).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

N_NEIGHBOURS = 30
N_PEERS = 20  # query cells that are judged together, the cell itself among them
NEAR, MOST_WIDENING = 0.25, 1.5
N_NEAREST = 5  # neighbours by whose mean distance a cell is near or far
FEWEST_OF_LABEL = 20  # cells of a label from which on they say how near is near for it
MOST_JUDGED = 5_000  # reference cells that the two numbers are chosen by, and distances compared with
WIDTHS = tuple(float(2.0**power) for power in np.arange(-2.0, 2.5, 0.5))  # over the median distance of a near neighbour
PRIOR_WEIGHTS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)


@dataclass(frozen=True, eq=False, slots=True)
class Transfer:
    """What a reference says of each query cell.

    Parameters
    ----------
    probability
        Of each label.
    outlier
        Share of the reference cells that are nearer to their neighbours than a cell is to its, or of those of its most
        probable label, if that is more (what is far for a dense type is near for a sparse one), after `widening`: the
        mean over the cell and its peers.
    """

    probability: Float[np.ndarray, "cells labels"]
    outlier: Float[np.ndarray, " cells"]


@dataclass(frozen=True, eq=False, slots=True)
class Labelled:
    """The nearest labelled cells of each cell, in order of distance.

    Parameters
    ----------
    distance
        Euclidean distances to them.
    place
        Their positions among the labelled cells.
    label
        Their labels, 0 .. C - 1.
    """

    distance: Float[np.ndarray, "cells neighbours"]
    place: Int[np.ndarray, "cells neighbours"]
    label: Int[np.ndarray, "cells neighbours"]

    @property
    def nearness(self) -> Float[np.ndarray, " cells"]:
        """Mean distance to the few nearest."""
        mean: Float[np.ndarray, " cells"] = self.distance[:, :N_NEAREST].mean(1)
        return mean

    def probability(self, n_labels: int, *, bandwidth: float, prior: float) -> Float[np.ndarray, "cells labels"]:
        """The module's formula, with s = `bandwidth` and a = `prior`."""
        weight = np.exp(-0.5 * (self.distance / bandwidth) ** 2)
        total = np.stack([(weight * (self.label == c)).sum(1) for c in range(n_labels)], axis=1)
        return np.asarray((total + prior / n_labels) / (weight.sum(1, keepdims=True) + prior))


def transfer(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
    peers: Int[np.ndarray, "cells peers"],
) -> Transfer:
    """Probabilities of labels, and outlier scores, of query cells.

    Parameters
    ----------
    reference
        Latent positions of at least two labelled cells.
    label
        Their labels, 0 .. C - 1.
    query
        Latent positions of the cells to label.
    peers
        Positions, in the query, of each cell and those most like it by what was measured, the query alone looked at.
    """
    n_labels = int(label.max()) + 1
    found = nearest_labelled(reference, label, query)
    # each cell of the reference, or one in so many, judged by all others
    step = -(-len(reference) // MOST_JUDGED)
    judged = np.arange(0, len(reference), step)
    own = all_but_itself(reference, label, judged)
    visits = np.bincount(found.place[:, :N_NEAREST].ravel() // step, minlength=len(judged))
    unit = float(np.median(own.nearness)) or 1.0
    choices = [{"bandwidth": unit * width, "prior": weight} for width in WIDTHS for weight in PRIOR_WEIGHTS]
    row, truth = np.arange(len(judged)), label[judged]
    gains = [visits @ np.log(own.probability(n_labels, **choice)[row, truth]) for choice in choices]
    probability = found.probability(n_labels, **choices[int(np.argmax(gains))])
    likely, far = probability.argmax(1), found.nearness
    far = far / widening(own.nearness, truth, far, likely)
    outlier = _quantile(own.nearness, far)
    for c in range(n_labels):
        same, mine = own.nearness[truth == c], likely == c
        if len(same) >= FEWEST_OF_LABEL:
            outlier[mine] = np.maximum(outlier[mine], _quantile(same, far[mine]))
    return Transfer(probability=probability, outlier=outlier[peers].mean(1))


def widening(
    own: Float[np.ndarray, " judged"],
    label: Int[np.ndarray, " judged"],
    far: Float[np.ndarray, " cells"],
    likely: Int[np.ndarray, " cells"],
) -> float:
    """By what factor a query as a whole lies farther from the reference than the reference's cells from each other.

    That of the lower quartiles of both distances, each relative to the median of its label: types that the reference
    lacks have little say there. Between 1 and `MOST_WIDENING`, so that a query of nothing else stays far.

    Parameters
    ----------
    own, far
        Distances of reference cells, and of query cells, to the nearest of the reference.
    label, likely
        Labels of the reference cells, and the most probable ones of the query cells.
    """
    typical = np.full(max(label.max(), likely.max()) + 1, np.median(own))
    for c in np.unique(label):
        typical[c] = np.median(own[label == c])
    typical = np.maximum(typical, np.finfo(np.float64).tiny)
    inner, outer = np.quantile(own / typical[label], NEAR), np.quantile(far / typical[likely], NEAR)
    return float(np.clip(outer / inner, 1.0, MOST_WIDENING)) if inner > 0 else 1.0


def _quantile(among: Float[np.ndarray, " some"], values: Float[np.ndarray, " cells"]) -> Float[np.ndarray, " cells"]:
    """Share of some numbers that are below each value."""
    share: Float[np.ndarray, " cells"] = np.searchsorted(np.sort(among), values) / len(among)
    return share


def nearest_labelled(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
) -> Labelled:
    """The nearest reference cells of each query cell."""
    distance, place = _search(reference, query, N_NEIGHBOURS)
    return Labelled(distance, place, label[place])


def all_but_itself(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    judged: Int[np.ndarray, " judged"],
) -> Labelled:
    """The nearest other cells of some reference cells."""
    distance, place = _search(reference, reference[judged], N_NEIGHBOURS + 1)
    # a cell is among its own neighbours; of many equal cells, any may stand for it
    itself = place == judged[:, None]
    itself[~itself.any(1), -1] = True
    distance, place = (found[~itself].reshape(len(judged), -1) for found in (distance, place))
    return Labelled(distance, place, label[place])


def _search(
    reference: Float[np.ndarray, "reference latent"], cells: Float[np.ndarray, "cells latent"], k: int
) -> tuple[Float[np.ndarray, "cells neighbours"], Int[np.ndarray, "cells neighbours"]]:
    """Distances and positions of the `k` nearest reference cells, or of all if there are fewer."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(k, len(reference))).fit(np.asarray(reference, np.float64))
    distance, place = search.kneighbors(np.asarray(cells, np.float64))
    return distance, place
