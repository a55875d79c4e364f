"""The posterior of each cell moved towards the best one under the decoder, starting from the encoder's."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..common.rng import even_noise
from ..data.batches import Batch
from ..kernels.autograd import WeightedLogProb
from .latent.posterior import DiagonalNormal
from .latent.prior import Prior
from .optimizer import Adam, Group

OPTIMIZE = 32  # stream of random numbers
PEAK_RATE = 0.1  # learning rate of Adam, in standard deviations of the prior; decays to 0 along a half cosine
DAMPING = (0.7, 0.5)  # of Newton steps; measured: "Why the defaults are what they are" in benchmarks/README.md
FURTHEST = 0.3  # that a damped step moves the mean in a dimension, in standard deviations of the prior


@runtime_checkable
class Decoding(Protocol):
    """What a posterior is measured against: p(x | z, s) and p(z) of a network (`scvae.model.vae.VAE`)."""

    prior: Prior

    def log_likelihood(
        self, z: Float[Tensor, "rows latent"], batch: Batch, row_weight: Float[Tensor, "rows"]
    ) -> WeightedLogProb:
        """log p(x | z, s) of each row, and its weighted total."""
        ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Those of a module."""
        ...

    def buffers(self) -> Iterator[Tensor]:
        """Those of a module."""
        ...


Network = TypeVar("Network", bound=Decoding)


@torch.no_grad()
def nearer_mean(
    network: Decoding, batch: Batch, start: DiagonalNormal, *, beta: float
) -> Float[Tensor, "cells latent"]:
    """The mean of each cell's q after two damped Newton steps towards the best q; the network does not change.

    At the best q, the variance is β divided by the curvature of the objective in that dimension. So the variance of the
    encoder's q tells how far to follow the gradient. The gradient of the log-likelihood is taken at the mean. It tells
    less of a cell with few counts, whose q is wide, so the steps of such a cell are shorter.

    Parameters
    ----------
    batch, start, beta
        As in `best_posterior`.
    """
    fixed, mean = _without_gradients(network), start.mean
    ones = torch.ones(len(batch), device=mean.device)
    left = (start.variance / fixed.prior.variance).clamp_max(1.0)
    explained = (1.0 - left).mean(1, keepdim=True)  # share of the prior's variance
    furthest = FURTHEST * fixed.prior.variance.sqrt()
    reach = explained.square() * start.variance / (beta or 1.0)  # at β = 0 q has no width, and hardly moves
    for damping in DAMPING:
        z = mean.clone().requires_grad_()
        with torch.enable_grad():
            joint = fixed.log_likelihood(z, batch, ones).total + beta * fixed.prior.log_prob(z).sum()
        (slope,) = torch.autograd.grad(joint, z)
        mean = mean + (damping * reach * slope).clamp(-furthest, furthest)
    return mean


def best_posterior(
    network: Decoding, batch: Batch, start: DiagonalNormal, *, beta: float, seed: int, steps: int
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
    fixed = _without_gradients(network)
    mean, log_variance = (nn.Parameter(t.detach().clone()) for t in (start.mean, start.log_variance))
    optimizer = Adam([Group([mean, log_variance])])
    noises = even_noise(steps, mean.shape[1], seed, OPTIMIZE).to(mean.device)
    ones = torch.ones(2 * len(batch), device=mean.device)
    with torch.enable_grad():
        for step, noise in enumerate(noises):
            rate = 0.5 * PEAK_RATE * (1.0 + math.cos(math.pi * step / steps))
            q = DiagonalNormal(mean, log_variance)
            z = q.reparameterize(torch.stack([noise, -noise])[:, None].expand(2, *mean.shape)).flatten(0, 1)
            log_likelihood = 0.5 * fixed.log_likelihood(z, batch, ones).total
            optimizer.zero_grad()
            kl = fixed.prior.kl(q, z.unflatten(0, (2, len(mean)))).sum()
            objective = beta * kl - log_likelihood
            objective.backward()
            optimizer.step(rate, objective)
    return DiagonalNormal(mean.detach(), log_variance.detach())


def _without_gradients(network: Network) -> Network:
    """The network with the same weights, not copied, but without their gradients, which would be computed in vain."""
    tensors = (*network.parameters(), *network.buffers())
    return copy.deepcopy(network, {id(tensor): tensor.detach() for tensor in tensors})
