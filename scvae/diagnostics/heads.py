"""Comparison of the heads that suit each measurement, trained on the same cells and judged on the same others."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from ..common.progress import passing
from ..config import ViewLikelihood
from ..data.batches import split
from ..data.cells import Cells
from ..data.schema import Kind
from ..inference.fitted import FittedModel
from ..inference.posterior import log_likelihood_bound
from ..likelihoods import KIND, Gaussian
from ..model.views import ViewLayers
from ..training.run import fit_cells
from ..training.settings import Settings
from .clr import GaussianOfCounts, as_clr

# heads whose log-likelihoods are of the same values; real values have the Gaussian head alone
HEADS: dict[Kind, tuple[ViewLikelihood, ...]] = {
    "counts": ("nb", "zinb", "poisson"),
    "binary": ("bernoulli", "poisson"),
}
FURTHER: dict[Kind, tuple[ViewLikelihood, ...]] = HEADS | {"counts": ("nb", "nb_mixture", "poisson", "gaussian")}
MOST_FEATURES = 1_000  # of a measurement that is compared with a Gaussian head on CLR values, which are dense
MOST_CELLS = 1_000
N_DRAWS = 50
HELD_OUT = 0.1  # fraction of the cells, if the fit held none out


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadFit:
    """Fit of one head, compared with the best head of the same measurement.

    Parameters
    ----------
    likelihood
        Name of the head.
    log_likelihood
        Importance-weighted log-likelihood of the held-out cells, of all their measurements together, nats per cell.
    difference, error
        Log-likelihood of the best head minus that of this one: mean of the paired differences and its standard error.
    view
        Name of the measurement; None for a model of one.
    """

    likelihood: ViewLikelihood
    log_likelihood: float
    difference: float
    error: float
    view: str | None = None


def compare_heads(
    model: FittedModel, cells: Cells, *, beta: float | None, seed: int, verbose: bool
) -> tuple[HeadFit, ...]:
    """Fits the heads that suit each measurement with the settings of the model, and compares them on held-out cells.

    With several measurements, the head of one is changed at a time, so that the joint log-likelihoods differ by what it
    says; they are averaged over the held-out cells that have this measurement. A Gaussian head for counts is fitted to
    their CLR values, and its log-likelihood is that of the counts (see `GaussianOfCounts`).

    Parameters
    ----------
    model
        A model; its settings, seed and split are used.
    cells
        Cells to split into training and held-out cells; the cells of the model's fit are split as in that fit.
    beta
        A value of β if the model has many; None as in `FittedModel.beta_of`.
    seed
        Seed of the noise in the log-likelihood.
    verbose
        Whether to show the progress of each fit.

    Returns
    -------
    tuple
        One entry for each head, those of the first measurement first, the best first among them. None for a
        measurement of real values.

    Raises
    ------
    ValueError
        If no measurement is of counts or 0/1 data, or if there are too few cells to hold any out.
    """
    schema = model.schema
    heads = {place: names for place in (None, *range(len(schema.views))) if (names := _candidates(model, place))}
    if not heads:
        raise ValueError(
            f"compare_heads is for counts ({', '.join(HEADS['counts'])}) and 0/1 data ({', '.join(HEADS['binary'])}); "
            f"the model has likelihood={model.likelihood!r}"
        )
    fraction = model.training_config.validation_fraction or HELD_OUT
    held_out = split(len(cells), fraction, model.seed)[1][:MOST_CELLS]
    having = {place: cells.having[0 if place is None else place + 1][held_out] for place in heads}
    for place, present in having.items():
        if present.sum() < 2:
            which = "" if not schema.views else f" with the view {_name(model, place)!r}"
            raise ValueError(
                f"{len(cells)} cells{which} are too few to hold any out; compare heads on at least 20 cells{which}"
            )
    training = dataclasses.replace(model.training_config, validation_fraction=fraction)
    settings = Settings(schema, model.likelihood, model.beta_of(beta), model.seed, model.network_config, training)

    def judged(settings: Settings, cells: Cells, counts_at: int | None = None) -> Float[np.ndarray, " held_out"]:
        with passing():
            fitted, _ = fit_cells(
                cells, settings, model.n_latent, device=model.device, checkpoint=None, verbose=verbose
            )
        if counts_at is not None:
            _judge_counts(fitted, counts_at)
        return log_likelihood_bound(fitted, cells.taken(held_out), kind="iw", n_samples=N_DRAWS, seed=seed)

    of_model = judged(settings, cells)
    fits: list[HeadFit] = []
    for place, names in heads.items():
        own = model.likelihood if place is None else schema.views[place].likelihood
        bounds = {
            name: of_model if name == own else judged(*_with_head(settings, cells, place, name)) for name in names
        }
        of_view = {name: bound[having[place]] for name, bound in bounds.items()}
        fits += _ranked(of_view, _name(model, place) if schema.views else None)
    return tuple(fits)


def _candidates(model: FittedModel, place: int | None) -> tuple[ViewLikelihood, ...]:
    """The heads to compare for a measurement, its own among them; none if there is no other."""
    if place is None:
        own, kind, names = model.likelihood, model.schema.kind, HEADS.get(model.schema.kind, ())
    else:
        view = model.schema.views[place]
        own, kind, names = view.likelihood, view.kind, FURTHER.get(view.kind, ())
        if len(view.features) > MOST_FEATURES:
            names = tuple(name for name in names if name != "gaussian")
    if kind == "real":
        return ()
    return names if own in names else (own, *names)


def _name(model: FittedModel, place: int | None) -> str:
    return model.schema.view_names[0 if place is None else place + 1]


def _with_head(
    settings: Settings, cells: Cells, place: int | None, name: ViewLikelihood
) -> tuple[Settings, Cells, int | None]:
    """The settings and the cells of a fit with another head at `place`, and where a Gaussian head stands for counts."""
    network = settings.network_config
    if place is None:
        if name == "poisson":  # which has no dispersion
            network = dataclasses.replace(network, dispersion="gene")
        schema = replace(settings.schema, kind=KIND[name])
        return replace(settings, likelihood=name, network_config=network, schema=schema), cells, None
    views, of_cells = list(settings.schema.views), list(cells.views)
    views[place] = replace(views[place], likelihood=name, kind=KIND[name])
    if name == "gaussian":
        of_cells[place] = as_clr(of_cells[place])
    schema = replace(settings.schema, views=tuple(views))
    counts_at = place if name == "gaussian" else None
    return replace(settings, schema=schema), replace(cells, views=tuple(of_cells)), counts_at


def _judge_counts(model: FittedModel, place: int) -> None:
    layers = model.network.views[place]
    assert isinstance(layers, ViewLayers)
    assert isinstance(layers.head, Gaussian)
    layers.head = GaussianOfCounts.like(layers.head)


def _ranked(bounds: dict[ViewLikelihood, Float[np.ndarray, " cells"]], view: str | None) -> list[HeadFit]:
    order = sorted(bounds, key=lambda name: -bounds[name].mean())
    fits = []
    for name in order:
        lacks = bounds[order[0]] - bounds[name]
        error = float(lacks.std(ddof=1) / math.sqrt(len(lacks)))
        fits.append(
            HeadFit(
                likelihood=name,
                log_likelihood=float(bounds[name].mean()),
                difference=float(lacks.mean()),
                error=error,
                view=view,
            )
        )
    return fits
