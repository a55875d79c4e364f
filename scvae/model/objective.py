"""The objective of training and the bounds of evaluation: functions of a network and a batch, in nats per cell."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batches import Batch
from ..kernels.shared_batch import shared, total
from .latent.posterior import DiagonalNormal
from .latent.prior import Prior
from .vae import VAE

DRAWS_BUDGET = 2**22  # rows x genes computed at once for several draws


@dataclass(frozen=True, eq=False, slots=True)
class Terms:
    """The two terms of the ELBO for the cells of a batch, with one draw of the latent per cell.

    Parameters
    ----------
    log_likelihood
        log p(x | z) of each cell, without a gradient.
    kl
        KL(q(z | x) || p(z)) of each cell as summands, one for each latent dimension under N(0, I): see `Prior.kl`.
    weighted_log_likelihood
        Weighted sum of the log-likelihoods over cells, with the gradient.
    draws
        The draw of the latent of each cell, without a gradient.
    posterior
        The posterior of each cell.
    penalty
        What training adds to the negative ELBO of each cell: see `Prior.penalty`.
    label_log_prob
        log p(label | z) of each cell with its gradient, 0 for cells without a label; None if there are no labels.
    """

    log_likelihood: Float[Tensor, " cells"]
    kl: Float[Tensor, "cells summands"]
    weighted_log_likelihood: Float[Tensor, ""]
    draws: Float[Tensor, "cells latent"]
    posterior: DiagonalNormal
    penalty: Float[Tensor, " cells"] | None = None
    label_log_prob: Float[Tensor, " cells"] | None = None

    @property
    def elbo(self) -> Float[Tensor, " cells"]:
        """log p(x | z) - KL of each cell: the bound at β = 1, regardless of the β of training."""
        return self.log_likelihood - self.kl.sum(1)


def evidence_terms(
    network: VAE,
    batch: Batch,
    noise: Float[Tensor, "cells noise"],
    cell_weight: Float[Tensor, " cells"],
    generator: torch.Generator | None = None,
) -> Terms:
    """Log-likelihood and KL by the reparameterised estimator with the given standard-normal noise.

    Kingma & Welling 2014, equation 7. The first columns of the noise draw z, the others are for `Prior.rate`. Dropout
    is used if there is a generator.
    """
    posterior, prior = network.encode(batch, generator), network.prior
    z = posterior.reparameterize(noise[:, : network.n_latent])
    log_prob = network.log_likelihood(z, batch, cell_weight)
    kl = prior.rate(posterior, z, noise[:, network.n_latent :])
    classifier, labels = network.classifier, batch.labels
    of_labels = None if classifier is None or labels is None else classifier.log_prob(z, labels)
    return Terms(log_prob.per_row, kl, log_prob.total, z.detach(), posterior, prior.penalty(z), of_labels)


def loss(
    terms: Terms,
    cell_weight: Float[Tensor, " cells"],
    *,
    beta: float | Float[Tensor, ""] | Float[Tensor, " cells"],
    free_bits: float = 0.0,
    capacity: float | Tensor | None = None,
) -> Float[Tensor, ""]:
    """-(log-likelihood - β KL), weighted over cells (Higgins et al. 2017); `beta` is one number or one per cell.

    With `free_bits`, a dimension whose mean KL is below that many nats gets no gradient from it (Kingma et al. 2016,
    "Inverse autoregressive flow", equation 15). With `capacity`, the penalty is β |KL - capacity| (Burgess et al. 2018,
    equation 8). Both require a single β.
    """
    if free_bits == 0.0 and capacity is None:
        return ((cell_weight * beta) @ terms.kl).sum() - terms.weighted_log_likelihood
    total_weight, kl = cell_weight.sum(), cell_weight @ terms.kl
    share = shared()
    if share is not None:  # the mean is over the cells of all processes, which share its penalty equally
        total_weight, kl = total(total_weight), total(kl)
    penalty = kl_penalty(kl / total_weight, free_bits=free_bits, capacity=capacity)
    whole = beta * total_weight * penalty
    return (whole if share is None else whole / share.world) - terms.weighted_log_likelihood


def kl_penalty(
    mean_kl: Float[Tensor, " latent"], *, free_bits: float, capacity: float | Tensor | None
) -> Float[Tensor, ""]:
    """The term multiplied by β, from the KL of each dimension averaged over cells: see `loss`."""
    penalty = (mean_kl.clamp_min(free_bits) if free_bits > 0 else mean_kl).sum()
    return penalty if capacity is None else (penalty - capacity).abs()


@torch.no_grad()
def elbo(
    network: VAE, batch: Batch, n_samples: int, generator: torch.Generator, *, posterior: DiagonalNormal | None = None
) -> Float[Tensor, " cells"]:
    """Evidence lower bound of each cell at β = 1: the mean log-likelihood over draws of the latent, minus the KL.

    Memory does not grow with `n_samples`. `posterior` is q; None for that of the encoder.
    """
    posterior = posterior or network.encode(batch)
    total = torch.zeros_like(batch.library, dtype=torch.float64)
    kl, done = torch.zeros_like(total), 0
    for n_draws in _passes(batch, n_samples):
        z = posterior.reparameterize(_draws(posterior.mean, n_draws, generator))
        total += _log_likelihood(network, z, batch).double().sum(0)
        done += n_draws
        kl += (network.prior.kl(posterior, z).double().sum(1) - kl) * (n_draws / done)
    return total / n_samples - kl


@torch.no_grad()
def importance_weighted(
    network: VAE,
    batch: Batch,
    n_samples: int,
    generator: torch.Generator,
    prior: Prior | None = None,
    *,
    posterior: DiagonalNormal | None = None,
) -> Float[Tensor, " cells"]:
    """Importance-weighted bound on log p(x) of each cell, which approaches log p(x) as `n_samples` grows.

    log (1/K) sum_k p(x | z_k) p(z_k) / q(z_k | x), z_k ~ q(z | x) (Burda, Grosse & Salakhutdinov 2016, equation 8).
    Memory does not grow with `n_samples`. `prior` is p(z); None for that of the network. `posterior` is q; None for
    that of the encoder. If the decoder sees one of finitely many values only, the result is log p(x) itself, by their
    sum.
    """
    values = network.prior.values() if prior is None else None
    if values is not None:
        return enumerated(network, batch, *values)
    posterior, prior = posterior or network.encode(batch), prior or network.prior
    total = torch.full_like(batch.library, -math.inf, dtype=torch.float64)
    for n_draws in _passes(batch, n_samples):
        z = posterior.reparameterize(_draws(posterior.mean, n_draws, generator))
        log_ratio = prior.log_prob(z) - posterior.log_prob(z)
        log_weight = _log_likelihood(network, z, batch).double() + log_ratio.double()
        total = torch.logaddexp(total, torch.logsumexp(log_weight, dim=0))
    return total - math.log(n_samples)


@torch.no_grad()
def enumerated(
    network: VAE, batch: Batch, log_prob: Float[Tensor, " values"], values: Float[Tensor, "values latent"]
) -> Float[Tensor, " cells"]:
    """log p(x) = log sum_k p(z_k) p(x | z_k) of each cell."""
    return torch.logsumexp(joint_of_values(network, batch, log_prob, values), dim=0)


@torch.no_grad()
def joint_of_values(
    network: VAE, batch: Batch, log_prob: Float[Tensor, " values"], values: Float[Tensor, "values latent"]
) -> Float[Tensor, "values cells"]:
    """log p(z_k) + log p(x | z_k), in float64. No more than `DRAWS_BUDGET` rows x genes are decoded at once."""
    parts, done = [], 0
    for n in _passes(batch, len(values)):
        z = values[done : done + n, None].expand(n, len(batch), -1)
        parts.append(_log_likelihood(network, z, batch).double() + log_prob[done : done + n, None].double())
        done += n
    return torch.cat(parts)


def _log_likelihood(network: VAE, z: Float[Tensor, "draws cells latent"], batch: Batch) -> Float[Tensor, "draws cells"]:
    rows = z.flatten(0, 1)
    return network.log_likelihood(rows, batch, rows.new_zeros(len(rows))).per_row.view(z.shape[:2])


def _draws(like: Float[Tensor, "cells latent"], n: int, generator: torch.Generator) -> Float[Tensor, "n cells latent"]:
    return torch.randn((n, *like.shape), generator=generator, dtype=like.dtype, device=like.device)


def _passes(batch: Batch, n_samples: int) -> list[int]:
    """Sizes of the parts into which `n_samples` draws are split."""
    most = max(1, DRAWS_BUDGET // (len(batch) * batch.x.n_columns))
    return [min(most, n_samples - done) for done in range(0, n_samples, most)]
