"""Every operation in plain torch: the definitions against which the fast kernels are tested.

Densities take logarithms of their positive parameters, so that nothing under- or overflows and no epsilon is needed,
and include all constants. Everything is element-wise, in nats, and differentiable by autograd. Computation is in
float64, because the difference lgamma(x + theta) - lgamma(theta) loses all its digits in float32 for large theta.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from .csr import CSR

HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


def poisson_log_prob(count: Float[Tensor, "..."], log_mean: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log Poisson(count | mean) = x log(mean) - mean - lgamma(x + 1)."""
    x, log_mean = count.double(), log_mean.double()
    return _times(x, log_mean) - log_mean.exp() - torch.lgamma(x + 1.0)


def negative_binomial_log_prob(
    count: Float[Tensor, "..."], log_mean: Float[Tensor, "..."], log_inverse_dispersion: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log NB(count | mean mu, inverse dispersion theta), variance mu + mu^2 / theta.

    lgamma(x + theta) - lgamma(theta) - lgamma(x + 1) + x log(mu / (mu + theta)) - theta log(1 + mu / theta);
    at x = 0, only the last term remains.
    """
    x, log_mu, log_theta = count.double(), log_mean.double(), log_inverse_dispersion.double()
    theta = log_theta.exp()
    binomial = torch.lgamma(x + theta) - torch.lgamma(theta) - torch.lgamma(x + 1.0)
    log_odds = _times(x, log_mu - torch.logaddexp(log_mu, log_theta))
    return torch.where(x > 0, binomial + log_odds, 0.0) - theta * softplus(log_mu - log_theta, threshold=50.0)


def zero_inflated_log_prob(
    count: Float[Tensor, "..."], base_log_prob: Float[Tensor, "..."], zero_logit: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log of pi [x = 0] + (1 - pi) p(x), with pi = sigmoid(zero_logit) and log p(x) = `base_log_prob`."""
    logit = zero_logit.double()
    base = logsigmoid(-logit) + base_log_prob
    return torch.where(count > 0, base, torch.logaddexp(logsigmoid(logit), base))


def mixture_log_prob(
    first: Float[Tensor, "..."], second: Float[Tensor, "..."], first_logit: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log of pi p(x) + (1 - pi) r(x), with pi = sigmoid(first_logit), log p(x) = `first` and log r(x) = `second`."""
    logit = first_logit.double()
    return torch.logaddexp(logsigmoid(logit) + first, logsigmoid(-logit) + second)


def bernoulli_log_prob(value: Float[Tensor, "..."], logit: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """log Bernoulli(value | sigmoid(logit)) = value * logit - log(1 + exp(logit))."""
    logit = logit.double()
    return value.double() * logit - softplus(logit, threshold=50.0)


def gaussian_log_prob(
    value: Float[Tensor, "..."], mean: Float[Tensor, "..."], log_scale: Float[Tensor, "..."]
) -> Float[Tensor, "..."]:
    """log N(value | mean, scale^2)."""
    log_scale = log_scale.double()
    standard = (value.double() - mean.double()) * torch.exp(-log_scale)
    return -0.5 * standard.square() - log_scale - HALF_LOG_2_PI


def log_softmax_mean(
    logits: Float[Tensor, "cells genes"], library: Float[Tensor, "cells"]
) -> Float[Tensor, "cells genes"]:
    """log(library * softmax(logits)); -inf in all genes for a cell without counts."""
    return torch.log(library.double())[:, None] + torch.log_softmax(logits.double(), dim=1)


def csr_matmul(rows: CSR, weight: Float[Tensor, "columns width"]) -> Float[Tensor, "rows width"]:
    """rows @ weight, through a dense copy of the rows."""
    return rows.to_dense().to(weight.dtype) @ weight


def log1p_scaled(rows: CSR, scale: Float[Tensor, " rows"]) -> Float[Tensor, "stored"]:
    """log(1 + scale x value) of each stored value, with the scale of its row."""
    return torch.log1p(scale[rows.row_of_stored()] * rows.values)


def _times(count: Float[Tensor, "..."], logarithm: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """count * logarithm with 0 * -inf = 0, in value and in gradient."""
    return torch.where(count > 0, count * torch.where(count > 0, logarithm, 0.0), 0.0)
