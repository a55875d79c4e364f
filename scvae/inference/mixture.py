"""A mixture of normal distributions fitted to the cells in the latent space, and draws from it."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

GRID = (1, 2, 4, 8, 16, 32, 64)  # numbers of components to try
MOST_POINTS = 20_000  # to which a mixture is fitted
FEWEST = 3  # points per column and component, to estimate a covariance
RIDGE = 1e-3  # added to the variances of the standardised columns


@dataclass(frozen=True, slots=True, eq=False)
class Mixture:
    """Normal distributions over the columns, in units of their standard deviations.

    Parameters
    ----------
    fitted
        scikit-learn's mixture.
    centre, scale
        Means and standard deviations of the columns.
    """

    fitted: Any
    centre: Float[np.ndarray, " columns"]
    scale: Float[np.ndarray, " columns"]

    @property
    def n_components(self) -> int:
        """Number of components."""
        return int(self.fitted.n_components)

    def draw(self, n: int, rng: np.random.Generator) -> Float[np.ndarray, "drawn columns"]:
        """Draws `n` new points."""
        component = rng.choice(self.n_components, size=n, p=self.fitted.weights_ / self.fitted.weights_.sum())
        factors = np.linalg.cholesky(self.fitted.covariances_)
        noise = rng.standard_normal((n, len(self.centre)))
        points = self.fitted.means_[component] + np.einsum("nij,nj->ni", factors[component], noise)
        drawn: Float[np.ndarray, "drawn columns"] = self.centre + self.scale * points
        return drawn


def fit_mixture(points: Float[np.ndarray, "points columns"], rng: np.random.Generator) -> Mixture:
    """The mixture with the lowest AIC over a grid of numbers of components, each with its own covariance matrix.

    The search stops when a larger number is no better. With BIC, rare cell types share a component with others: a
    classifier separated generated from real cells of baron_h1 with an AUROC of 0.79, against 0.71 with AIC and 0.72
    with the posteriors of the cells themselves.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    centre, scale = points.mean(0), points.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    standard = (rng.permutation(points)[:MOST_POINTS] - centre) / scale
    most = max(1, len(standard) // (FEWEST * points.shape[1]))
    best, lowest = None, math.inf
    for n_components in (n for n in GRID if n <= most):
        state = np.random.RandomState(int(rng.integers(2**32)))
        mixture = GaussianMixture(n_components, reg_covar=RIDGE, random_state=state)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 100 steps are enough
            mixture.fit(standard)
        criterion = mixture.aic(standard)
        if criterion >= lowest:
            break
        best, lowest = mixture, criterion
    return Mixture(best, centre, scale)
