"""Directions of the latent space along which the decoder does not move."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..data.intake import Cells
from ..inference.fitted import ACTIVE_ABOVE, FittedModel
from ..inference.posterior import batches_of
from ..kernels.context import working_on
from ..model.vae import VAE

AT_ONCE = 2**21  # cells x genes of one pass
SMALLEST = 1e-30  # variance: of a gene whose mean underflows, and its derivative with it
FLAT_BELOW = math.expm1(2.0 * ACTIVE_ABOVE)  # the eigenvalue at which 1/2 log(1 + eigenvalue) is 0.05 nats


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Spectrum:
    """Eigenvalues of JᵀJ, with J the derivative of each gene's mean along z in units of its standard deviation.

    J is d mean / dz / sqrt(variance), so that JᵀJ is the Fisher information on z of the counts of one cell (exact where
    the mean is the parameter, as in all heads here but zinb) and has a scale: the prior's is 1. A direction with
    eigenvalue e holds 1/2 log(1 + e) nats (the capacity of a normal channel, Cover & Thomas 2006, equation 9.16).

    Parameters
    ----------
    local
        Eigenvalues at the posterior mean of a cell, falling; mean over cells.
    shared
        Eigenvalues of the mean of JᵀJ over cells, falling: small only where the decoder is flat at every cell along
        the same direction.
    """

    local: Float[np.ndarray, " latent"]
    shared: Float[np.ndarray, " latent"]

    @property
    def flat(self) -> int:
        """Directions that hold less than 0.05 nats at every cell: the limit of an active dimension."""
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
        One of the β's of a model of many; None as in `FittedModel.beta_of`.
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
            yield torch.einsum("kcg,lcg->ckl", jacobian, jacobian).cpu().numpy()


def scaled_jacobian(
    network: VAE, batch: Batch, z: Float[Tensor, "cells latent"]
) -> Float[Tensor, "latent cells genes"]:
    """d mean / dz_k / sqrt(variance) of each gene of each cell, one direction k after the other."""

    def mean_at(z: Tensor) -> Tensor:
        return network.likelihood.distribution(network.features(z, batch), batch).mean

    scale = network.likelihood.distribution(network.features(z, batch), batch).variance.clamp_min(SMALLEST).rsqrt()
    columns = []
    for k in range(z.shape[1]):
        direction = torch.zeros_like(z)
        direction[:, k] = 1.0
        with warnings.catch_warnings():
            # torch compiles rules of its own at the first call, in a way that it warns of
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            columns.append(torch.func.jvp(mean_at, (z,), (direction,))[1] * scale)
    return torch.stack(columns)
