"""The likelihood heads, and the function that makes one from its name."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import torch

from ..config import LikelihoodName
from ..data.beta_range import BetaRange
from ..data.schema import Kind
from .base import Distribution, Likelihood
from .binary import Bernoulli
from .continuous import Gaussian
from .counts import NegativeBinomial, Poisson, ZeroInflated

KIND: dict[LikelihoodName, Kind] = {
    "nb": "counts",
    "zinb": "counts",
    "poisson": "counts",
    "bernoulli": "binary",
    "gaussian": "real",
}


def make_likelihood(
    name: LikelihoodName,
    n_features: int,
    n_genes: int,
    *,
    n_groups: int = 1,
    betas: BetaRange | None = None,
    minimum_scale: float = 0.1,
    generator: torch.Generator,
) -> Likelihood:
    """The head called `name`.

    Parameters
    ----------
    n_features
        Width of the decoder's output.
    n_groups
        Number of groups of cells with separate inverse dispersions (nb, zinb).
    betas
        Range of β of the model; None for one β.
    minimum_scale
        Lower bound of the scale, as a fraction of each gene's standard deviation (gaussian).
    """
    makers: dict[LikelihoodName, Callable[[], Likelihood]] = {
        "nb": lambda: NegativeBinomial(n_features, n_genes, n_groups, betas, generator=generator),
        "zinb": lambda: ZeroInflated(
            NegativeBinomial(n_features, n_genes, n_groups, betas, generator=generator),
            n_features,
            n_genes,
            generator=generator,
        ),
        "poisson": lambda: Poisson(n_features, n_genes, generator=generator),
        "bernoulli": lambda: Bernoulli(n_features, n_genes, generator=generator),
        "gaussian": lambda: Gaussian(
            n_features, n_genes, minimum_scale=minimum_scale, betas=betas, generator=generator
        ),
    }
    return makers[name]()


NAMES: tuple[LikelihoodName, ...] = get_args(LikelihoodName)

__all__ = ["KIND", "NAMES", "Bernoulli", "Distribution", "Gaussian", "Likelihood", "LikelihoodName",
           "NegativeBinomial", "Poisson", "ZeroInflated", "make_likelihood"]  # fmt: skip
