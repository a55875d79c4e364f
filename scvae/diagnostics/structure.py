"""Scores of the structure in an embedding, with and without labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from jaxtyping import Bool, Float, Int

from ..common.rng import numpy_generator
from .neighbours import N_NEIGHBOURS, Neighbours, as_igraph, graph_of, leiden, nearest

RESAMPLE, POSTERIOR, CLUSTERING = 20, 21, 22  # streams of random numbers
RESOLUTIONS = (0.5, 1.0)  # for the label-free scores; 1 is scanpy's default
LABEL_RESOLUTIONS = (0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0)
N_RESAMPLES = 10
KEPT_SHARE = 0.9  # of the cells in a resample
WIDER = 2  # times as many neighbours are found, so that enough of them remain in a resample
N_DRAWS = 3  # of the posterior
REFERENCE_CELLS, LEAST_COMPARED = 2_000, 3  # most and fewest cells for `trustworthiness`
Written = Callable[[np.ndarray], np.ndarray]
Reference = tuple[Float[np.ndarray, "_ _"], Int[np.ndarray, " _"]]  # one with cells and components of its own


@dataclass(frozen=True, slots=True, kw_only=True)
class Structure:
    """Structure of an embedding; each score is at most 1, and larger means more structure.

    Parameters
    ----------
    leiden_stability
        See `leiden_stability`.
    graph_agreement
        See `graph_agreement`.
    modularity
        Modularity of the Leiden partition, mean over `RESOLUTIONS` (Newman & Girvan 2004, always at resolution 1).
    trustworthiness
        See `trustworthiness`; mean over the spaces that the embedding is compared with.
    n_clusters
        Number of Leiden clusters at resolution 1.
    """

    leiden_stability: float
    graph_agreement: float
    modularity: float
    trustworthiness: float
    n_clusters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelAgreement:
    """Agreement of an embedding with labels.

    Parameters
    ----------
    nmi, ari
        Normalised mutual information and adjusted Rand index between labels and Leiden clusters, each the best over
        `LABEL_RESOLUTIONS`.
    silhouette
        Mean silhouette of the labels, Euclidean (Rousseeuw 1987).
    """

    nmi: float
    ari: float
    silhouette: float


def structure(
    mean: Float[np.ndarray, "cells latent"],
    variance: Float[np.ndarray, "cells latent"],
    references: Sequence[Reference],
    *,
    seed: int,
    written: Written = np.asarray,
) -> Structure:
    """The label-free scores of one embedding.

    Parameters
    ----------
    mean, variance
        Moments of q(z | x).
    references
        Coordinates of some of the cells in each space that the embedding is compared with (see
        `scvae.diagnostics.expression_pca`), and the positions of these cells.
    seed
        Seed of all random numbers. The same seed gives the same resamples and the same noise for every embedding, so
        that their scores can be compared.
    written
        Turns z into the coordinates to be scored.

    Returns
    -------
    Structure
        The scores.
    """
    embedding = written(mean)
    wide = nearest(embedding, WIDER * N_NEIGHBOURS)
    graph = as_igraph(graph_of(_narrow(wide)))
    partitions = [leiden(graph, resolution=resolution, seed=_cluster_seed(seed)) for resolution in RESOLUTIONS]
    trusted = [trustworthiness(reference, embedding[compared]) for reference, compared in references]
    return Structure(
        leiden_stability=leiden_stability(wide, partitions, seed=seed),
        graph_agreement=graph_agreement(mean, variance, seed=seed, written=written),
        modularity=float(np.mean([graph.modularity(clusters, weights="weight") for clusters in partitions])),
        trustworthiness=float(np.mean(trusted)) if trusted else float("nan"),
        n_clusters=int(partitions[RESOLUTIONS.index(1.0)].max()) + 1,
    )


def leiden_stability(wide: Neighbours, partitions: list[Int[np.ndarray, " cells"]], *, seed: int) -> float:
    """Mean adjusted Rand index between Leiden clusterings of all cells and of resampled cells.

    `N_RESAMPLES` times, `KEPT_SHARE` of the cells are drawn without replacement. Their own graph of nearest neighbours
    is clustered at each of `RESOLUTIONS` and compared with the clusters of all cells, on the drawn cells (the scheme
    of Tang et al. 2021, "Evaluating single-cell cluster stability", with the Rand index instead of Jaccard's). The
    score is 0 if either clustering is a single cluster, because no structure was found.

    Parameters
    ----------
    wide
        Nearest neighbours of all cells, more than the graph needs.
    partitions
        Clusters of all cells at each of `RESOLUTIONS`.
    seed
        Seed of the resamples and of the order in which Leiden visits the cells.
    """
    from sklearn.metrics import adjusted_rand_score

    n, scores = len(wide.index), []
    for resample in range(N_RESAMPLES):
        drawn = numpy_generator(seed, RESAMPLE, resample).permutation(n)[: max(1, round(KEPT_SHARE * n))]
        kept = np.zeros(n, dtype=bool)
        kept[drawn] = True
        graph = as_igraph(graph_of(wide.among(kept)))
        for resolution, clusters in zip(RESOLUTIONS, partitions, strict=True):
            again = leiden(graph, resolution=resolution, seed=_cluster_seed(seed, resample + 1))
            before = clusters[kept]
            found = before.min() < before.max() and again.max() > 0
            scores.append(adjusted_rand_score(before, again) if found else 0.0)
    return float(np.mean(scores))


def graph_agreement(
    mean: Float[np.ndarray, "cells latent"],
    variance: Float[np.ndarray, "cells latent"],
    *,
    seed: int,
    written: Written = np.asarray,
) -> float:
    """Fraction of the nearest neighbours shared by two draws of the embedding z ~ q(z | x), in `written` coordinates.

    Mean over cells and over the pairs of `N_DRAWS` draws, for the `N_NEIGHBOURS` neighbours of a cell besides itself:
    1 if the posterior determines them, k / (n - 1) if they are random.
    """
    n = len(mean)
    k = min(N_NEIGHBOURS, n - 1)
    neighbours = []
    for draw in range(N_DRAWS):
        noise = numpy_generator(seed, POSTERIOR, draw).standard_normal(mean.shape, dtype=np.float32)
        index = nearest(written(mean + np.sqrt(variance) * noise), k + 1).index[:, 1:]
        ones = np.ones(n * k, dtype=np.int32)
        neighbours.append(sp.csr_array((ones, index.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n)))
    pairs = [(i, j) for i in range(N_DRAWS) for j in range(i)]
    shared = [neighbours[i].multiply(neighbours[j]).sum() / (n * k) for i, j in pairs]
    return float(np.mean(shared))


def trustworthiness(
    reference: Float[np.ndarray, "cells components"], embedding: Float[np.ndarray, "cells latent"]
) -> float:
    """Whether neighbours in the embedding are also neighbours in the reference space (Venna & Kaski 2001, equation 2).

    1 if all are, about 0.5 if they are random. Uses the k = `N_NEIGHBOURS` nearest neighbours, fewer if there are not
    three times as many cells; NaN for fewer than `LEAST_COMPARED`. Memory grows with the square of the number of cells.
    """
    from sklearn.manifold import trustworthiness as of

    k = min(N_NEIGHBOURS, len(embedding) // 3)
    return float(of(reference, embedding, n_neighbors=k)) if k else float("nan")


def label_agreement(
    embedding: Float[np.ndarray, "cells latent"],
    labels: Int[np.ndarray, " cells"],
    *,
    seed: int,
) -> LabelAgreement:
    """Scores of an embedding against labels, with clusters of all cells.

    Parameters
    ----------
    embedding
        One row per cell.
    labels
        Label code of each cell; negative for cells without a label, which are clustered but not compared.
    seed
        Seed of the order in which Leiden visits the cells.

    Returns
    -------
    LabelAgreement
        The scores; NaN if there are fewer than two labels.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score, silhouette_score

    known: Bool[np.ndarray, " cells"] = labels >= 0
    truth = labels[known]
    n_labels = len(np.unique(truth))
    if n_labels < 2:
        return LabelAgreement(nmi=float("nan"), ari=float("nan"), silhouette=float("nan"))
    graph = as_igraph(graph_of(nearest(embedding)))
    found = [leiden(graph, resolution=r, seed=_cluster_seed(seed))[known] for r in LABEL_RESOLUTIONS]
    return LabelAgreement(
        nmi=float(max(normalized_mutual_info_score(truth, clusters) for clusters in found)),
        ari=float(max(adjusted_rand_score(truth, clusters) for clusters in found)),
        silhouette=float(silhouette_score(embedding[known], truth)) if n_labels < len(truth) else float("nan"),
    )


def _narrow(wide: Neighbours) -> Neighbours:
    return Neighbours(wide.index[:, :N_NEIGHBOURS], wide.distance[:, :N_NEIGHBOURS])


def _cluster_seed(seed: int, *turn: int) -> int:
    return int(numpy_generator(seed, CLUSTERING, *turn).integers(2**32))
