"""Evaluation of a network on held-out cells during training."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..common.distributed import ranks
from ..common.rng import torch_generator
from ..config import TrainingConfig
from ..data.batches import chunks
from ..data.feeds import Feed
from ..kernels.context import working_on
from ..model.objective import evidence_terms, kl_penalty
from ..model.vae import VAE

VALIDATION = 3  # random stream; depends on the seed only
EVALUATION_CHUNK = 512  # cells


class Evaluation(NamedTuple):
    """Means over cells in nats.

    log_likelihood, kl
        The two terms of the ELBO.
    summands
        The KL as summands: see `scvae.model.latent.prior.Prior.kl`.
    kl_per_dimension
        KL of each latent dimension alone: see `scvae.model.latent.prior.Prior.usage`.
    kl_times_beta
        β KL for a model with a range of β, else None.
    label_log_likelihood
        Mean of log p(label | z) over the cells with a label.
    label_term
        Its part of the objective, per cell.
    """

    log_likelihood: float
    kl: float
    summands: Float[Tensor, " summands"]
    kl_per_dimension: Float[Tensor, " latent"]
    kl_times_beta: float | None
    label_log_likelihood: float = math.nan
    label_term: float = 0.0

    def objective(self, beta: float, config: TrainingConfig) -> float:
        """What training maximises after the warm-up; NaN without cells. With a range of β, each cell has its own β."""
        if self.kl_times_beta is not None:
            return self.log_likelihood + self.label_term - self.kl_times_beta
        penalty = kl_penalty(self.summands, free_bits=config.free_bits, capacity=config.capacity)
        return self.log_likelihood + self.label_term - beta * float(penalty)


@torch.no_grad()
def evaluate(
    network: VAE,
    feed: Feed,
    positions: Int[np.ndarray, " cells"],
    log_beta: Float[Tensor, " cells"] | None,
    *,
    seed: int,
) -> Evaluation:
    """Mean log-likelihood and KL over the given cells, from one draw of the latent, the same at every call.

    For a model with a range of β, `log_beta` sets the β of each cell. Several processes split the cells and return the
    same result.
    """
    network.eval()
    device, everyone = network.device, ranks()
    sums, kl = [torch.zeros((), device=device)], torch.zeros(1, device=device)
    alone = torch.zeros(network.n_latent, device=device)
    weighted, of_labels = torch.zeros((), device=device), torch.zeros(2, device=device)
    parts = chunks(len(positions), EVALUATION_CHUNK)
    mine = range(len(parts))[everyone.part(len(parts))]
    with working_on(device):
        for i, batch in zip(mine, feed.batches([positions[parts[i]] for i in mine]), strict=True):
            if log_beta is not None and network.betas is not None:
                batch = batch.at(network.betas, log_beta[parts[i]].to(device))  # noqa: PLW2901
            generator = torch_generator(seed, VALIDATION, i, device=device)
            noise = torch.randn(len(batch), network.n_latent, generator=generator, device=device)
            terms = evidence_terms(network, batch, noise, torch.zeros(len(batch), device=device))
            sums.append(terms.log_likelihood.sum())
            kl = kl + terms.kl.sum(0)
            alone += network.prior.usage(terms.posterior).sum(0)
            if batch.log_beta is not None:
                weighted += batch.log_beta.exp() @ terms.kl.sum(1)
            if terms.label_log_prob is not None and batch.labels is not None:
                of_labels += torch.stack([terms.label_log_prob.sum(), (batch.labels >= 0).sum()])
    n = len(positions) or math.nan
    numbers = (sum(torch.stack(sums).tolist()), float(weighted), *of_labels.tolist())
    shares = everyone.gather((numbers, kl.cpu(), alone.cpu()))
    log_likelihood, kl_times_beta, label_sum, n_labelled = map(sum, zip(*(share[0] for share in shares), strict=True))
    kl, alone = (sum(column, torch.zeros(1)) for column in list(zip(*shares, strict=True))[1:])
    return Evaluation(
        log_likelihood / n,
        float(kl.sum()) / n,
        kl / n,
        alone / n,
        None if log_beta is None else kl_times_beta / n,
        label_sum / n_labelled if n_labelled else math.nan,
        network.classifier.term_weight * label_sum / n if network.classifier else 0.0,
    )
