"""`views`: which measurement of the cells each latent dimension serves."""

from __future__ import annotations

import math
import os
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import MissingKeyError
from ..common.keys import Keys
from ._contrast import visible
from ._figure import COLOURS, given_axes, hand_over, new_axes, stored, title
from ._layout import lay_out, legend_inside

if TYPE_CHECKING:
    from anndata import AnnData
    from matplotlib.axes import Axes

WIDTH, HEADROOM = 0.8, 1.35  # of the bars of a dimension; of the axis, for the legend


def views(
    adata: AnnData,
    *,
    key_added: str = "scvae",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | os.PathLike[str] | None = None,
) -> Axes | None:
    """Draws how much each measurement of the cells alone tells of each latent dimension.

    For each dimension of the network, the one with the most first, a bar for each measurement: the mean KL from the
    prior to the posterior by this measurement alone, in nats. A dimension with one bar serves one measurement, one with
    equal bars what they have in common. Above the axes stands what each adds to the others.

    Parameters
    ----------
    adata
        Cells with ``uns["<key_added>"]["diagnosis"]``, as written by `scvae.tl.diagnose` for a model of several
        measurements.
    key_added
        The `key_added` passed to `scvae.tl.diagnose`.
    ax
        Axes to draw into; None creates a figure.
    show
        Whether to show the figure; None shows it if neither `ax` nor `save` is given and scanpy's setting
        ``autoshow`` is on.
    save
        File to write the figure to; its extension sets the format.

    Returns
    -------
    matplotlib.axes.Axes or None
        The axes; None if the figure was shown.

    Raises
    ------
    MissingKeyError
        If there is no diagnosis, or it is of a model of one measurement.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=60, n_proteins=8, rng=0)
    >>> model = scvae.fit(adata, protein_key="protein", n_latent=5, rng=0, verbose=False)
    >>> diagnosis = scvae.tl.diagnose(adata, model, n_cells=100)
    >>> axes = scvae.pl.views(adata, show=False)
    >>> axes.get_ylabel()
    'KL by one view alone (nats)'
    """
    keys = Keys(key_added)
    found = stored(adata, keys, keys.diagnosis, "scvae.tl.diagnose(adata, model)").get("views", {})
    if not found:
        raise MissingKeyError(
            f"adata.uns[{key_added!r}][{keys.diagnosis!r}] has no views: the model is of one measurement, or no cell "
            "has all; fit several (protein_key or also of scvae.fit), and diagnose it"
        )
    axes = (new_axes(1, 1, width=5.5, height=4) if ax is None else given_axes(ax, 1))[0]
    _draw(axes, found)
    lay_out([axes], partial(legend_inside, axes, loc="upper right"))
    return hand_over(axes, axes, drawn_into=ax, show=show, save=save)


def _draw(axes: Axes, found: dict[str, Any]) -> None:
    rates = np.array([np.asarray(share["rate_per_dimension"]) for share in found.values()])
    order = np.argsort(-rates.sum(0), kind="stable")
    place, width = np.arange(len(order)), WIDTH / len(rates)
    for number, (name, rate) in enumerate(zip(found, rates, strict=True)):
        offset = (number - (len(rates) - 1) / 2) * width
        colour = visible(COLOURS[number % len(COLOURS)], axes)
        axes.bar(place + offset, rate[order], width, color=colour, label=name)
    axes.set_xticks(place, [str(dimension) for dimension in order])
    axes.set_ylim(0.0, HEADROOM * max(float(rates.max()), 1e-3))
    axes.set_xlabel("dimension of the network")
    axes.set_ylabel("KL by one view alone (nats)")
    added = {name: float(share["added"]) for name, share in found.items()}
    if not any(map(math.isnan, added.values())):  # as with codes
        listed = ", ".join(f"{name} {nats:.2f}" for name, nats in added.items())
        title(axes, f"nats that each adds to the others: {listed}")
