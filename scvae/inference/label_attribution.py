"""Why a cell got its label: integrated gradients of the label's log odds through encoder and classifier.

Sundararajan, Taly & Yan 2017, "Axiomatic attribution for deep networks", equation 1: the attribution of gene g is
(x_g - b_g) times the mean derivative of the log odds along the straight path from the baseline b to the cell x, both as
the encoder sees them. Summed over genes, attributions are the difference of the log odds at both ends. Along the path,
depth, covariates and conditions are those of the cell.

The first layer is linear, so the derivative by all genes is its weights times the derivative by its outputs. The path
is therefore walked in the outputs of this layer, and genes come in once, in two products of matrices for each block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import one_hot

from ..data.batches import Batch
from ..data.cells import Cells
from ..kernels.block import Dense
from ..kernels.context import working_on
from ..kernels.csr import CSR
from ..likelihoods.base import dense
from ..model.encoder import Encoder
from ..model.vae import VAE
from .fitted import FittedModel
from .posterior import batches_of

STEPS = 64  # midpoints of the path
BLOCK = 2**21  # values of a dense block: cells x genes


@dataclass(frozen=True, slots=True, eq=False)
class Attribution:
    """Attributions of groups of cells.

    Parameters
    ----------
    genes
        Mean attribution of each gene in each group, in nats of log odds.
    start, end
        Log odds of the label of each cell at the baseline and at the cell.
    """

    genes: Float[np.ndarray, "groups genes"]
    start: Float[np.ndarray, " cells"]
    end: Float[np.ndarray, " cells"]


@torch.no_grad()
def mean_input(model: FittedModel, cells: Cells) -> Float[np.ndarray, " genes"]:
    """The mean cell as the encoder sees it: for counts, the mean of their logarithms at a common depth."""
    total = torch.zeros(cells.rows.n_genes, dtype=torch.float64)
    with working_on(model.device):
        for _, batch in batches_of(model, cells, _block(cells)):
            total += dense(_seen(model.network, batch)[0]).sum(0).double().cpu()
    mean: Float[np.ndarray, " genes"] = (total / len(cells)).numpy()
    return mean


@torch.no_grad()
def attribute(
    model: FittedModel,
    cells: Cells,
    label: Int[np.ndarray, " cells"],
    group: Int[np.ndarray, " cells"],
    baseline: Float[np.ndarray, " genes"],
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
        Where the path begins, as the encoder sees it.
    steps
        Points of the path at which the derivative is taken.
    """
    network = model.network
    assert isinstance(network.encoder, Encoder)  # labels need one
    weight, n_groups = network.encoder.genes.weight, int(group.max()) + 1
    total = torch.zeros(n_groups, cells.rows.n_genes, dtype=torch.float64)
    start, end = np.empty(len(cells)), np.empty(len(cells))
    with working_on(model.device):
        origin = torch.from_numpy(baseline).float().to(model.device)
        for positions, batch in batches_of(model, cells, _block(cells)):
            x, covariates = _seen(network, batch)
            away = dense(x) - origin
            first = network.first_layer(Dense(origin.expand(len(batch), -1)), covariates, batch)
            wanted = torch.from_numpy(label[positions]).to(model.device)
            path = _Path(network, batch, first, away @ weight, wanted)
            start[positions], end[positions] = (path.log_odds(share).double().cpu().numpy() for share in (0.0, 1.0))
            part = away * (path.mean_slope(steps) @ weight.T)
            total.index_add_(0, torch.from_numpy(group[positions]), part.double().cpu())
    size = np.maximum(np.bincount(group, minlength=n_groups), 1)[:, None]
    return Attribution(total.numpy() / size, start, end)


def _block(cells: Cells) -> int:
    return max(1, BLOCK // cells.rows.n_genes)


def _seen(network: VAE, batch: Batch) -> tuple[CSR | Dense, Float[Tensor, "cells covariates"]]:
    """The cells as the encoder sees them."""
    return network.likelihood.encoder_input(network.shallow(batch))


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
