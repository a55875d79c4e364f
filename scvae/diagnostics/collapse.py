"""Measures of which latent dimensions are used, and how many."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ..inference.fitted import ACTIVE_ABOVE

ACTIVE_VARIANCE = 0.01  # Burda et al. 2016, section 5.2: variance of the posterior mean over cells


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Usage:
    """Use of the latent dimensions.

    Parameters
    ----------
    kl
        KL(q(z_k | x) || N(0, 1)) of each dimension k, mean over cells, nats.
    mean_variance
        Variance over cells of the posterior mean of each dimension: 0 if all cells have the same posterior mean.
    """

    kl: Float[np.ndarray, " latent"]
    mean_variance: Float[np.ndarray, " latent"]

    @property
    def active(self) -> int:
        """Dimensions with a mean KL above 0.05 nats."""
        return int((self.kl > ACTIVE_ABOVE).sum())

    @property
    def varying(self) -> int:
        """Dimensions whose posterior mean has a variance above 0.01 (Burda et al. 2016, section 5.2)."""
        return int((self.mean_variance > ACTIVE_VARIANCE).sum())

    @property
    def effective(self) -> float:
        """Effective number of dimensions: n if n dimensions carry equal shares of the KL, 0 if the KL is 0.

        exp(-sum_k p_k log p_k) with p_k = KL_k / sum KL: the effective rank of Roy & Vetterli 2007, definition 1,
        applied to the KL per dimension.
        """
        total = float(self.kl.sum())
        if not total > 0:
            return 0.0
        share = self.kl[self.kl > 0] / total
        return float(np.exp(-(share * np.log(share)).sum()))


def kl_to_prior(
    mean: Float[np.ndarray, "cells latent"], log_variance: Float[np.ndarray, "cells latent"]
) -> Float[np.ndarray, "cells latent"]:
    """KL(N(mean, variance) || N(0, 1)) per cell and dimension (Kingma & Welling 2014, appendix B)."""
    kl: Float[np.ndarray, "cells latent"] = 0.5 * (mean**2 + np.expm1(log_variance) - log_variance)
    return kl


def usage(mean: Float[np.ndarray, "cells latent"], log_variance: Float[np.ndarray, "cells latent"]) -> Usage:
    """Usage of the latent dimensions by these posteriors, in float64."""
    return Usage(kl=kl_to_prior(mean, log_variance).mean(0), mean_variance=mean.var(0))
