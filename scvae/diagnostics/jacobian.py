"""The spectrum of the decoder's Jacobian: directions of the latent space that change its output, or do not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd import forward_ad

from ..data.batches import Batch
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.outcome import ACTIVE_ABOVE
from ..inference.posterior import batches_of
from ..kernels.context import working_on
from ..model.vae import VAE

AT_ONCE = 2**21  # cells x genes in one pass
SMALLEST = 1e-30  # lower bound of the variance, for a gene whose mean and derivative underflow
FLAT_BELOW = math.expm1(2.0 * ACTIVE_ABOVE)  # the eigenvalue at which 1/2 log(1 + eigenvalue) is 0.05 nats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Eigenvalues of JᵀJ, with J the derivative of each gene's mean along z in units of its standard deviation.

    J is d mean / dz / sqrt(variance). JᵀJ is the Fisher information about z in the counts of one cell; it is exact if
    the mean is the parameter, as in all heads here except zinb. z is in standard deviations of the prior, which has 1
    on this scale. A direction with eigenvalue e carries 1/2 log(1 + e) nats (the capacity of a normal channel, Cover &
    Thomas 2006, equation 9.16).

    Parameters
    ----------
    local
        Eigenvalues at the posterior mean of a cell, descending; mean over cells.
    shared
        Eigenvalues of the mean of JᵀJ over cells, descending: small only if the decoder is flat along the same
        direction at every cell.
    """

    local: Float[np.ndarray, " latent"]
    shared: Float[np.ndarray, " latent"]

    @property
    def flat(self) -> int:
        """Number of directions with less than 0.05 nats, the limit of an active dimension, at every cell."""
        return int((self.shared < FLAT_BELOW).sum())


def spectrum(model: FittedModel, cells: Cells, *, beta: float | None = None) -> Spectrum:
    """Spectrum of the decoder's Jacobian at the posterior means of these cells, by forward-mode differentiation.

    Parameters
    ----------
    model
        A fitted model.
    cells
        A sample of cells, each with at least one count.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    """
    metrics = np.concatenate(list(_metrics(model, cells, beta)))
    local = np.linalg.eigvalsh(metrics)[:, ::-1].clip(0.0).mean(0)
    shared = np.linalg.eigvalsh(metrics.mean(0))[::-1].clip(0.0)
    return Spectrum(local=local, shared=shared)


@torch.no_grad()
def _metrics(
    model: FittedModel, cells: Cells, beta: float | None
) -> Iterator[Float[np.ndarray, "cells latent latent"]]:
    size = max(1, AT_ONCE // (cells.rows.n_genes * model.n_latent))
    with working_on(model.device):
        for _, batch in batches_of(model, cells, size, beta=beta):
            jacobian = scaled_jacobian(model.network, batch, model.network.encode(batch).mean).double()
            jacobian = jacobian * model.network.prior.variance.double().sqrt()[:, None, None]
            yield torch.einsum("kcg,lcg->ckl", jacobian, jacobian).cpu().numpy()


def slope(function: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> Tensor:
    """The derivative of a function along a direction.

    Unlike `torch.func.jvp`, it leaves tensors that do not depend on `at` as they are, so that numba can read them: a
    decoder with a skip computes the encoder's input anew.
    """
    with warnings.catch_warnings(), forward_ad.dual_level():
        # at its first call, torch compiles rules with a deprecated function of its own, which warns
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        tangent: Tensor = forward_ad.unpack_dual(function(forward_ad.make_dual(at, direction))).tangent
    return tangent


def scaled_jacobian(
    network: VAE, batch: Batch, z: Float[Tensor, "cells latent"]
) -> Float[Tensor, "latent cells genes"]:
    """d mean / dz_k / sqrt(variance) of each gene in each cell, computed one direction k at a time."""

    def mean_at(z: Tensor) -> Tensor:
        return network.likelihood.distribution(network.features(z, batch), batch).mean

    scale = network.likelihood.distribution(network.features(z, batch), batch).variance.clamp_min(SMALLEST).rsqrt()
    columns = []
    for k in range(z.shape[1]):
        direction = torch.zeros_like(z)
        direction[:, k] = 1.0
        columns.append(slope(mean_at, z, direction) * scale)
    return torch.stack(columns)
