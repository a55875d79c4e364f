"""`rank_genes`: genes whose mean expression differs between groups of cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..common.checks import LISTED, check_adata, check_not_negative, check_positive_int, listing, warn
from ..common.keys import can_be_key, check_slot_name
from ..common.slots import target_of, write
from ..inference.cells import read_cells, taking_mudata
from ..inference.comparisons import REST, by_cells, by_donors, chosen_groups, kinds_of, sizes_of
from ..inference.contrast import Contrast
from ..inference.donor_contrasts import DonorContrast
from ..inference.fitted import FittedModel, check_model
from ..inference.needs import check_without_skip
from ..inference.obs_columns import check_apart, donors_of, groups_of, warn_of_donors
from ..inference.ranking import HELD, HELD_OF_DONORS, LOG_2, Ranking, ranked
from ..inference.views import check_view, facing
from ..kernels.context import computing
from ..likelihoods import BackgroundMixture

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def rank_genes(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    groupby: str,
    groups: Sequence[str] | str = "all",
    reference: str = REST,
    sample_key: str | None = None,
    within: str | None = None,
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

    Without `sample_key`, *the cells are the sample*. That is right for kinds of cells, such as types. If the groups are
    conditions of donors, *the donors are the sample*, since the cells of a donor are alike and donors of one condition
    differ, too: pass ``sample_key="donor"``, and ``within="cell_type"`` for one comparison in each type.

    With `sample_key`, each donor has one mean of each gene on each side, with the uncertainty that his or her cells
    leave, so that a donor with 3 cells counts little. Donors differ by a normal random effect in log mean, whose
    variance has a prior that all genes determine (`scvae.inference.donors`; the moderation of Smyth 2004). If donors
    have cells on both sides, each is compared with himself or herself (paired); if not, donors are compared within the
    batches of the model that have donors of both sides. A batch that belongs to one donor (or to one sample of a donor)
    needs no correction, because it is part of how donors differ. A group that is confounded with the batch is refused.

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
    sample_key
        Column of `adata.obs` with the donor of each cell. Take it when groups are conditions that donors have, with at
        least two donors in each; not for types of cells within a single donor. None takes the cells as the sample.
        Between random halves of donors of one condition, a gene is called at 5 % in 3.5 % of 172 splits with it, and in
        69 % without.
    within
        Column of `adata.obs`, such as the cell type: groups are compared within each of its values, and there is one
        ranking for each value and group, named ``"<value>, <group>"``. None compares all cells.
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

            With `sample_key`, ``pvals`` are p-values, ``pvals_adj`` those adjusted by Benjamini & Hochberg (1995), and
            ``scores`` the normal scores of the p-values. Two columns are added: ``lfsr`` (local false sign rate) and
            ``donor_sd`` (standard deviation of donors in log mean, base 2). ``means`` are means over donors. ``params``
            also has ``n_donors``, ``n_donors_reference`` and ``paired``.

    Warns
    -----
    UserWarning
        If ``groups="all"`` or `within` leaves out groups, because there are not two cells (with `sample_key`: donors)
        of the group and two of the reference (in one batch, if the model has batches); the message names them and says
        why. If donors are left out of a comparison, or it is partly confounded with the batch. If `sample_key` is left
        out and a column of `obs` looks like donors (it is called donor, patient, sample, mouse or the like, and each
        group has several of its values).

    Raises
    ------
    ValueError
        As for `embed`; if the model is not of counts, a group does not exist or is the reference, or no group (or,
        without `within`, not each group in `groups`) can be compared (MissingKeyError if a column does not exist). If
        two of `groupby`, `sample_key` and `within` are the same column. `adata` is then unchanged.

    Examples
    --------
    >>> import scanpy as sc
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.rank_genes(adata, model, groupby="cell_type")
    >>> sc.get.rank_genes_groups_df(adata, group="type_0", pval_cutoff=0.05).columns[0]
    'names'

    With donors as the sample, in each type of cells:

    >>> adata.obs["donor"] = [f"donor_{i % 6}" for i in range(200)]
    >>> adata.obs["condition"] = ["treated" if i % 6 < 3 else "control" for i in range(200)]
    >>> scvae.tl.rank_genes(
    ...     adata, model, groupby="condition", reference="control", sample_key="donor", within="cell_type"
    ... )
    >>> sc.get.rank_genes_groups_df(adata, group="type_0, treated").columns[0]
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
    _check_counts(model, view)
    used_beta = model.beta_of(beta)
    check_apart(groupby=groupby, sample_key=sample_key, within=within)
    codes, names = groups_of(adata, groupby)
    reference = str(reference)  # a group's name, as in `groups`; it may be a number if the column has numbers
    sizes = sizes_of(codes, names)
    chosen = chosen_groups(names, sizes, groupby, groups, reference)
    donors = None if sample_key is None else donors_of(adata, sample_key)
    kinds = {"": np.ones(len(codes), dtype=bool)} if within is None else kinds_of(adata, within)
    if donors is None:
        batch_key = None if model.schema.batch is None else model.schema.batch.key
        warn_of_donors(adata, codes, groupby, within, batch_key)
    cells = read_cells(adata, of_first, layer).turned(place)
    codes = codes if cells.present is None else np.where(cells.present, codes, -1)
    measured = np.setdiff1d(np.arange(len(model.genes)), cells.missing_genes)
    against = None if reference == REST else names.index(reference)
    pairs = [(names.index(group), against) for group in chosen]
    found: dict[str, Contrast | DonorContrast] = {}
    left_out: list[str] = []
    for kind, is_in in kinds.items():
        here = np.where(is_in, codes, -1)
        labels = [f"{kind}, {group}" for group in chosen] if kind else chosen
        if donors is None:
            results, reasons = by_cells(model, cells, here, pairs, labels, names, reference, groupby, beta)
        else:
            results, reasons = by_donors(model, cells, here, donors, pairs, labels, measured, least, beta)
        found |= results
        left_out += reasons
    if left_out and (not found or (within is None and not isinstance(groups, str))):
        raise ValueError(_some_of(left_out) + ("" if donors else _instead(model)))
    _warn_of_missing(left_out, found)
    rankings = {
        label: ranked(result, model.genes.to_numpy(), measured, n_stored, threshold * LOG_2, least)
        for label, result in found.items()
    }
    params = {
        "groupby": groupby,
        "reference": reference,
        "use_raw": False,
        "layer": of_first.schema.layer_of(layer),
        **({"view": model.schema.name} if model.schema.views else {}),
        "lfc_threshold": threshold,
        "min_counts": least,
        "beta": used_beta,
        **({} if within is None else {"within": within}),
        **({} if sample_key is None else {"sample_key": sample_key}),
    }
    target = target_of(adata, copy=copy)
    write(target, uns={key_added: _record(rankings, params | _found(rankings), model.genes[measured])})
    return target if copy else None


def _check_counts(model: FittedModel, view: str | None) -> None:
    if model.schema.kind != "counts":
        raise ValueError(
            f"rank_genes is for counts (nb, zinb, poisson), since it compares proportions, but the model has "
            f"likelihood={model.likelihood!r}; use scanpy.tl.rank_genes_groups on the values"
        )
    if isinstance(model.network.likelihood, BackgroundMixture):
        raise ValueError(
            f"rank_genes compares proportions, which the view {view!r} with its background ('nb_mixture') has not; use "
            "scanpy.tl.rank_genes_groups on its denoised values"
        )


def _some_of(left_out: list[str]) -> str:
    more = f"; and {len(left_out) - LISTED} more" if len(left_out) > LISTED else ""
    return "; ".join(left_out[:LISTED]) + more


def _warn_of_missing(left_out: list[str], found: dict[str, Contrast | DonorContrast]) -> None:
    """Warns of comparisons that are missing, and of donors that are in none."""
    if left_out:
        warn(_some_of(left_out))
    notes: dict[str, list[str]] = {}
    for label, result in found.items():
        for note in result.design.notes if isinstance(result, DonorContrast) else ():
            notes.setdefault(note, []).append(label)
    for note, labels in notes.items():
        warn(f"{note} ({listing(labels)})")


def _found(rankings: dict[str, Ranking]) -> dict[str, Any]:
    """What the record says of each comparison beside its table, and which values hold."""
    found: dict[str, Any] = {
        "centre": np.array([ranking.centre for ranking in rankings.values()]),
        "unchanged": np.array([ranking.unchanged for ranking in rankings.values()]),
        "n_cells": np.array([ranking.n_cells for ranking in rankings.values()]),
        "n_cells_reference": np.array([ranking.n_cells_reference for ranking in rankings.values()]),
    }
    designs = [ranking.donors.design for ranking in rankings.values() if ranking.donors is not None]
    if not designs:
        return HELD | found
    return (
        HELD_OF_DONORS
        | found
        | {
            "n_donors": np.array([design.n_donors[0] for design in designs]),
            "n_donors_reference": np.array([design.n_donors[1] for design in designs]),
            "paired": np.array([design.paired for design in designs]),
        }
    )


def _record(rankings: dict[str, Ranking], params: dict[str, Any], genes: pd.Index) -> dict[str, Any]:
    """The results in scanpy's format: a record array for each column, with a field for each group."""
    groups = list(rankings)
    record: dict[str, Any] = {"params": params}
    for name, column in rankings[groups[0]].columns.items():
        kind = object if name == "names" else ("float64" if name.startswith(("pvals", "lfsr")) else "float32")
        table = np.empty(len(column), dtype=[(group, kind) for group in groups])
        for group, ranking in rankings.items():
            table[group] = ranking.columns[name]
        record[name] = table.view(np.recarray)
    if all(map(can_be_key, groups)):  # the names of the groups are those of columns, and files cannot hold "T/NK"
        record["pts"] = pd.DataFrame({group: r.detected for group, r in rankings.items()}, index=genes)
        record["pts_rest"] = pd.DataFrame({group: r.detected_reference for group, r in rankings.items()}, index=genes)
    return record


def _checked_n_genes(n_genes: int | None, model: FittedModel) -> int:
    if n_genes is None:
        return len(model.genes)
    return min(check_positive_int(n_genes, "n_genes"), len(model.genes))


def _instead(model: FittedModel) -> str:
    if model.schema.batch is None:
        return "; leave these groups out, or merge them with others"
    return (
        "; compare groups that share a batch. If the batches are donors or samples with one condition each, they are "
        f"the sample, not their cells: pass sample_key={model.schema.batch.key!r}"
    )
