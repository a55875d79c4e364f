"""The coordinates in which latent variables are written: a linear map of those of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float

from ..data.batches import chunks

MetricName = Literal["expression", "latent"]

AT_ONCE = 2**16  # cells that are in float64 at a time


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """A change of coordinates, z @ matrix, after which Euclidean distances of z measure changes of expression.

    The prior of the network, N(0, I), becomes N(0, diag(scale^2)), because the columns are orthogonal.

    Parameters
    ----------
    matrix
        float64. Its columns are orthogonal; the first dimension is the one that changes expression most.
    """

    matrix: Float[np.ndarray, "latent written"]

    @property
    def scale(self) -> Float[np.ndarray, " written"]:
        """Standard deviation of the prior along each written dimension."""
        scale: Float[np.ndarray, " written"] = np.linalg.norm(self.matrix, axis=0)
        return scale

    @property
    def inverse(self) -> Float[np.ndarray, "written latent"]:
        """From written coordinates to those of the network; row k is a unit step along written dimension k."""
        back: Float[np.ndarray, "written latent"] = (self.matrix / self.scale**2).T
        return back

    def written(self, z: Float[np.ndarray, "*cells latent"]) -> Float[np.ndarray, "*cells written"]:
        """Latent variables of the network (means or draws) in written coordinates, float32."""
        return _product(z, self.matrix)

    def variances(self, variance: Float[np.ndarray, "cells latent"]) -> Float[np.ndarray, "cells written"]:
        """Variances of q(z | x) in written coordinates, the diagonal of M^T diag(variance) M, float32."""
        return _product(variance, self.matrix**2)


def _product(
    values: Float[np.ndarray, "*cells latent"], matrix: Float[np.ndarray, "latent written"]
) -> Float[np.ndarray, "*cells written"]:
    """In float64, so that the float32 result for a cell does not depend on the cells beside it."""
    product = np.empty(values.shape, np.float32)
    for part in chunks(len(values), AT_ONCE):
        product[part] = values[part].astype(np.float64) @ matrix
    return product
