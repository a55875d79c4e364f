"""Groups of cells to compare: which were asked for, what comes of each, and why one is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int

from ..common.checks import LISTED, listing
from ..data.cells import Cells
from .contrast import Contrast
from .differential import LEAST_CELLS, contrasts
from .donor_contrasts import DonorContrast, donor_contrasts
from .fitted import FittedModel
from .obs_columns import groups_of

if TYPE_CHECKING:
    from anndata import AnnData

REST = "rest"


def chosen_groups(
    names: list[str], sizes: Mapping[str, int], groupby: str, groups: Sequence[str] | str | None, reference: str
) -> list[str]:
    """The groups to rank genes for, checked."""
    place = f"adata.obs[{groupby!r}]"
    if "" in names:
        raise ValueError(f"{place} has a group without a name, ''; rename it")
    if REST in names:
        raise ValueError(f"{place} has a group named {REST!r}, which stands for all other cells; rename it")
    if len(names) < 2:
        raise ValueError(f"{place} has {len(names)} group(s), {listing(names)}; at least two are needed to compare")
    if reference not in (REST, *names):
        raise ValueError(f"reference is {reference!r}; pass 'rest' or a group of {place}: {listing(names)}")
    if groups is None or (isinstance(groups, str) and groups != "all"):
        example = [groups or names[0]]
        raise ValueError(f"groups is {groups!r}; pass 'all' or a list of groups, e.g. {example}")
    wanted = [name for name in names if name != reference] if isinstance(groups, str) else [str(g) for g in groups]
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise ValueError(f"groups has {listing(unknown)}, not found in {place}; it has {listing(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{place} has several values with the same text {listing(twice)}; rename all but one")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"groups is {listing(wanted)}; name at least one group, and each once")
    if reference in wanted:
        raise ValueError(f"{reference!r} is both the reference and in groups; leave it out of groups")
    for name in ([] if isinstance(groups, str) else wanted) + ([] if reference == REST else [reference]):
        if sizes[name] < LEAST_CELLS:
            raise ValueError(
                f"group {name!r} of {place} has 1 cell, too few to estimate a variance; leave it out, or merge it with "
                "another group"
            )
    return wanted


def kinds_of(adata: AnnData, within: str) -> dict[str, Bool[np.ndarray, " cells"]]:
    """The cells of each value of a column."""
    codes, names = groups_of(adata, within)
    if len(set(names)) < len(names) or "" in names or not names:
        raise ValueError(f"adata.obs[{within!r}] has {listing(names)}; it must have names that differ, none of them ''")
    return {name: codes == code for code, name in enumerate(names)}


def sizes_of(codes: Int[np.ndarray, " cells"], names: list[str]) -> dict[str, int]:
    """The number of cells of each group."""
    return dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=False))


def by_cells(
    model: FittedModel,
    cells: Cells,
    codes: Int[np.ndarray, " cells"],
    pairs: list[tuple[int, int | None]],
    labels: list[str],
    names: list[str],
    reference: str,
    groupby: str,
    beta: float | None,
) -> tuple[dict[str, Contrast | DonorContrast], list[str]]:
    """Comparisons with cells as the sample by label, and why the others are left out."""
    results = contrasts(model, cells, codes, pairs, beta=beta)
    lacking = [i for i, result in enumerate(results) if result is None]
    reasons = []
    if lacking:
        groups = [names[pairs[i][0]] for i in lacking]
        reason = _why_not(model, groups, reference, sizes_of(codes, names), groupby)
        reasons = [f"{listing(labels[i] for i in lacking)} left out: {reason}"]
    return {label: result for label, result in zip(labels, results, strict=True) if result is not None}, reasons


def by_donors(
    model: FittedModel,
    cells: Cells,
    codes: Int[np.ndarray, " cells"],
    donors: tuple[Int[np.ndarray, " cells"], Sequence[str]],
    pairs: list[tuple[int, int | None]],
    labels: list[str],
    measured: Int[np.ndarray, " measured"],
    least: float,
    beta: float | None,
) -> tuple[dict[str, Contrast | DonorContrast], list[str]]:
    """Comparisons with donors as the sample by label, and why the others are left out."""
    is_measured = np.isin(np.arange(len(model.genes)), measured)
    results = donor_contrasts(model, cells, codes, donors, pairs, is_measured, least=least, beta=beta)
    by_label = dict(zip(labels, results, strict=True))
    reasons = [f"{label!r} left out: {result}" for label, result in by_label.items() if isinstance(result, str)]
    return {label: result for label, result in by_label.items() if not isinstance(result, str)}, reasons


def _why_not(model: FittedModel, left_out: list[str], reference: str, sizes: Mapping[str, int], groupby: str) -> str:
    """Why these groups cannot be compared with the reference."""
    single = [group for group in left_out if sizes[group] < LEAST_CELLS]
    others = [group for group in left_out if group not in single]
    reasons = [f"group {group!r} of adata.obs[{groupby!r}] has 1 cell" for group in single[:LISTED]]
    if others:
        where = f"no batch (adata.obs[{model.schema.batch.key!r}]) has" if model.schema.batch else "there are not"
        them = ("any of " if len(others) > 1 else "") + listing(others)
        reasons.append(f"{where} two cells of {them} and two of {reference!r} with counts in the modelled genes")
    return "; ".join(reasons)
