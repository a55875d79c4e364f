"""The amortization gap (loss due to the encoder) and the variational gap (loss due to the shape of q)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..common.rng import torch_generator
from ..data.batches import Batch
from ..data.cells import Cells
from ..inference.fitted import FittedModel
from ..inference.posterior import batches_of, log_likelihood_bound
from ..kernels.context import working_on
from ..model.latent.codebook import Codebook
from ..model.latent.posterior import DiagonalNormal
from ..model.objective import joint_of_values
from ..model.refinement import best_posterior
from ..model.vae import VAE

JUDGE = 33  # stream of random numbers
AT_ONCE = 64  # cells
STEPS = 100
JUDGE_DRAWS = 32
BOUND_DRAWS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A mean difference over cells in nats, its standard error and the number of cells."""

    value: float
    error: float
    n_cells: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Differences between the objective and the best value it could reach with this decoder.

    Parameters
    ----------
    amortization
        Objective with the best normal q of each cell minus the objective with the encoder's q (Cremer et al. 2018,
        equation 4), both at the model's β. For codes, the best code of each cell takes the place of the best normal q.
    variational
        Importance-weighted bound minus ELBO, both at β = 1 and with the encoder's q: at most log p(x) - ELBO.
    optimized_kl
        Mean KL(q || p) of the best q of each cell, in nats: the information that the decoder could use.
    """

    amortization: Gap
    variational: Gap
    optimized_kl: float


def gaps(model: FittedModel, cells: Cells, *, beta: float | None = None, seed: int) -> Gaps:
    """Both gaps, averaged over these cells.

    For the amortization gap, the mean and log variance of each cell's q start at the encoder's output and follow the
    gradient of the objective (Adam, fresh noise at every step, two draws of opposite sign). The two posteriors are
    then compared with the same noise, which the optimisation has not used. The gap therefore cannot come from fitting
    the noise, and it may be negative within its error. The best of finitely many codes is found by decoding them all.

    Parameters
    ----------
    model
        A fitted model.
    cells
        A sample of cells.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    seed
        Seed of the noise.
    """
    weight = model.beta_of(beta)
    network = model.network
    gain, kl = np.empty(len(cells)), np.empty(len(cells))
    with working_on(model.device):
        for i, (positions, batch) in enumerate(batches_of(model, cells, AT_ONCE, beta=beta)):
            with torch.no_grad():
                before = network.encode(batch)
            if isinstance(network.prior, Codebook):
                found = _gain_of_code(network, network.prior, batch, before)
            else:
                after = best_posterior(network, batch, before, beta=weight, seed=seed, steps=STEPS)
                found = _gain(network, batch, before, after, beta=weight, seed=seed, turn=i)
            gain[positions], kl[positions] = (values.cpu().numpy() for values in found)
    bounds = {
        kind: log_likelihood_bound(model, cells, kind=kind, n_samples=BOUND_DRAWS, seed=seed, beta=beta)
        for kind in ("iw", "elbo")
    }
    return Gaps(amortization=_gap(gain), variational=_gap(bounds["iw"] - bounds["elbo"]), optimized_kl=float(kl.mean()))


@torch.no_grad()
def _gain(
    network: VAE, batch: Batch, before: DiagonalNormal, after: DiagonalNormal, *, beta: float, seed: int, turn: int
) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
    """Objective of `after` minus that of `before`, with the same noise for both; and the KL of `after`."""
    generator = torch_generator(seed, JUDGE, turn, device=before.mean.device)
    none = torch.zeros(len(batch), device=before.mean.device)
    total = torch.zeros_like(none, dtype=torch.float64)
    shape, device = before.mean.shape, before.mean.device
    noise = torch.stack([torch.randn(shape, generator=generator, device=device) for _ in range(JUDGE_DRAWS)])
    draws, draws_before = after.reparameterize(noise), before.reparameterize(noise)
    for z, z_before in zip(draws, draws_before, strict=True):
        total += network.log_likelihood(z, batch, none).per_row.double()
        total -= network.log_likelihood(z_before, batch, none).per_row.double()
    kl = network.prior.kl(after, draws).double().sum(1)
    return total / JUDGE_DRAWS - beta * (kl - network.prior.kl(before, draws_before).double().sum(1)), kl


@torch.no_grad()
def _gain_of_code(
    network: VAE, book: Codebook, batch: Batch, before: DiagonalNormal
) -> tuple[Float[Tensor, " cells"], Float[Tensor, " cells"]]:
    """Objective at the best code of each cell minus that at the encoder's; and -log p of the best code."""
    log_weight, codes = book.values()
    best, code = joint_of_values(network, batch, log_weight, codes).max(0)
    own = network.log_likelihood(before.mean, batch, torch.zeros_like(before.mean[:, 0])).per_row.double()
    return best - own - book.log_prob(before.mean).double(), -log_weight[code].double()


def _gap(differences: Float[np.ndarray, " cells"]) -> Gap:
    n = len(differences)
    error = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan
    return Gap(value=float(differences.mean()), error=error, n_cells=n)
