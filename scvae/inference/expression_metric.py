"""The metric of a fitted model: which directions of the latent space change expression, and how much."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.distributed import ranks
from ..common.rng import numpy_generator
from ..data.cells import Cells
from ..kernels.context import working_on
from ..likelihoods import Distribution
from ..likelihoods.binary import BernoulliTable
from ..likelihoods.continuous import GaussianTable
from ..likelihoods.counts import NegativeBinomialTable, ZeroInflatedTable
from .fitted import FittedModel
from .metric import Metric
from .posterior import batches_of
from .views import every_view

AT_ONCE = 2**20  # cells x genes decoded in one pass
CELLS = 6  # stream of the random numbers that draw the cells
MOST_CELLS = 2_000
# of the squared slopes, without and with batches; measured: "The metric of the embedding" in benchmarks/README.md
EXPONENT, WITH_BATCHES = 0.25, 0.125
UNMOVED = 1e-3  # added to the variances of the means, so that a dimension with less variation counts as flat
FLATTEST = 1e-8  # lower bound of a squared slope relative to the largest, so that a metric can be inverted


def with_metric(model: FittedModel, cells: Cells) -> FittedModel:
    """The model with its metric at the given cells, those of the fit; of several processes, the first computes it.

    Posterior means of at most `MOST_CELLS` cells are decoded at the default β, all with the same library size, and
    expression is put on the scale of `stabilized`. A holds the slopes of its linear regression on z within batches,
    one row for each dimension of z. With A A^T = V diag(w) V^T, the new dimensions are the columns of V, by descending
    w, with scales w^`EXPONENT` (or `WITH_BATCHES`) whose mean square is set to 1. (With an exponent of 1/2, distances
    would be proportional to those of decoded cells, to first order.) The cubes of the slopes along a dimension have a
    positive sum: the genes that change most rise. With several measurements, the features of all are genes here. There
    is no metric if expression is constant or not finite, or if the decoder reads the data of each cell beside z.
    """
    return replace(model, metric=ranks().first(lambda: _metric_of(model, cells)))


@torch.no_grad()
def _metric_of(model: FittedModel, cells: Cells) -> Metric | None:
    if model.network.decoder.skip is not None:
        return None
    filled = np.flatnonzero(cells.library > 0)
    cells = cells.taken(np.sort(numpy_generator(model.seed, CELLS).permutation(filled)[:MOST_CELLS]))
    with working_on(model.device):
        slopes = torch.cat([_slopes(*seen) for seen in every_view(model, cells)], dim=1).numpy()
    if not np.isfinite(slopes).all():
        return None
    squares, directions = np.linalg.eigh(slopes @ slopes.T)
    squares, directions = squares[::-1], directions[:, ::-1]
    if not squares[0] > 0:
        return None
    exponent = EXPONENT if model.schema.batch is None else WITH_BATCHES
    scale = np.maximum(squares, FLATTEST * squares[0]) ** exponent
    along = directions.T @ slopes
    sign = np.where((along**3).sum(1) < 0, -1.0, 1.0)
    return Metric(directions * (sign * scale / np.sqrt(np.mean(scale**2))))


def _slopes(model: FittedModel, cells: Cells) -> Float[Tensor, "latent genes"]:
    """Slopes of decoded expression on the posterior means, by least squares within batches; float64."""
    network, size = model.network, max(1, AT_ONCE // len(model.genes))
    library = float(np.median(cells.library))
    z = torch.cat([network.encode(batch).mean.double().cpu() for _, batch in batches_of(model, cells, size)])
    group = torch.from_numpy(cells.group)
    sums = torch.zeros(int(group.max()) + 1, z.shape[1], dtype=torch.float64).index_add_(0, group, z)
    centred = z - (sums / group.bincount()[:, None])[group]
    together = torch.zeros(z.shape[1], len(model.genes), dtype=torch.float64)
    for positions, batch in batches_of(model, cells, size):
        alike = replace(batch, library=torch.full_like(batch.library, library))
        features = network.features(z[positions].to(alike.library), alike)
        table = network.likelihood.distribution(features, alike)
        together += centred[positions].T @ stabilized(table).double().cpu()
    spread = centred.T @ centred + UNMOVED * len(z) * torch.eye(z.shape[1], dtype=torch.float64)
    slopes: Tensor = torch.linalg.solve(spread, together)
    return slopes


def stabilized(table: Distribution) -> Float[Tensor, "rows genes"]:
    """Means on a scale on which the variance is 1 to first order: the integral of d mean / sqrt(variance).

    2 sqrt(theta) asinh(sqrt(mean / theta)) for negative binomial counts (Anscombe 1948), also where zeros are inflated,
    2 sqrt(mean) for Poisson counts, 2 asin(sqrt(mean)) for binary data and mean / scale for real values.
    """
    if isinstance(table, BernoulliTable):
        return 2.0 * torch.asin(table.mean.sqrt())
    if isinstance(table, GaussianTable):
        return table.mean / table.variance.sqrt()
    law = table.base if isinstance(table, ZeroInflatedTable) else table
    if isinstance(law, NegativeBinomialTable):
        half_log_theta = 0.5 * law.log_inverse_dispersion
        return 2.0 * half_log_theta.exp() * torch.asinh(torch.exp(0.5 * law.log_mean - half_log_theta))
    return 2.0 * law.mean.sqrt()
