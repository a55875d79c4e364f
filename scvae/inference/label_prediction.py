"""Names for cells from the classifier of a model that was fitted with labels: probabilities and outlier scores.

The probability of label c is softmax(logits / T)_c, with a temperature T (Guo et al. 2017, "On calibration of modern
neural networks") that is most probable given the labels of cells held out of the training. Some of these may be wrong:
a label as given is c with probability (1 - u) softmax(logits / T)_c + u / C, with a share u that is drawn at random and
follows with T. Without u, a few wrong labels would make every probability too small. Priors, log T ~ N(0, 0.5^2) and
u ~ Beta(1, 10), keep a handful of cells from deciding much. A label that is a coarser name of several others is given
with the sum of their probabilities.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from scipy.special import softmax

from ..common.rng import numpy_generator
from ..data.batches import chunks, split
from ..data.cells import Cells
from ..data.labels import Labels
from ..kernels.context import working_on
from .fitted import FittedModel
from .known_labels import KnownLabels
from .label_transfer import Transfer, all_but_itself, nearest_labelled, outlier_scores, widening
from .posterior import EMBEDDING_CHUNK, posterior_moments

CHOICE = 60  # random stream that draws the cells to keep
MOST_KEPT = 5_000  # labelled cells, and held-out ones among them
SPREAD, TRUST = 0.5, 10.0  # standard deviation of the prior of log T, and second parameter of that of u
HOTTEST, MOST_UNIFORM = 20.0, 0.9  # largest T, which is the inverse of the smallest, and largest u
STARTS = (0.01, 0.2)  # of u
TINY = 1e-300


def known_labels(model: FittedModel, cells: Cells) -> KnownLabels | None:
    """What the model keeps of the labels of the cells of its fit; None if these have no labels."""
    if model.schema.labels is None or cells.labels is None:
        return None
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    order = numpy_generator(model.seed, CHOICE).permutation(np.flatnonzero(cells.labels >= 0))
    is_held = np.isin(order, held_out)
    kept, judged = (np.sort(some[:MOST_KEPT]) for some in (order[~is_held], order[is_held]))
    place, held_out_place = (posterior_moments(model, cells.taken(some))[0] for some in (kept, judged))
    logits, members = logits_at(model, held_out_place), model.schema.labels.members
    temperature, uniform = calibration_of(logits, members[cells.labels[judged]])
    return KnownLabels(
        temperature=temperature,
        uniform=uniform,
        place=place,
        label=likeliest(logits_at(model, place), members[cells.labels[kept]]),
        held_out=logits,
        held_out_place=held_out_place,
        truth=cells.labels[judged],
    )


def likeliest(
    logits: Float[np.ndarray, "cells labels"], among: Bool[np.ndarray, "cells labels"]
) -> Int[np.ndarray, " cells"]:
    """The most probable of those labels that each cell may have."""
    return np.asarray(np.where(among, logits, -np.inf).argmax(1), dtype=np.int64)


def labels_of(model: FittedModel) -> tuple[KnownLabels, Labels]:
    """What the model keeps of the labels of its fit, and their names.

    Raises
    ------
    ValueError
        If it was fitted without labels.
    """
    if model.labels is None or model.schema.labels is None:
        raise ValueError(
            "the model was fitted without labels; fit one that listens to them (scvae.fit(adata, labels_key=...)), or "
            "use scvae.tl.transfer_labels, which needs labelled cells as reference"
        )
    return model.labels, model.schema.labels


@torch.no_grad()
def logits_at(model: FittedModel, mean: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells labels"]:
    """Logits of the classifier at posterior means in the network's coordinates, float32."""
    classifier = model.network.classifier
    assert classifier is not None
    logits = np.empty((len(mean), len(classifier.bias)), np.float32)
    with working_on(model.device):
        for part in chunks(len(mean), EMBEDDING_CHUNK):
            logits[part] = classifier(torch.from_numpy(mean[part]).to(model.device)).cpu().numpy()
    return logits


def calibration_of(
    logits: Float[np.ndarray, "cells labels"], truth: Bool[np.ndarray, "cells labels"]
) -> tuple[float, float]:
    """The most probable temperature and share of random labels; 1 and 0 without cells.

    `truth` says which labels a cell may have: one, or several under a coarser name.
    """
    n_right, n_labels = truth.sum(1), logits.shape[1]

    def loss(parameters: Float[np.ndarray, "2"]) -> float:
        log_temperature, uniform = parameters
        right = (softmax(logits.astype(np.float64) / np.exp(log_temperature), axis=1) * truth).sum(1)
        prior = 0.5 * (log_temperature / SPREAD) ** 2 - (TRUST - 1.0) * np.log1p(-uniform)
        return float(prior - np.log((1.0 - uniform) * right + uniform * n_right / n_labels + TINY).sum())

    bounds = [(-np.log(HOTTEST), np.log(HOTTEST)), (0.0, MOST_UNIFORM)]
    found = [minimize(loss, (0.0, start), bounds=bounds, method="L-BFGS-B") for start in STARTS]
    log_temperature, uniform = min(found, key=lambda each: each.fun).x
    return float(np.exp(log_temperature)), float(uniform)


def predict(
    model: FittedModel,
    known: KnownLabels,
    members: Bool[np.ndarray, "codes labels"],
    mean: Float[np.ndarray, "cells latent"],
    peers: Int[np.ndarray, "cells peers"],
    batch: Int[np.ndarray, " cells"],
) -> Transfer:
    """Calibrated label probabilities and outlier scores of cells, as `label_transfer.transfer` returns them.

    Parameters
    ----------
    model
        A model fitted with labels.
    known
        Its record of them.
    members
        Which labels a cell with each code may have, as `Labels.members`.
    mean
        Posterior means of the cells in the network's coordinates.
    peers, batch
        As in `label_transfer.transfer`.
    """
    probability = calibrated(known, logits_at(model, mean))
    place, label = model.written(known.place), known.label
    own = all_but_itself(place, label, np.arange(len(place))).nearness
    if len(known.truth):  # the classifier draws the cells that it was trained on closer to each other than any others
        held_out = nearest_labelled(place, label, model.written(known.held_out_place)).nearness
        truth = likeliest(known.held_out, members[known.truth])
        own = own * widening(own, label, held_out, truth, most=np.inf)
    far = nearest_labelled(place, label, model.written(mean)).nearness
    outlier = outlier_scores(own, label, far, probability.argmax(1), peers, batch)
    return Transfer(probability=probability, outlier=outlier)


def calibrated(known: KnownLabels, logits: Float[np.ndarray, "cells labels"]) -> Float[np.ndarray, "cells labels"]:
    """Probabilities of the true labels from logits by the formula of this module."""
    probability: Float[np.ndarray, "cells labels"] = softmax(logits.astype(np.float64) / known.temperature, axis=1)
    return probability
