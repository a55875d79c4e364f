"""Optimisation of each cell's posterior separately, starting from the encoder's."""

from __future__ import annotations

import copy
import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..common.rng import numpy_generator
from ..data.batches import Batch
from ..model.latent import DiagonalNormal
from ..model.optimizer import Adam, Group
from ..model.vae import VAE

OPTIMIZE = 32  # stream of random numbers
PEAK_RATE = 0.1  # learning rate of Adam, in standard deviations of the prior; decays to 0 along a half cosine
SMALLEST = 1e-6  # probability in a tail


def best_posterior(
    network: VAE, batch: Batch, start: DiagonalNormal, *, beta: float, seed: int, steps: int
) -> DiagonalNormal:
    """The normal q of each cell that maximises E_q[log p(x | z)] - β KL(q || p); the network does not change.

    Mean and log variance follow the gradient (Adam, two draws of opposite sign at each step). All cells share the noise
    of a step, so that the result for a cell depends on this cell alone. Over the steps, the noise is a scrambled Sobol
    sequence, whose mean square is nearly 1 (Buchholz et al. 2018, "Quasi-Monte Carlo variational inference").

    Parameters
    ----------
    batch
        The cells; for a model of a range of β, set to `beta`.
    start
        The starting point: the encoder's q.
    seed
        Seed of the noise.
    steps
        Number of gradient steps.
    """
    frozen = copy.deepcopy(network).requires_grad_(False)  # only q needs gradients
    mean, log_variance = (nn.Parameter(t.detach().clone()) for t in (start.mean, start.log_variance))
    optimizer = Adam([Group([mean, log_variance])])
    noises = _even_noise(steps, mean.shape[1], seed).to(mean.device)
    ones = torch.ones(2 * len(batch), device=mean.device)
    with torch.enable_grad():
        for step, noise in enumerate(noises):
            rate = 0.5 * PEAK_RATE * (1.0 + math.cos(math.pi * step / steps))
            q = DiagonalNormal(mean, log_variance)
            z = q.reparameterize(torch.stack([noise, -noise])[:, None].expand(2, *mean.shape)).flatten(0, 1)
            log_likelihood = 0.5 * frozen.log_likelihood(z, batch, ones).total
            optimizer.zero_grad()
            objective = beta * q.kl_to_standard_normal().sum() - log_likelihood
            objective.backward()
            optimizer.step(rate, objective)
    return DiagonalNormal(mean.detach(), log_variance.detach())


def _even_noise(n: int, n_latent: int, seed: int) -> Float[Tensor, "n latent"]:
    """Standard normal numbers from a low-discrepancy sequence."""
    scrambling = int(numpy_generator(seed, OPTIMIZE).integers(2**31))
    sequence = torch.quasirandom.SobolEngine(n_latent, scramble=True, seed=scrambling)
    uniform = sequence.draw(n, dtype=torch.float64).clamp(SMALLEST, 1.0 - SMALLEST)
    noise: Tensor = torch.special.ndtri(uniform).float()
    return noise
