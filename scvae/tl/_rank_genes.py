"""`rank_genes`: genes whose mean expression differs between groups of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Int
from pandas.api.types import is_bool_dtype, is_datetime64_any_dtype, is_float_dtype

from ..common.checks import check_adata, check_not_negative, check_obs_column, check_positive_int, listing
from ..common.keys import check_slot_name
from ..common.slots import target_of, write
from ..inference.cells import read_cells
from ..inference.contrast import Contrast
from ..inference.differential import contrasts, tested
from ..inference.fitted import FittedModel, check_model
from ..inference.shrinkage import bayesian_fdr, shrink

if TYPE_CHECKING:
    from anndata import AnnData

REST = "rest"
LOG_2 = float(np.log(2.0))
HELD = {
    "method": "scvae",
    "corr_method": "Bayesian FDR",
    "pvals_hold": "posterior error probability: that the gene does not change in the direction of its score (by more "
    "than lfc_threshold); no p-value",
    "pvals_adj_hold": "Bayesian FDR: mean of these probabilities over all genes at least as certain",
    "scores_hold": "signed root of the likelihood ratio against no change",
    "logfoldchanges_hold": "posterior mean, base 2, relative to centre",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Ranking:
    """Columns of one group, best score first, and what all its genes share."""

    columns: dict[str, np.ndarray]
    detected: np.ndarray
    detected_reference: np.ndarray
    n_cells: int
    n_cells_reference: int
    centre: float
    unchanged: float


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
    beta: float | None = None,
    layer: str | None = None,
    key_added: str = "rank_genes_groups",
    copy: bool = False,
) -> AnnData | None:
    """Ranks genes by how the mean expression of a group of cells differs from a reference (differential expression).

    What is asked is whether two group means differ, cells being a sample from each group. A group's mean proportion is
    that of the model (at the posterior means of z) plus the weighted mean of what the counts have beyond it, so that
    neither the decoder's smoothing nor its errors are taken for a difference (`scvae.inference.differential`); its
    variance is that over cells, moderated by the model's. With a batch, groups are compared within each batch that
    holds at least two cells of both, and batches count n_a n_b / (n_a + n_b) for both sides alike: a batch effect
    cancels. All genes together give the prior of the log fold changes, no change at all being one of its parts
    (adaptive shrinkage, Stephens 2017), and the posterior gives error probabilities, and a false discovery rate that
    does not have to be corrected any further.

    Proportions add up to 1, so that genes that rise make all others fall. A change is therefore measured from that of
    the typical gene, the mode of the prior (recorded as `centre`), as size factors do it for bulk data.

    Groups found by clustering the very same cells differ by construction: the cells were parted where they differ. The
    rates then hold for labels that do not come from these counts, and are too small otherwise, here as in every test.

    Parameters
    ----------
    adata
        Cells with raw data as at the fit; genes are matched by name. Cells without a count in the modelled genes, or
        without a value in the column, are left out.
    model
        A fitted model of counts (nb, zinb or poisson).
    groupby
        Column of `adata.obs` with the group of each cell.
    groups
        Groups to rank genes for; ``"all"`` for each but the reference.
    reference
        A group to compare with, or ``"rest"``: the cells of all other groups, whether in `groups` or not.
    lfc_threshold
        Smallest log fold change (base 2) that counts as one, in either direction.
    min_counts
        Genes with fewer counts in group and reference together are not judged: their error probability is 1.
    n_genes
        Number of genes to store; None for all modelled genes that `adata` has.
    beta
        Of a model of many β, the one to use; None for 1 (or the geometric middle of a range without 1).
    layer
        Layer that holds the data, ``"X"`` for `X`; None for where the fit found them.
    key_added
        Name of the slot written, by default where scanpy's tools look. Those that look up a gene's values
        (``values_to_plot="logfoldchanges"``) want one for each gene of the AnnData: pass them `adata` with the genes of
        the model, ``adata[:, model.genes]``.
    copy
        Whether to leave `adata` alone and return a copy with the results.

    Returns
    -------
    AnnData or None
        The copy, or None. Slot written, of the form that `scanpy.tl.rank_genes_groups` gives it:

        ``uns["<key_added>"]``
            Records with one column a group, genes sorted by falling score: ``names``; ``scores`` (signed root of the
            likelihood ratio against no change); ``logfoldchanges`` (posterior mean, base 2) and
            ``logfoldchanges_sd``; ``pvals``, which hold the posterior error probability (with `lfc_threshold` = 0 the
            local false sign rate); ``pvals_adj``, which hold the Bayesian FDR (mean error probability of all genes at
            least as certain; Käll et al. 2008); ``means`` and ``means_reference`` (mean proportion). Tables ``pts`` and
            ``pts_rest``, genes x groups: share of the cells with a count in the group, and in the reference, both in
            batches that hold two cells of either. ``params`` says what the columns hold, and has an entry a group of
            ``centre`` (base 2), ``unchanged``, the estimated share of genes without a change, and ``n_cells`` and
            ``n_cells_reference``, the cells compared.

    Raises
    ------
    ValueError
        As `embed`; if the model is not one of counts, a group does not exist, has fewer than two cells or is the
        reference, or no batch holds two cells of both sides (MissingKeyError if there is no such column). `adata` is
        then as it was.

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
    check_adata(adata)
    threshold = check_not_negative(lfc_threshold, "lfc_threshold")
    least = check_not_negative(min_counts, "min_counts")
    n_stored = _checked_n_genes(n_genes, model)
    earlier = getattr(adata, "uns", {}).get(check_slot_name(key_added, "key_added"))
    if earlier is not None and not (isinstance(earlier, Mapping) and "names" in earlier):
        raise ValueError(f"adata.uns[{key_added!r}] is no ranking of genes; pass another key_added to keep it")
    if model.schema.kind != "counts":
        raise ValueError(
            f"rank_genes is for counts (nb, zinb, poisson), since it compares proportions; the model has "
            f"likelihood={model.likelihood!r}: use scanpy.tl.rank_genes_groups on the values"
        )
    used_beta = model.beta_of(beta)
    codes, names = _groups_of(adata, groupby)
    reference = str(reference)  # the name of a group, as in `groups`; a column of numbers has numbers for names
    chosen = _chosen(names, np.bincount(codes[codes >= 0], minlength=len(names)), groupby, groups, reference)
    cells = read_cells(adata, model, layer)
    measured = np.setdiff1d(np.arange(len(model.genes)), cells.missing_genes)
    against = None if reference == REST else names.index(reference)
    found = contrasts(model, cells, codes, [(names.index(group), against) for group in chosen], beta=beta)
    rankings = {}
    for group, contrast in zip(chosen, found, strict=True):
        if contrast is None:
            raise ValueError(_nothing_to_compare(model, group, reference))
        rankings[group] = _ranked(contrast, model.genes.to_numpy(), measured, n_stored, threshold * LOG_2, least)
    params = HELD | {
        "groupby": groupby,
        "reference": reference,
        "use_raw": False,
        "layer": model.schema.layer_of(layer),
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
    """Shrinks the estimates of the genes with enough counts; others that were measured rank as unchanged."""
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
    """As scanpy stores it: a record array for each column, with a field for each group."""
    groups = list(rankings)
    record: dict[str, Any] = {"params": params}
    for name, column in rankings[groups[0]].columns.items():
        kind = object if name == "names" else ("float64" if name.startswith("pvals") else "float32")
        table = np.empty(len(column), dtype=[(group, kind) for group in groups])
        for group, ranking in rankings.items():
            table[group] = ranking.columns[name]
        record[name] = table.view(np.recarray)
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
    names: list[str],
    sizes: Int[np.ndarray, " groups"],
    groupby: str,
    groups: Sequence[str] | str | None,
    reference: str,
) -> list[str]:
    """The groups to rank genes for, all of them such that there is something to compare."""
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
        raise ValueError(f"groups has {listing(unknown)}, and {place} has no such group; it has {listing(names)}")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"{place} has several values that are written {listing(twice)}; rename all but one")
    if not wanted or len(set(wanted)) < len(wanted):
        raise ValueError(f"groups is {listing(wanted)}; name at least one group, and each once")
    if reference in wanted:
        raise ValueError(f"{reference!r} is the reference and in groups; leave it out of one of them")
    for name in wanted if reference == REST else [*wanted, reference]:
        if sizes[names.index(name)] < 2:
            raise ValueError(
                f"group {name!r} of {place} has 1 cell, which says nothing of how cells differ; leave it out of "
                "groups, or merge it with another"
            )
    return wanted


def _checked_n_genes(n_genes: int | None, model: FittedModel) -> int:
    if n_genes is None:
        return len(model.genes)
    return min(check_positive_int(n_genes, "n_genes"), len(model.genes))


def _nothing_to_compare(model: FittedModel, group: str, reference: str) -> str:
    where = f"no batch (adata.obs[{model.schema.batch.key!r}]) holds" if model.schema.batch else "there are not"
    return (
        f"{where} two cells of {group!r} and two of {reference!r} with counts in the modelled genes; compare groups "
        "that share a batch, or fit without batch_key"
    )
