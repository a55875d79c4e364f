"""Names for cells from the classifier of a model that was fitted with labels: probabilities and outlier scores.

The logits are divided by a temperature (Guo et al. 2017, "On calibration of modern neural networks"): the one that
maximises the likelihood of the labels of cells that were held out of the training. A normal prior on its logarithm
keeps a handful of cells from deciding much.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from ..common.rng import numpy_generator
from ..data.batches import chunks, split
from ..data.intake import Cells
from ..kernels.context import working_on
from .fitted import FittedModel
from .known_labels import KnownLabels
from .label_transfer import Transfer, all_but_itself, nearest_labelled, outlier_scores, widening
from .posterior import EMBEDDING_CHUNK, posterior_moments

CHOICE = 60  # random stream that draws the cells to keep
MOST_KEPT = 5_000  # labelled cells, and held-out ones among them
SPREAD = 0.5  # standard deviation of the prior of the log temperature
HOTTEST = 20.0  # largest temperature, and the inverse of the smallest


def known_labels(model: FittedModel, cells: Cells) -> KnownLabels | None:
    """What the model keeps of the labels of the cells of its fit; None if these have no labels."""
    if model.schema.labels is None or cells.labels is None:
        return None
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    order = numpy_generator(model.seed, CHOICE).permutation(np.flatnonzero(cells.labels >= 0))
    is_held = np.isin(order, held_out)
    kept, judged = (np.sort(some[:MOST_KEPT]) for some in (order[~is_held], order[is_held]))
    place, held_out_place = (posterior_moments(model, cells.taken(some))[0] for some in (kept, judged))
    logits = logits_at(model, held_out_place)
    return KnownLabels(
        temperature=temperature_of(logits, cells.labels[judged]),
        place=place,
        label=cells.labels[kept],
        held_out=logits,
        held_out_place=held_out_place,
        truth=cells.labels[judged],
    )


def labels_of(model: FittedModel) -> tuple[KnownLabels, tuple[str, ...]]:
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
    return model.labels, model.schema.labels.names


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


def temperature_of(logits: Float[np.ndarray, "cells labels"], truth: Int[np.ndarray, " cells"]) -> float:
    """The temperature with the highest posterior density; 1 without cells."""
    logits = logits.astype(np.float64)
    rows = np.arange(len(truth))

    def loss(log_temperature: float) -> float:
        log_prob = log_softmax(logits / np.exp(log_temperature), axis=1)[rows, truth]
        return float(0.5 * (log_temperature / SPREAD) ** 2 - log_prob.sum())

    bounds = (-np.log(HOTTEST), np.log(HOTTEST))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def predict(
    model: FittedModel,
    known: KnownLabels,
    mean: Float[np.ndarray, "cells latent"],
    peers: Int[np.ndarray, "cells peers"],
) -> Transfer:
    """Calibrated label probabilities and outlier scores of cells, as `label_transfer.transfer` returns them.

    Parameters
    ----------
    model
        A model fitted with labels.
    known
        Its record of them.
    mean
        Posterior means of the cells in the network's coordinates.
    peers
        As in `label_transfer.transfer`.
    """
    probability = calibrated(known, logits_at(model, mean))
    place, label = model.written(known.place), known.label
    own = all_but_itself(place, label, np.arange(len(place))).nearness
    if len(known.truth):  # the classifier draws the cells that it was trained on closer to each other than any others
        held_out = nearest_labelled(place, label, model.written(known.held_out_place)).nearness
        own = own * widening(own, label, held_out, known.truth, most=np.inf)
    far = nearest_labelled(place, label, model.written(mean)).nearness
    outlier = outlier_scores(own, label, far, probability.argmax(1), peers)
    return Transfer(probability=probability, outlier=outlier)


def calibrated(known: KnownLabels, logits: Float[np.ndarray, "cells labels"]) -> Float[np.ndarray, "cells labels"]:
    """Probabilities from logits at the temperature of the record."""
    probability: Float[np.ndarray, "cells labels"] = softmax(logits.astype(np.float64) / known.temperature, axis=1)
    return probability
