"""Latent dimensions in plots: their KL, which ones are in use, and a bar chart of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from ..common.checks import check_slots, missing_key
from ..common.keys import Keys
from ._contrast import visible
from ._figure import COLOURS, GREY, INK, title

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

ACTIVE_ABOVE = 0.05  # nats of mean KL, the same limit as for a model's active dimensions
NAMED, NAMED_UPRIGHT = 20, 12  # most bars with a label; most with a horizontal label


def moments(adata: AnnData, keys: Keys) -> tuple[Float[np.ndarray, "cells latent"], Float[np.ndarray, "cells latent"]]:
    """Posterior means and variances, float64.

    Raises
    ------
    MissingKeyError
        If one of them is missing.
    ValueError
        If they differ in shape.
    """
    check_slots(adata)
    for key in (keys.mean, keys.variance):
        if key not in adata.obsm:
            raise missing_key("adata.obsm", key, list(adata.obsm))
    mean, variance = (np.asarray(adata.obsm[key], np.float64) for key in (keys.mean, keys.variance))
    if mean.shape != variance.shape:
        raise ValueError(
            f"adata.obsm[{keys.mean!r}] has the shape {mean.shape} and adata.obsm[{keys.variance!r}] {variance.shape}, "
            "so they are of different models; run scvae.tl.embed(adata, model) again"
        )
    return mean, variance


def kl_per_dimension(
    adata: AnnData, keys: Keys, mean: Float[np.ndarray, "cells latent"], variance: Float[np.ndarray, "cells latent"]
) -> Float[np.ndarray, " latent"]:
    """Mean over the cells of KL(N(mean, variance) || N(prior mean, prior sd^2)), nats (Kingma & Welling 2014)."""
    record = adata.uns.get(keys.uns, {})
    sd, centre = np.asarray(record.get("prior_sd", 1.0)), np.asarray(record.get("prior_mean", 0.0))
    if sd.ndim and len(sd) != mean.shape[1]:
        sd, centre = np.ones(1), np.zeros(1)  # of another embedding, which was replaced
    log_variance = np.log(variance / sd**2)
    kl: Float[np.ndarray, " latent"] = 0.5 * (((mean - centre) / sd) ** 2 + np.expm1(log_variance) - log_variance).mean(
        0
    )
    return kl


def by_kl(kl: Float[np.ndarray, " latent"]) -> list[int]:
    """The dimensions in order of descending KL."""
    order: list[int] = np.argsort(-kl, kind="stable").tolist()
    return order


def check_dimensions(dimensions: Sequence[int] | int, n_latent: int) -> list[int]:
    """The given dimensions as a list.

    Raises
    ------
    ValueError
        If `dimensions` is empty or a dimension does not exist.
    """
    asked = [int(d) for d in np.atleast_1d(np.asarray(dimensions)).ravel()]
    wrong = [d for d in asked if not 0 <= d < n_latent]
    if wrong or not asked:
        found = f"dimensions has {wrong[0]}" if wrong else "dimensions is empty"
        raise ValueError(f"{found}; the embedding has dimensions 0 to {n_latent - 1}")
    return asked


def draw_kl(axes: Axes, kl: Float[np.ndarray, " latent"]) -> None:
    """Draws a bar per dimension, the largest first; grey if the dimension is not in use."""
    order = by_kl(kl)
    used = kl[order] > ACTIVE_ABOVE
    colours = [visible(COLOURS[0] if u else GREY, axes) for u in used]
    axes.bar(np.arange(len(kl)), kl[order], color=colours, width=0.8)
    axes.axhline(ACTIVE_ABOVE, color=visible(INK, axes), linewidth=0.8, linestyle=":")
    places = np.arange(0, len(kl), -(-len(kl) // NAMED))
    many = len(places) > NAMED_UPRIGHT
    axes.set_xticks(places, [str(order[i]) for i in places])
    axes.tick_params(axis="x", labelsize="xx-small" if many else "medium", labelrotation=90 if many else 0)
    axes.set_xlim(-0.7, len(kl) - 0.3)
    axes.set_ylim(0.0, 1.05 * max(float(kl.max()), 4 * ACTIVE_ABOVE))
    axes.set_xlabel("latent dimension")
    axes.set_ylabel("mean KL (nats)")
    title(axes, f"{int(used.sum())} of {len(kl)} dimensions in use")
