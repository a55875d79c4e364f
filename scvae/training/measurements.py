"""The arguments of a fit that name further measurements of the cells, checked."""

from __future__ import annotations

from collections.abc import Mapping

from ..common.checks import check_choice, is_mudata, listing
from ..config import View, ViewLikelihood
from ..data.schema import RNA, Kind
from ..data.sources import Source
from ..data.views import check_views
from ..inference.fitted import FittedModel
from ..likelihoods import KIND, NAMES

PROTEIN = "protein"  # name of the measurement that `protein_key` adds


def checked_views(
    also: Mapping[str, View] | None, protein_key: str | None, protein_likelihood: ViewLikelihood
) -> dict[str, View]:
    """The further measurements by name, that of `protein_key` among them.

    Raises
    ------
    ValueError, TypeError
        As `check_views`; if the proteins are given twice, or their likelihood without them.
    """
    views = check_views(also)
    if protein_key is None and protein_likelihood != "nb":
        raise ValueError("protein_likelihood has no effect without protein_key; leave it out")
    if protein_key is not None:
        check_choice(protein_likelihood, (*KIND,), "protein_likelihood")
        if PROTEIN in views:
            raise ValueError(f"both protein_key and also[{PROTEIN!r}] are given; pass one of them")
        views[PROTEIN] = View(obsm=protein_key, likelihood=protein_likelihood)
    return views


def kinds_of(views: Mapping[str, View]) -> dict[str, Kind]:
    """Kind of the values of each."""
    return {name: KIND[view.likelihood] for name, view in views.items()}


def of_modalities(
    adata: object,
    modalities: Mapping[str, ViewLikelihood] | None,
    likelihood: ViewLikelihood,
    views: dict[str, View],
    init: FittedModel | None,
) -> tuple[str, ViewLikelihood, dict[str, View]]:
    """The name and the likelihood of the first measurement, and the further ones: those of a MuData, or as given.

    Raises
    ------
    ValueError
        If modalities are given without a MuData, or not as it needs them.
    """
    if not is_mudata(adata):
        if modalities is not None:
            raise ValueError(f"modalities are those of a MuData, but adata is a {type(adata).__name__}; pass also")
        return (RNA if init is None else init.schema.name), likelihood, views
    if init is not None and modalities is None:
        modalities = {init.schema.name: init.likelihood} | {view.name: view.likelihood for view in init.schema.views}
    if not isinstance(modalities, Mapping) or len(modalities) < 2:
        example = ", ".join(f"{name!r}: 'nb'" for name in list(adata.mod)[:2])
        raise ValueError(
            f"adata is a MuData, so modalities must name at least two and their likelihoods, e.g. {{{example}}}; found "
            f"{modalities!r} (a single one is fitted alone: scvae.fit(mdata['rna']))"
        )
    if views or likelihood != "nb":
        raise ValueError("with modalities, leave out also, protein_key and likelihood: each modality has its own")
    unknown = [name for name in modalities if name not in adata.mod]
    if unknown:
        raise ValueError(f"modalities has {listing(unknown)}, but the MuData has {listing(adata.mod)}")
    first = next(iter(modalities))
    for name, given in modalities.items():
        check_choice(given, NAMES if name == first else (*KIND,), f"the likelihood of the modality {name!r}")
    further = {name: View(mod=adata.mod[name], likelihood=modalities[name]) for name in modalities if name != first}
    return first, modalities[first], check_views(further)


def slots_of(views: Mapping[str, View], init: FittedModel | None) -> tuple[str, ...]:
    """The slots of `obsm` that a fit reads."""
    given = tuple(view.obsm for view in views.values() if view.obsm is not None)
    return given or (() if init is None else init.schema.slots)


def check_readable(source: Source, views: Mapping[str, View]) -> None:
    """Raises ValueError if names of features are in `uns` of files, from which it is not read."""
    keys = [name for name, view in views.items() if isinstance(view.names, str)]
    if source.files and keys:
        raise ValueError(
            f"the names of the view {keys[0]!r} are in uns, which is not read from files; pass the names themselves, "
            "or write the slot as a DataFrame"
        )
