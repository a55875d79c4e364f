"""A mixture of normals fitted to posteriors by expectation-maximisation, without draws from them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from jaxtyping import Float, Int

from ..model.latent.mixture import Mixture
from ..model.latent.posterior import LOG_2_PI

GRID = (1, 2, 4, 8, 16, 32, 64)  # numbers of components to try
FEWEST = 3  # points per column and component, to estimate a covariance
POOLED = 5.0  # points of the pooled covariance that each component gets besides its own
RIDGE = 1e-3  # added to the variances of the standardised columns
ROUNDS, STEPS = 8, 60  # of k-means, and of expectation-maximisation
STILL = 1e-3  # nats per point; a smaller gain ends the steps
LEAST = 1.5  # points; a component with fewer is dropped
ONE_IN = 10  # points that choose the number of components, if none are named

Points: TypeAlias = Float[np.ndarray, "points columns"]


@dataclass(frozen=True, slots=True, eq=False)
class _Components:
    """Weights, means and covariance matrices."""

    weight: Float[np.ndarray, " components"]
    centre: Float[np.ndarray, "components columns"]
    covariance: Float[np.ndarray, "components columns columns"]

    def coefficients(self) -> Float[np.ndarray, "features components"]:
        """log weight + log density of each component as a linear function of `_features`."""
        n_columns = self.centre.shape[1]
        precision = np.linalg.inv(self.covariance)
        slope = np.einsum("kij,kj->ki", precision, self.centre)
        log_volume = np.linalg.slogdet(self.covariance)[1] + n_columns * LOG_2_PI
        constant = np.log(self.weight) - 0.5 * (log_volume + (slope * self.centre).sum(1))
        i, j = np.triu_indices(n_columns)
        square = np.where(i == j, -0.5, -1.0) * precision[:, i, j]
        return np.column_stack([constant, slope, square]).T


def fit_mixture(
    mean: Points, variance: Points, rng: np.random.Generator, *, held_out: Int[np.ndarray, " held"] | None = None
) -> Mixture:
    """The mixture, with full covariance matrices, that gives posteriors the largest mean log density.

    Each point is a normal posterior with the given moments. log density of a component is linear in z and its products,
    so its mean over a posterior is exact, and no draws are needed (they fit less well; see "Why the defaults are what
    they are" in benchmarks/README.md). All of a posterior gets the same responsibilities, which gives a lower bound
    (Jensen). The number of components doubles from 1 to 64 while the points held out gain; then all points are used.

    Parameters
    ----------
    mean, variance
        Moments of each point; a column without uncertainty has the variance 0.
    rng
        Draws the starting points.
    held_out
        Positions of the points that choose the number of components; None takes one in ten.
    """
    if held_out is None or not len(held_out):
        held_out = rng.permutation(len(mean))[: len(mean) // ONE_IN]
    centre, scale = mean.mean(0), np.sqrt(mean.var(0) + variance.mean(0))
    scale = np.where(scale > 0, scale, 1.0)
    standard = (mean - centre) / scale
    features = _features(standard, variance / scale**2)
    is_fitted = np.ones(len(mean), bool)
    is_fitted[held_out] = False
    fitted, judged = features[is_fitted], features[held_out if len(held_out) else slice(None)]
    best, highest = None, -np.inf
    for n_components in (n for n in GRID if n <= max(1, len(fitted) // (FEWEST * mean.shape[1]))):
        found = _climbed(fitted, _clusters(standard[is_fitted], n_components, rng))
        bound = float(_expected(judged, found)[1].mean())
        if best is not None and bound <= highest:
            break
        best, highest = found, bound
    assert best is not None
    best = _climbed(features, _expected(features, best)[0])
    factor = np.linalg.cholesky(best.covariance) * scale[:, None]
    tensors = (best.weight, centre + scale * best.centre, factor)
    return Mixture(*(torch.from_numpy(values.astype(np.float32)) for values in tensors))


def _features(mean: Points, variance: Points) -> Float[np.ndarray, "points features"]:
    """Means over each posterior of 1, z, and the products of its entries."""
    i, j = np.triu_indices(mean.shape[1])
    products = mean[:, i] * mean[:, j]
    products[:, i == j] += variance
    return np.column_stack([np.ones(len(mean)), mean, products])


def _clusters(points: Points, n: int, rng: np.random.Generator) -> Float[np.ndarray, "points clusters"]:
    """Memberships by k-means, started as k-means++ (Arthur & Vassilvitskii 2007)."""
    centre = points[rng.integers(len(points))][None]
    nearest = ((points - centre) ** 2).sum(1)
    while len(centre) < n and nearest.any():
        centre = np.vstack([centre, points[rng.choice(len(points), p=nearest / nearest.sum())]])
        nearest = np.minimum(nearest, ((points - centre[-1]) ** 2).sum(1))
    member: Float[np.ndarray, "points clusters"]
    for _ in range(ROUNDS):
        home = ((centre**2).sum(1) - 2.0 * points @ centre.T).argmin(1)
        member = np.eye(len(centre))[home]
        member = member[:, member.any(0)]
        centre = member.T @ points / member.sum(0)[:, None]
    return member


def _climbed(
    features: Float[np.ndarray, "points features"], member: Float[np.ndarray, "points components"]
) -> _Components:
    """The components after steps of expectation-maximisation from these responsibilities."""
    before = -np.inf
    for _ in range(STEPS):
        components = _maximised(features, member)
        member, bounds = _expected(features, components)
        bound = float(bounds.mean())
        if bound - before < STILL:
            break
        before = bound
    return components


def _maximised(
    features: Float[np.ndarray, "points features"], member: Float[np.ndarray, "points components"]
) -> _Components:
    """The components given the responsibilities; each covariance is drawn towards the pooled one."""
    n_columns = round((np.sqrt(1 + 8 * features.shape[1]) - 3) / 2)  # of 1 + d + d (d + 1) / 2 features
    sums = member.T @ features
    sums = sums[sums[:, 0] > min(LEAST, sums[:, 0].max() / 2)]
    n = sums[:, 0]
    moments = sums / n[:, None]
    centre = moments[:, 1 : 1 + n_columns]
    i, j = np.triu_indices(n_columns)
    covariance = np.empty((len(n), n_columns, n_columns))
    covariance[:, i, j] = covariance[:, j, i] = moments[:, 1 + n_columns :]
    covariance -= centre[:, :, None] * centre[:, None, :]
    pooled = np.einsum("k,kij->ij", n / n.sum(), covariance)
    covariance = (n[:, None, None] * covariance + POOLED * pooled) / (n + POOLED)[:, None, None]
    return _Components(n / n.sum(), centre, covariance + RIDGE * np.eye(n_columns))


def _expected(
    features: Float[np.ndarray, "points features"], components: _Components
) -> tuple[Float[np.ndarray, "points components"], Float[np.ndarray, " points"]]:
    """Responsibilities, and the bound on the mean log density of each posterior."""
    joint = features @ components.coefficients()
    highest = joint.max(1, keepdims=True)
    member = np.exp(joint - highest)
    total = member.sum(1, keepdims=True)
    return member / total, (highest + np.log(total))[:, 0]
