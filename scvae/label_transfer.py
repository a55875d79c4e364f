"""Labels of a reference carried over to a query by its neighbours in the latent space, and what they are worth.

The probability of label c is a kernel-weighted share of the nearest reference cells and of a prior that knows nothing,
p_c = (sum_j w_j [y_j = c] + a / C) / (sum_j w_j + a) with w_j = exp(-d_j^2 / (2 s^2)), so that it tends to 1 / C far
from all of them: a cell that resembles none is unsure of all labels. Bandwidth s and weight a are those that give the
reference's own labels the greatest likelihood, where each cell is judged by the cells of other batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

N_NEIGHBOURS = 30
N_NEAREST = 5  # neighbours by whose mean distance a cell is near or far
MOST_JUDGED = 5_000  # reference cells that the two numbers are chosen by
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
        Share of the reference cells that are nearer to their neighbours in other batches than this cell is to its own.
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
    label
        Their labels, 0 .. C - 1.
    """

    distance: Float[np.ndarray, "cells neighbours"]
    label: Int[np.ndarray, "cells neighbours"]

    def __getitem__(self, chosen: Bool[np.ndarray, " cells"]) -> Labelled:
        return Labelled(self.distance[chosen], self.label[chosen])

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
    batch: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
) -> Transfer:
    """Probabilities of labels, and outlier scores, of query cells.

    Parameters
    ----------
    reference
        Latent positions of at least two labelled cells.
    label
        Their labels, 0 .. C - 1.
    batch
        Their batches, by which they judge each other; if there is one, all cells but itself judge a cell.
    query
        Latent positions of the cells to label.
    """
    n_labels = int(label.max()) + 1
    own, truth = own_neighbours(reference, label, batch)
    unit = float(np.median(own.nearness)) or 1.0
    choices = [{"bandwidth": unit * width, "prior": weight} for width in WIDTHS for weight in PRIOR_WEIGHTS]
    place = np.arange(len(truth))
    gains = [np.log(own.probability(n_labels, **choice)[place, truth]).mean() for choice in choices]
    found = nearest_labelled(reference, label, query)
    return Transfer(
        probability=found.probability(n_labels, **choices[int(np.argmax(gains))]),
        outlier=np.searchsorted(np.sort(own.nearness), found.nearness) / len(truth),
    )


def nearest_labelled(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    query: Float[np.ndarray, "cells latent"],
) -> Labelled:
    """The nearest reference cells of each query cell."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=min(N_NEIGHBOURS, len(reference))).fit(np.asarray(reference, np.float64))
    distance, place = search.kneighbors(np.asarray(query, np.float64))
    return Labelled(distance, label[place])


def own_neighbours(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    batch: Int[np.ndarray, " reference"],
) -> tuple[Labelled, Int[np.ndarray, " judged"]]:
    """The nearest cells of other batches, and the labels, of reference cells whose label other batches have.

    Of a large reference, `MOST_JUDGED` cells at even steps. Where no label is in two batches, batches are not told
    apart.
    """
    n = len(reference)
    judged = np.unique(np.linspace(0, n - 1, min(n, MOST_JUDGED)).astype(int))
    batches_of = {c: np.unique(batch[label == c]) for c in np.unique(label)}
    shared = np.array([len(batches_of[c]) > 1 for c in label[judged]])
    if not shared.any():
        return _all_but_itself(reference, label, judged), label[judged]
    judged = judged[shared]
    k = min(N_NEIGHBOURS, *(int((batch != b).sum()) for b in np.unique(batch[judged])))
    distance, labels = np.empty((len(judged), k)), np.empty((len(judged), k), dtype=label.dtype)
    for b in np.unique(batch[judged]):
        mine, others = batch[judged] == b, batch != b
        found = nearest_labelled(reference[others], label[others], reference[judged[mine]])
        distance[mine], labels[mine] = found.distance[:, :k], found.label[:, :k]
    return Labelled(distance, labels), label[judged]


def _all_but_itself(
    reference: Float[np.ndarray, "reference latent"],
    label: Int[np.ndarray, " reference"],
    judged: Int[np.ndarray, " judged"],
) -> Labelled:
    from sklearn.neighbors import NearestNeighbors

    k = min(N_NEIGHBOURS, len(reference) - 1)
    search = NearestNeighbors(n_neighbors=k + 1).fit(np.asarray(reference, np.float64))
    distance, place = search.kneighbors(np.asarray(reference[judged], np.float64))
    # a cell is among its own neighbours; of equal cells, any may stand for it
    itself = place == judged[:, None]
    itself[~itself.any(1), -1] = True
    shape = (len(judged), k)
    return Labelled(distance[~itself].reshape(shape), label[place][~itself].reshape(shape))
