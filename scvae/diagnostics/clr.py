"""Counts as CLR values for a Gaussian head, and what such a head says of the counts themselves."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.special import log_ndtr

from ..data.batches import Batch
from ..data.rows import DenseRows
from ..data.views import ViewCells
from ..kernels.autograd import WeightedLogProb, repeat_cells, weighted
from ..likelihoods import Gaussian
from ..likelihoods.base import dense


def as_clr(view: ViewCells) -> ViewCells:
    """The CLR values of counts: log(1 + x) minus its mean over the measured features of the cell.

    In place of the library size is the geometric mean of 1 + x, with which `GaussianOfCounts` finds the counts again.
    """
    logs = np.log1p(view.rows.take(np.arange(view.rows.n_cells)).to_dense().numpy())
    measured = np.ones(logs.shape[1], dtype=bool)
    measured[view.missing if view.missing is not None else []] = False
    centre = logs.mean(1, where=measured)
    values = np.where(view.present[:, None] & measured, logs - centre[:, None], np.float32(0.0))
    return replace(view, rows=DenseRows(values), library=np.exp(centre))


class GaussianOfCounts(Gaussian):
    """A Gaussian head of CLR values, judged as a law of the counts from which `as_clr` made them.

    A count x stands for the interval of CLR values from log(x + 1/2) - c to log(x + 3/2) - c, where c is the cell's
    mean of log(1 + x), and 0 for all below log(3/2) - c. These intervals have no gaps, so the probabilities of all
    counts of a protein add up to 1, given c: as those of an NB do, given the library size. (For large counts it is
    the density times the derivative of the CLR values, 1 / (1 + x).)
    """

    @classmethod
    def like(cls, head: Gaussian) -> GaussianOfCounts:
        """A head with the weights of another, for a model of one β."""
        n_genes, n_features = head.output.weight.shape
        same = cls(n_features, n_genes, minimum_scale=head.minimum_scale, generator=torch.Generator())
        same.load_state_dict(head.state_dict())
        return same.to(head.centre.device)

    def log_prob(
        self, features: Float[Tensor, "rows features"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        law = self.distribution(features, batch)
        geometric = batch.library[:, None].double()
        counts = (dense(batch.x).double().exp() * geometric).round() - 1.0
        low = torch.where(counts > 0, (counts + 0.5).log(), -torch.inf) - geometric.log()
        high = (counts + 1.5).log() - geometric.log()
        scale = law.log_scale.double().exp()
        ends = [(repeat_cells(end, len(row_weight)) - law.mean) / scale for end in (low, high)]
        table = _log_between(*ends)
        table = table if batch.missing is None else table.index_fill(1, batch.missing, 0.0)
        total, per_row = weighted(table, row_weight)
        return WeightedLogProb(total.to(row_weight), per_row)


def _log_between(low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """log of the probability of a standard normal variable between two numbers, without loss in either tail."""
    above = low > 0  # the same by symmetry, where log_ndtr is not near 0
    low, high = torch.where(above, -high, low), torch.where(above, -low, high)
    smaller, larger = log_ndtr(low), log_ndtr(high)
    log_probability: Tensor = larger + torch.log(-torch.expm1(smaller - larger))
    return log_probability
