"""Why a cell got its label: integrated gradients of the label's log odds through encoder and classifier.

Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep networks", equation 1: the attribution of gene g is
(x_g - b_g) times the mean derivative of the log odds along the straight path from the baseline b to the cell x, both as
the encoder sees them. Summed over genes, attributions are the difference of the log odds at both ends. Along the path,
depth, covariates and conditions are those of the cell. With several measurements, the path leads through all that the
cell has, and attributions are summed over the features of all.

The first layer is linear, so the derivative by all genes is its weights times the derivative by its outputs. The path
is therefore walked in the outputs of this layer, and genes come in once, in two products of matrices for each block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ..data.batches import Batch
from ..data.cells import Cells
from ..kernels.block import Dense
from ..kernels.context import working_on
from ..likelihoods.base import dense
from ..model.encoder import Encoder
from ..model.vae import VAE
from ..model.views import ViewLayers, of_present
from .fitted import FittedModel
from .posterior import batches_of

STEPS = 64  # midpoints of the path
BLOCK = 2**21  # values of a dense block: cells x genes

# values, what else the encoder sees, and which cells have them
_Seen: TypeAlias = tuple[Float[Tensor, "cells features"], Float[Tensor, "cells _"], Tensor]


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Attributions of groups of cells.

    Parameters
    ----------
    genes
        Mean attribution of each gene in each group, in nats of log odds.
    further
        The same of the features of each further measurement.
    start, end
        Log odds of the label of each cell at the baseline and at the cell.
    """

    genes: Float[np.ndarray, "groups genes"]
    further: tuple[Float[np.ndarray, "groups _"], ...]
    start: Float[np.ndarray, " cells"]
    end: Float[np.ndarray, " cells"]


@torch.no_grad()
def mean_input(model: FittedModel, cells: Cells) -> list[Float[np.ndarray, " features"]]:
    """The mean cell as the encoder sees each measurement: for counts, the mean of logarithms at a common depth."""
    totals: list[Float[Tensor, " features"]] = []
    with working_on(model.device):
        for _, batch in batches_of(model, cells, _block(cells)):
            sums = [x.sum(0).double().cpu() for x, _, _ in _seen(model.network, model.network.shallow(batch))]
            totals = [total + more for total, more in zip(totals, sums, strict=True)] if totals else sums
    having = [max(int(present.sum()), 1) for present in cells.having]
    return [(total / n).numpy() for total, n in zip(totals, having, strict=True)]


@torch.no_grad()
def attribute(
    model: FittedModel,
    cells: Cells,
    label: Int[np.ndarray, " cells"],
    group: Int[np.ndarray, " cells"],
    baseline: list[Float[np.ndarray, " features"]],
    *,
    steps: int = STEPS,
) -> Attribution:
    """Attributions of the log odds of a label of each cell, averaged over the cells of each group.

    Memory does not grow with cells x genes.

    Parameters
    ----------
    model
        A model fitted with labels.
    cells
        Cells in which all genes of the model were measured.
    label, group
        Label whose log odds are explained, and group, of each cell.
    baseline
        Where the path begins, as the encoder sees each measurement.
    steps
        Points of the path at which the derivative is taken.
    """
    network = model.network
    assert isinstance(network.encoder, Encoder)  # labels need one
    n_groups = int(group.max()) + 1
    weights = [network.encoder.genes.weight]
    for layers in network.views:
        assert isinstance(layers, ViewLayers)
        weights.append(layers.values.weight)
    totals = [torch.zeros(n_groups, len(mean), dtype=torch.float64) for mean in baseline]
    start, end = np.empty(len(cells)), np.empty(len(cells))
    with working_on(model.device):
        origins = [torch.from_numpy(mean).float().to(model.device) for mean in baseline]
        for positions, batch in batches_of(model, cells, _block(cells)):
            shallow = network.shallow(batch)
            seen = _seen(network, shallow)
            from_there = [x - origin * present for (x, _, present), origin in zip(seen, origins, strict=True)]
            away = torch.stack([part @ weight for part, weight in zip(from_there, weights, strict=True)]).sum(0)
            wanted = torch.from_numpy(label[positions]).to(model.device)
            path = _Path(network, batch, _first_layer(network, shallow, seen, origins), away, wanted)
            start[positions], end[positions] = (path.log_odds(share).double().cpu().numpy() for share in (0.0, 1.0))
            slope = path.mean_slope(steps)
            for total, part, weight in zip(totals, from_there, weights, strict=True):
                of_cell = part * (slope @ weight.T)
                total.index_add_(0, torch.from_numpy(group[positions]), of_cell.double().cpu())
    size = np.maximum(np.bincount(group, minlength=n_groups), 1)[:, None]
    genes, *further = (total.numpy() / size for total in totals)
    return Attribution(genes, tuple(further), start, end)


