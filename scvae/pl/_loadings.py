"""`loadings`: the genes that each latent dimension raises and lowers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from ..common.checks import MissingKeyError, check_choice, check_positive_int, check_slots, is_mudata, missing_key
from ..common.keys import Keys
from ..common.provenance import check_of_embedding
from ._contrast import visible
from ._dimensions import ACTIVE_ABOVE, by_kl, check_dimensions, kl_per_dimension, moments
from ._figure import COLOURS, INK, given_axes, hand_over, new_axes, shortened, title
from ._layout import lay_out

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes
    from mudata import MuData

MOST_PANELS = 6
RAISED, LOWERED = COLOURS[0], COLOURS[5]
CHANGE = {"bernoulli": "logit", "gaussian": "value", "nb_mixture": "log count"}  # log proportion for other counts
FIRST = "rna"  # the first measurement of a model that has no further ones


def loadings(
    adata: AnnData | MuData,
    *,
    dimensions: Sequence[int] | None = None,
    n_genes: int = 10,
    view: str | None = None,
    key_added: str = "scvae",
    ax: Axes | Sequence[Axes] | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> tuple[Axes, ...] | None:
    """Draws the genes that each latent dimension raises (bars to the right) and lowers (to the left) most.

    For a linear decoder, bars show its loadings: the change per unit of the embedding. For other decoders they show the
    effects from `scvae.tl.latent_genes`: the change for a step of one standard deviation. Both are changes of the log
    proportion (bernoulli: of the logit; gaussian: of the value; nb_mixture: of the log count). For signs see
    `scvae.tl.latent_genes`.

    Parameters
    ----------
    adata
        Cells with the embedding and either ``varm["<key_added>_loadings"]``, as written by `scvae.fit` for a linear
        decoder, or ``varm["<key_added>_effects"]``, as written by `scvae.tl.latent_genes`; of a MuData, those of its
        modality.
    dimensions
        Dimensions to draw, counted from 0. None takes up to six in use, largest KL first.
    n_genes
        Genes per dimension: half of them the most raised, half the most lowered.
    view
        For a model of several measurements, the one whose features to draw; None for the first. Those of a further one
        are measured by ``scvae.tl.latent_genes(adata, model, view=...)``, for a linear decoder, too.
    key_added
        The `key_added` passed to `scvae.fit`.
    ax
        Axes to draw into, one per dimension. If labels have too little room there, the figure gets a tight layout and
        their letters become smaller. None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    tuple of matplotlib.axes.Axes or None
        One axes per dimension; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If there are neither loadings nor effects, or no embedding.
    ValueError
        If embedding and effects are of different models, or of different β of one, a dimension or a measurement does
        not exist, or `ax` does not have one axes per dimension.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> table = scvae.tl.latent_genes(adata, model)
    >>> axes = scvae.pl.loadings(adata, dimensions=[0, 1], n_genes=5, show=False)
    >>> len(axes)
    2
    """
    keys = Keys(key_added)
    n_genes = check_positive_int(n_genes, "n_genes")
    check_slots(adata)
    kl = kl_per_dimension(adata, keys, *moments(adata, keys))
    values, names, unit = _changes(adata, keys, view, len(kl))
    if dimensions is None:
        chosen = by_kl(kl)[: min(MOST_PANELS, max(1, int((kl > ACTIVE_ABOVE).sum())))]
    else:
        chosen = check_dimensions(dimensions, len(kl))
    if ax is None:
        axes = new_axes(len(chosen), 3, width=3.6 * min(3, len(chosen)) + 0.4, height=0.9 + 0.2 * n_genes)
    else:
        axes = given_axes(ax)
        chosen = chosen[: len(axes)] if dimensions is None else chosen
        given_axes(ax, len(chosen))
    for panel, dimension in zip(axes, chosen, strict=True):
        _draw(panel, values[:, dimension], names, n_genes)
        title(panel, f"dimension {dimension} ({kl[dimension]:.2f} nats)")
        panel.set_xlabel(unit)
    lay_out(axes)
    return hand_over(tuple(axes), axes[0], drawn_into=ax, show=show, save=save)


def _changes(
    adata: AnnData | MuData, keys: Keys, view: str | None, n_latent: int
) -> tuple[Float[np.ndarray, "features latent"], np.ndarray, str]:
    """The change of each feature along each dimension, the names of the features, and the unit of the change."""
    record = adata.uns.get(keys.uns, {})
    params = record.get("params", {})
    first, others = params.get("first_view", FIRST), params.get("views", {})
    if view is not None:
        check_choice(view, (first, *others), "view")
    writer = f"scvae.tl.latent_genes(adata, model{f', view={view!r}' if view in others else ''})"
    if view is not None and view in others:
        place, key, step, likelihood = f"uns[{keys.uns!r}]", keys.effects_view(view), "SD", others[view]
        if key not in record:
            raise MissingKeyError(f"adata.{place} has no {key!r}; run {writer}, which measures the effects")
        values, names = record[key]["effects"], record[key]["features"]
    else:
        table = _of_first(adata, first)
        place, likelihood = "varm", params.get("likelihood")
        key, step = (keys.loadings, "unit of z") if keys.loadings in table.varm else (keys.effects, "SD")
        if key not in table.varm:
            raise MissingKeyError(
                f"adata.varm has neither {keys.loadings!r} (of a linear decoder) nor {keys.effects!r}; "
                f"run {writer}, which measures the effects for any decoder"
            )
        values, names = table.varm[key], table.var_names
    check_of_embedding(adata, keys, place, key, writer)
    values = np.asarray(values, dtype=np.float64)
    if values.shape[1] != n_latent:
        raise ValueError(
            f"adata.{place}[{key!r}] has {values.shape[1]} dimensions and adata.obsm[{keys.mean!r}] has {n_latent}, "
            f"so they are of different models; run {writer} again"
        )
    return values, np.asarray(names, dtype=str), f"change of {CHANGE.get(likelihood, 'log proportion')} per {step}"


def _of_first(adata: AnnData | MuData, first: str) -> AnnData:
    """The AnnData with the features of the first measurement."""
    if not is_mudata(adata):
        return adata
    if first not in adata.mod:
        raise missing_key("the MuData", first, list(adata.mod))
    return adata.mod[first]


def _draw(axes: Axes, values: Float[np.ndarray, " genes"], names: np.ndarray, n_genes: int) -> None:
    """Draws bars of the largest changes in both directions, the most raised gene on top."""
    order = _both_ends(values, n_genes)
    shown = values[order]
    colours = [visible(RAISED if v > 0 else LOWERED, axes) for v in shown]
    axes.barh(np.arange(len(order)), shown, color=colours, height=0.75)
    axes.axvline(0.0, color=visible(INK, axes), linewidth=0.8)
    axes.set_yticks(np.arange(len(order)), [shortened(name, 20) for name in names[order]], fontsize="small")
    axes.tick_params(axis="y", length=0)
    axes.use_sticky_edges = False
    axes.margins(x=0.08)
    axes.locator_params(axis="x", nbins=5)
    axes.set_ylim(-0.6, max(len(order), 1) - 0.4)


def _both_ends(values: Float[np.ndarray, " genes"], n_genes: int) -> Int[np.ndarray, " drawn"]:
    """The genes most lowered and most raised in ascending order: half of each, unless one kind has fewer."""
    rising = np.argsort(values, kind="stable")
    n_down, n_up = int((values < 0).sum()), int((values > 0).sum())
    down = min(n_down, max(n_genes // 2, n_genes - n_up))
    up = min(n_up, n_genes - down)
    return np.concatenate([rising[:down], rising[len(rising) - up :]])
