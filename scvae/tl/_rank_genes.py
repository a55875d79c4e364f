"""`rank_genes`: genes whose mean expression differs between groups of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_float_dtype

from ..common.checks import LISTED, check_adata, check_not_negative, check_obs_column, check_positive_int, listing, warn
from ..common.keys import can_be_key, check_slot_name
from ..common.slots import target_of, write
from ..inference.cells import read_cells
from ..inference.contrast import Contrast
from ..inference.differential import LEAST_CELLS, contrasts, tested
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.shrinkage import bayesian_fdr, shrink
from ..inference.views import check_view, facing
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData

REST = "rest"
LOG_2 = float(np.log(2.0))
HELD = {
    "method": "scvae",
    "corr_method": "Bayesian FDR",
    "pvals_hold": "posterior error probability: that the gene does not change in the direction of its score (by more "
    "than lfc_threshold); not a p-value",
    "pvals_adj_hold": "Bayesian FDR: mean of these probabilities over all genes at least as certain",
    "scores_hold": "signed root of the likelihood ratio against no change",
    "logfoldchanges_hold": "posterior mean, base 2, relative to centre",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranking:
    """Columns of one group, best score first, and values that apply to the whole group."""

    columns: dict[str, np.ndarray]
    detected: np.ndarray
    detected_reference: np.ndarray
    n_cells: int
    n_cells_reference: int
    centre: float
    unchanged: float


@computing()
def rank_genes(
    adata: AnnData,
    model: FittedModel,
    *,
    groupby: str,
    groups: Sequence[str] | str = "all",
    reference: str = REST,
    lfc_threshold: float = 0.0,
    min_counts: float = 10.0,
    n_genes: int | None = None,
    view: str | None = None,
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "rank_genes_groups",
    copy: bool = False,
) -> AnnData | None:
    """Ranks genes by how the mean expression of a group of cells differs from a reference (differential expression).

    `scanpy.get.rank_genes_groups_df` gives one row per gene and group, in the order of the score. Its columns hold:

    ``scores``
        How clear the difference is: its size in standard errors, with the sign of the change.
    ``logfoldchanges``
        Log fold change of the mean (base 2). It is shrunken towards 0, the more so the less the counts say about a
        gene.
    ``pvals``
        Not p-values, but the probability that the gene does not change in the direction of its score: near 0 for a
        gene that surely does. 1 for genes with too few counts to be tested.
    ``pvals_adj``
        The false discovery rate: the expected share of wrong genes among this one and all with smaller `pvals`. The
        genes below 0.05 have 5 % false discoveries; no further correction is needed.

    Here the cells are the sample. If the groups are conditions of donors, *the donors are the sample*, since the cells
    of a donor are alike and donors of one condition differ, too. With ``batch_key="donor"`` such groups share no batch
    and are refused. Without it `rank_genes` cannot tell, and reports differences between donors: of 1,000 genes 90 at
    5 % between random halves of five donors of one study (endothelial cells, median of 10 splits; Wilcoxon test on
    cells: 40; t-test on the sums of each donor: 0). To compare conditions, sum the counts of each donor and type
    (`scanpy.get.aggregate`) and test the sums (pseudobulk, e.g. with pydeseq2 or edgeR).

    A group's mean proportion is the model's (at the posterior means of z) plus the weighted mean of the residuals of
    the counts, so that neither smoothing nor errors of the decoder appear as differences
    (`scvae.inference.differential`). Its variance is the variance over cells, moderated by the model's. With batches,
    groups are compared within each batch that has at least two cells of both; batches are weighted by
    n_a n_b / (n_a + n_b) on both sides, so that batch effects cancel. The prior of the log fold changes is estimated
    from all genes and includes a component for no change (adaptive shrinkage, Stephens 2017). The posterior gives the
    error probabilities.

    Proportions add up to 1, so genes that rise make all others fall. Changes are therefore measured relative to the
    typical gene, the mode of the prior (recorded as `centre`), as size factors do for bulk data.

    Groups found by clustering the same cells differ by construction, because clustering separates cells where their
    counts differ. As in every test, the error rates are valid only for labels that do not come from these counts; they
    are too small otherwise.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. Cells without a count in the modelled genes, or
        without a value in the column, are left out.
    model
        A fitted model of counts (nb, zinb or poisson).
    groupby
        Column of `adata.obs` with the group of each cell.
    groups
        Groups to rank genes for. ``"all"``: each group except the reference; those that cannot be compared are left
        out with a warning. A group that is named here and cannot be compared raises an error.
    reference
        A group to compare with, or ``"rest"``: the cells of all other groups, whether in `groups` or not.
    lfc_threshold
        Smallest log fold change (base 2) that counts as a change, in either direction.
    min_counts
        Genes with fewer counts in group and reference together are not tested: their error probability is 1.
    n_genes
        Number of genes to store; None for all modelled genes that `adata` has.
    view
        For a model of several measurements, the name of the one whose features to rank, which must be counts
        (``"protein"``); None for the first. Cells that lack it are in no group.
    beta
        For a model with a range of β, the β to use; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name of the slot written; scanpy's tools find the default. Plots that look up values of genes
        (``values_to_plot="logfoldchanges"``) need a value for every gene of the AnnData: pass them only the model's
        genes, ``adata[:, model.genes]``.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slot written, in the format of `scanpy.tl.rank_genes_groups`:

        ``uns["<key_added>"]``
            Records with one column per group, genes sorted by descending score: ``names``; ``scores`` (signed root of
            the likelihood ratio against no change); ``logfoldchanges`` (posterior mean) and ``logfoldchanges_sd``;
            ``pvals`` (posterior error probability; with `lfc_threshold` = 0 the local false sign rate); ``pvals_adj``
            (Bayesian FDR: mean error probability of all genes at least as certain; Käll et al. 2008); ``means`` and
            ``means_reference`` (mean proportion). Tables ``pts`` and ``pts_rest``, genes x groups: share of cells with
            a count in the group and in the reference, both in batches with two cells of each (left out if the name of a
            group has a "/", which files cannot hold in a column). ``params`` describes the columns and has one entry
            per group of ``centre`` (base 2), ``unchanged`` (estimated share of genes without a change), and ``n_cells``
            and ``n_cells_reference`` (numbers of cells compared).

    Warns
    -----
    UserWarning
        If ``groups="all"`` leaves out groups, because there are not two cells of the group and two of the reference (in
        one batch, if the model has batches); the message names them.

    Raises
    ------
    ValueError
        As for `embed`; if the model is not of counts, a group does not exist or is the reference, or no group (or not
        each group in `groups`) can be compared (MissingKeyError if the column does not exist). `adata` is then
        unchanged.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.rank_genes(adata, model, groupby="cell_type")
    >>> sc.get.rank_genes_groups_df(adata, group="type_0", pval_cutoff=0.05).columns[0]
    'names'
    """
    check_model(model)
    check_without_skip(model, "scvae.tl.rank_genes")
    check_adata(adata)
    place, of_first = check_view(model, view), model
    model = facing(of_first, place)
    threshold = check_not_negative(lfc_threshold, "lfc_threshold")
    least = check_not_negative(min_counts, "min_counts")
    n_stored = _checked_n_genes(n_genes, model)
    earlier = getattr(adata, "uns", {}).get(check_slot_name(key_added, "key_added"))
    if earlier is not None and not (isinstance(earlier, Mapping) and "names" in earlier):
        raise ValueError(f"adata.uns[{key_added!r}] is not a ranking of genes; pass another key_added to keep it")
    if model.schema.kind != "counts":
        raise ValueError(
            f"rank_genes is for counts (nb, zinb, poisson), since it compares proportions, but the model has "
            f"likelihood={model.likelihood!r}; use scanpy.tl.rank_genes_groups on the values"
        )
    used_beta = model.beta_of(beta)
    codes, names = _groups_of(adata, groupby)
    reference = str(reference)  # a group's name, as in `groups`; it may be a number if the column has numbers
    sizes = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=False))
    chosen = _chosen(names, sizes, groupby, groups, reference)
    cells = read_cells(adata, of_first, layer).turned(place)
    codes = codes if cells.present is None else np.where(cells.present, codes, -1)
    measured = np.setdiff1d(np.arange(len(model.genes)), cells.missing_genes)
    against = None if reference == REST else names.index(reference)
    found = contrasts(model, cells, codes, [(names.index(group), against) for group in chosen], beta=beta)
    compared = {group: contrast for group, contrast in zip(chosen, found, strict=True) if contrast is not None}
    left_out = [group for group in chosen if group not in compared]
    if left_out and (not compared or not isinstance(groups, str)):
        raise ValueError(_why_not(model, left_out, reference, sizes, groupby) + _instead(model))
    if left_out:
        warn(f"{listing(left_out)} left out: {_why_not(model, left_out, reference, sizes, groupby)}")
    rankings = {
        group: _ranked(contrast, model.genes.to_numpy(), measured, n_stored, threshold * LOG_2, least)
        for group, contrast in compared.items()
    }
    params = HELD | {
        "groupby": groupby,
        "reference": reference,
        "use_raw": False,
        "layer": of_first.schema.layer_of(layer),
        **({"view": model.schema.name} if model.schema.views else {}),
        "lfc_threshold": threshold,
        "min_counts": least,
        "beta": used_beta,
        "centre": np.array([ranking.centre for ranking in rankings.values()]),
        "unchanged": np.array([ranking.unchanged for ranking in rankings.values()]),
        "n_cells": np.array([ranking.n_cells for ranking in rankings.values()]),
        "n_cells_reference": np.array([ranking.n_cells_reference for ranking in rankings.values()]),
    }
    target = target_of(adata, copy=copy)
    write(target, uns={key_added: _record(rankings, params, model.genes[measured])})
    return target if copy else None


def _ranked(
    contrast: Contrast,
    genes: np.ndarray,
    measured: Int[np.ndarray, " measured"],
    n_stored: int,
    threshold: float,
    least: float,
) -> _Ranking:
    """Shrinks the estimates of genes with enough counts; other measured genes rank as unchanged."""
    judged = tested(contrast, least) & np.isin(np.arange(len(genes)), measured)
    values = {name: np.zeros(len(genes)) for name in ("scores", "logfoldchanges", "logfoldchanges_sd")}
    values |= {name: np.ones(len(genes)) for name in ("pvals", "pvals_adj")}
    centre, unchanged = 0.0, 1.0
    if judged.any():
        estimate, error = contrast.estimate[judged], contrast.error[judged]
        posterior = shrink(estimate, error, threshold=threshold)
        centre, unchanged = posterior.centre / LOG_2, posterior.unchanged
        values["scores"][judged] = (estimate - posterior.centre) / error
        values["logfoldchanges"][judged] = posterior.mean / LOG_2
        values["logfoldchanges_sd"][judged] = posterior.sd / LOG_2
        values["pvals"][judged] = posterior.error_probability
        values["pvals_adj"][judged] = bayesian_fdr(posterior.error_probability)
    order = measured[np.argsort(-values["scores"][measured], kind="stable")][:n_stored]
    columns = {"names": genes} | values | {"means": contrast.group.mean, "means_reference": contrast.reference.mean}
    return _Ranking(
        columns={name: column[order] for name, column in columns.items()},
        detected=contrast.group.detected[measured],
        detected_reference=contrast.reference.detected[measured],
        n_cells=contrast.group.n_cells,
        n_cells_reference=contrast.reference.n_cells,
        centre=centre,
        unchanged=unchanged,
    )


def _record(rankings: dict[str, _Ranking], params: dict[str, Any], genes: pd.Index) -> dict[str, Any]:
    """The results in scanpy's format: a record array for each column, with a field for each group."""
    groups = list(rankings)
    record: dict[str, Any] = {"params": params}
    for name, column in rankings[groups[0]].columns.items():
        kind = object if name == "names" else ("float64" if name.startswith("pvals") else "float32")
        table = np.empty(len(column), dtype=[(group, kind) for group in groups])
        for group, ranking in rankings.items():
            table[group] = ranking.columns[name]
        record[name] = table.view(np.recarray)
    if all(map(can_be_key, groups)):  # the names of the groups are those of columns, and files cannot hold "T/NK"
        record["pts"] = pd.DataFrame({group: r.detected for group, r in rankings.items()}, index=genes)
        record["pts_rest"] = pd.DataFrame({group: r.detected_reference for group, r in rankings.items()}, index=genes)
    return record


def _groups_of(adata: AnnData, groupby: str) -> tuple[Int[np.ndarray, " cells"], list[str]]:
    """Group of each cell, -1 for none, and the names of the groups in order."""
    column = check_obs_column(adata, groupby)
    if (is_float_dtype(column) and not is_bool_dtype(column)) or is_datetime64_any_dtype(column):
        raise ValueError(f"adata.obs[{groupby!r}] has type {column.dtype}; pass a column of categories")
    categories = column.astype("category").cat.remove_unused_categories()
    names = [str(name) for name in categories.cat.categories]
    return categories.cat.codes.to_numpy(dtype=np.int64), names


def _chosen(
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


def _checked_n_genes(n_genes: int | None, model: FittedModel) -> int:
    if n_genes is None:
        return len(model.genes)
    return min(check_positive_int(n_genes, "n_genes"), len(model.genes))


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


def _instead(model: FittedModel) -> str:
    if model.schema.batch is None:
        return "; leave these groups out, or merge them with others"
    return (
        "; compare groups that share a batch. If the batches are donors or samples with one condition each, they are "
        "the sample, not their cells: sum the counts of each (scanpy.get.aggregate) and test the sums (pseudobulk, "
        "e.g. with pydeseq2)"
    )