def _block(cells: Cells) -> int:
    return max(1, BLOCK // max(cells.rows.n_genes, *(view.rows.n_genes for view in cells.views), 1))


def _seen(network: VAE, batch: Batch) -> list[_Seen]:
    """The cells as the encoder sees each measurement; 0 in cells that lack it."""
    x, covariates = of_present(network.likelihood.encoder_input(batch), batch.present)
    here = torch.ones(len(batch), 1, device=x.values.device) if batch.present is None else batch.present[:, None]
    found = [(dense(x), covariates, here)]
    for layers, of_view in network.with_layers(batch):
        x, covariates = of_present(layers.seen(of_view), of_view.present)
        assert of_view.present is not None
        found.append((dense(x), covariates, of_view.present[:, None]))
    return found


def _first_layer(
    network: VAE, batch: Batch, seen: list[_Seen], origins: list[Float[Tensor, " features"]]
) -> Float[Tensor, "cells width"]:
    """The outputs of the first layer for cells whose values are the origins, where they have the measurement."""
    _, covariates, present = seen[0]
    first = network.first_layer(Dense(origins[0] * present), covariates, batch)
    for (layers, _), (_, covariates, present), origin in zip(
        network.with_layers(batch), seen[1:], origins[1:], strict=True
    ):
        first = first + layers.first_layer(Dense(origin * present), covariates, present[:, 0])
    return first


@dataclass(frozen=True, slots=True, eq=False)
class _Path:
    """The paths of some cells, in the outputs of the encoder's first layer: where they begin, and how far they lead."""

    network: VAE
    batch: Batch
    first: Float[Tensor, "cells width"]
    away: Float[Tensor, "cells width"]
    label: Int[Tensor, " cells"]

    def mean_slope(self, steps: int) -> Float[Tensor, "cells width"]:
        """Mean derivative of the log odds by the outputs of the first layer, at the middle of equal parts."""
        total = torch.zeros_like(self.away)
        for step in range(steps):
            moved = torch.zeros_like(self.away, requires_grad=True)
            with torch.enable_grad():
                (slope,) = torch.autograd.grad(self.log_odds((step + 0.5) / steps, moved).sum(), moved)
            total += slope
        return total / steps

    def log_odds(self, share: float, moved: Float[Tensor, "cells width"] | float = 0.0) -> Float[Tensor, " cells"]:
        """log p / (1 - p) of the label of each cell after this share of its path, moved aside from there."""
        encoder, classifier = self.network.encoder, self.network.classifier
        assert isinstance(encoder, Encoder)
        assert classifier is not None
        posterior = encoder.onwards(self.first + share * self.away + moved, None, self.batch.knots)
        log_prob = torch.log_softmax(classifier(posterior.mean), dim=1)
        chosen = one_hot(self.label, log_prob.shape[1]).bool()
        return log_prob[chosen] - log_prob.masked_fill(chosen, -torch.inf).logsumexp(1)
