"""`impute`: a measurement that cells lack, predicted from those that they have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int

from ..common.checks import check_adata, check_bool, check_fraction, check_positive_int, listing, warn
from ..common.keys import Keys, can_be_key
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of, write_made
from ..data.cells import Cells
from ..inference.cells import read_cells, taking_mudata
from ..inference.coverage import Coverage
from ..inference.fitted import FittedModel, check_model
from ..inference.imputation import TABLES, central, predictions
from ..inference.needs import check_without_skip
from ..inference.views import check_view
from ..kernels.context import computing, working_on

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

LEAST_SAMPLES = 20


@computing()
@taking_mudata
def impute(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    view: str | None = None,
    interval: float = 0.9,
    all_cells: bool = False,
    n_samples: int = 200,
    also: Mapping[str, AnnData] | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
    copy: bool = False,
) -> AnnData | None:
    """Predicts a measurement that cells lack from those that they have, with intervals.

    For each cell, z is drawn from its posterior given the other measurements, and values from their distribution given
    z. The prediction is the mean of these distributions. The interval is one for a value that would be measured, its
    noise included. The model by itself treats its weights as known, which makes its intervals too narrow (or, for
    counts, whose ends are part of it, too wide): the fit counts how often they hold in the cells that it held out, and
    the interval is the one that holds as often as it should there, on average over features. That says nothing of cells
    that differ from these, as those of another donor or laboratory may. Cells that have the measurement keep their
    values (see `all_cells`).

    What is measured of a cell also depends on how: cells of a batch in which nobody has this measurement are predicted
    as in the other batches, and counts at library sizes of the fit, both drawn at random. They add to the interval.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit. Cells without the slot of the measurement, or with NaN there, lack it.
        Or a MuData.
    model
        A model fitted with several measurements (`also` or `protein_key` of `scvae.fit`).
    view
        Name of the measurement to predict, not the first one; None if the model has only one other.
    interval
        Probability of the central interval, above 0 and below 1.
    all_cells
        Whether to predict it in all cells from their other measurements, also where it is known, to compare.
    n_samples
        Draws per cell, at least 20. The ends of the interval are quantiles of as many values.
    also
        As in `scvae.tl.embed`.
    beta
        For a model with a range of β, the β of posterior and decoder; None for 1 (if the range excludes 1, its
        geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slots written.
    rng
        Seed or numpy Generator of the draws.
    copy
        Whether to return a copy with the results and leave `adata` unchanged; for a MuData, an AnnData of its first
        modality with all cells.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obsm["<key_added>_<view>"]``
            float32 DataFrame, cells x features of the view, in the units of its values: predictions, and the measured
            values of cells that have it. An array if the name of a feature cannot be a column in a file.
        ``obsm["<key_added>_<view>_lower"]``, ``obsm["<key_added>_<view>_upper"]``
            Ends of the interval, in the same form; for measured values these themselves.
        ``uns["<key_added>"]["imputed_<view>"]``
            ``interval``, ``level`` (of the model's own intervals that hold as often; `interval` if it is not known),
            ``calibrated_on`` (number of held-out cells; 0 if these were fewer than 10, for another `beta` than that of
            the fit, and for models saved before scvae counted), ``n_samples``, ``beta``, ``seed``, ``n_cells`` (number
            of cells predicted) and ``features``.

    Raises
    ------
    ValueError
        As for `embed`; if the model has no such view besides the first; if no cell lacks it and `all_cells` is False;
        if a cell to be predicted has nothing else; if `view` is None and the model has several others.

    Warns
    -----
    UserWarning
        If no interval of the model held as often as `interval` says in the cells that the fit held out.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=300, n_genes=100, n_proteins=8, rng=0)
    >>> stained, unstained = adata[:200].copy(), adata[200:].copy()
    >>> del unstained.obsm["protein"]
    >>> model = scvae.fit(stained, protein_key="protein", n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.impute(unstained, model, view="protein")
    >>> unstained.obsm["scvae_protein"].shape
    (100, 8)
    """
    check_model(model)
    check_without_skip(model, "scvae.tl.impute")
    keys = Keys(key_added)
    view = _only_view(model) if view is None else view
    place = check_view(model, view)
    if place is None:
        raise ValueError(
            f"view is {view!r}, the first measurement, which cannot be imputed; pass one of those that were added to it"
        )
    interval, all_cells = check_fraction(interval, "interval"), check_bool(all_cells, "all_cells")
    if interval == 0:
        raise ValueError("interval is 0; pass a probability between 0 and 1, e.g. 0.9")
    n_samples, seed = check_positive_int(n_samples, "n_samples", least=LEAST_SAMPLES), seed_of(rng)
    at = model.beta_of(beta)
    check_adata(adata)
    check_replaceable(adata.uns, keys)
    cells = read_cells(adata, model, layer, also=also)
    known = cells.views[place]
    wanted = np.arange(len(cells)) if all_cells else np.flatnonzero(~known.present)
    if len(wanted) == 0:
        raise ValueError(f"all {len(cells):,} cells have the view {view!r}; pass all_cells=True to predict it anyway")
    _check_others(cells, wanted, place, view)
    coverage = _coverage(model, place, at)
    level = interval if coverage is None else _level(coverage, interval)
    tables = _predicted(model, cells, wanted, place, level=level, n_samples=n_samples, seed=seed, beta=at)
    target = target_of(adata, copy=copy)
    features = model.schema.views[place].features
    record: dict[str, Any] = {
        "interval": interval,
        "level": level,
        "calibrated_on": 0 if coverage is None else coverage.n_cells,
        "n_samples": n_samples,
        "beta": at,
        "seed": seed,
        "n_cells": len(wanted),
        "features": np.array(features, dtype=str),
    }
    framed = all(map(can_be_key, features))
    slots = {
        name: pd.DataFrame(table, adata.obs_names, list(features), copy=False) if framed else table
        for name, table in zip(keys.imputed(view), tables, strict=True)
    }
    write_made(target, keys, model.digest, obsm=slots, record={keys.imputing(view): record})
    return target if copy else None


def _only_view(model: FittedModel) -> str:
    """The name of the further measurement of a model that has one."""
    names = model.schema.view_names[1:]
    if not names:
        raise ValueError("the model was fitted with one measurement, so there is none to impute; see also of scvae.fit")
    if len(names) > 1:
        raise ValueError(f"view must say which measurement to impute: {listing(names)}")
    return names[0]


def _coverage(model: FittedModel, place: int, beta: float) -> Coverage | None:
    """How often the intervals hold, if that is known at this β."""
    return model.coverages[place] if model.coverages and beta == model.beta_of(None) else None


def _level(coverage: Coverage, interval: float) -> float:
    if coverage.shares[-1] < interval:
        warn(
            f"in the {coverage.n_cells:,} cells that the fit held out, the range of all draws held "
            f"{100 * coverage.shares[-1]:.0f} % of the values, fewer than interval={interval:g}; the model is too sure "
            "of itself, and so are the intervals, which are these ranges"
        )
    return coverage.level(interval)


def _predicted(
    model: FittedModel,
    cells: Cells,
    wanted: Int[np.ndarray, " wanted"],
    place: int,
    *,
    level: float,
    n_samples: int,
    seed: int,
    beta: float,
) -> list[Float[np.ndarray, "cells features"]]:
    """The measured values with predictions for the wanted cells, and the ends of the interval of each value."""
    values = cells.views[place].rows.take(np.arange(len(cells))).to_dense().numpy()
    lower, upper = values.copy(), values.copy()
    levels = torch.tensor([level], device=model.device)
    some, n_tables = cells.taken(wanted), TABLES * n_samples
    with torch.no_grad(), working_on(model.device):
        for drawn in predictions(model, some, place, n_samples=n_samples, seed=seed, beta=beta, n_tables=n_tables):
            here = wanted[drawn.positions]
            values[here] = drawn.means.mean(0).cpu().numpy()
            lower[here], upper[here] = (end.cpu().numpy() for end in next(central(drawn.values, levels)))
    return [values, lower, upper]


def _check_others(cells: Cells, wanted: np.ndarray, place: int, view: str) -> None:
    others = [present for i, present in enumerate(cells.having) if i != place + 1]
    nothing = wanted[~np.any(others, axis=0)[wanted]]
    if len(nothing):
        raise ValueError(
            f"{len(nothing):,} cells have nothing but the view {view!r} ({cells.names[nothing[0]]!r} is the first), so "
            "it cannot be predicted from others; leave them out, or all_cells"
        )
