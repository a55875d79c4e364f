"""`differential_abundance`: where in latent space cells of a group are more frequent than donors differ by chance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..common.checks import check_adata, check_positive_int, listing, warn
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import target_of, write_made
from ..diagnostics.abundance import Abundance, abundance
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.obs_columns import check_apart, donors_of, groups_of
from ..inference.posterior import posterior_moments
from ..inference.trained import identity_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def differential_abundance(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    groupby: str,
    sample_key: str,
    group: str | None = None,
    reference: str | None = None,
    n_neighbors: int | None = None,
    beta: float | None = None,
    layer: str | None = None,
    rng: SeedLike = 0,
    key_added: str = "scvae",
    copy: bool = False,
) -> AnnData | None:
    """Finds where in latent space cells of a group are more or less frequent than donors differ by chance.

    Cells are counted in overlapping neighbourhoods: a cell and those nearest to it, by the posterior means. No clusters
    are needed (the idea of Milo, Dann et al. 2022). In each neighbourhood the frequencies of the donors are compared as
    `rank_genes` compares genes with `sample_key`: a random effect of the donor, whose variance is moderated over all
    neighbourhoods; paired if donors have cells on both sides, within the batches of the model otherwise.

    Frequencies add up to 1: if one population grows, all others shrink a little. Where batches or donors lie apart in
    latent space, nothing can be found: give the model a `batch_key`, unless the batch is the condition.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. Cells without a group or a donor get no value.
    model
        A fitted model.
    groupby
        Column of `adata.obs` with the group (the condition) of each cell.
    sample_key
        Column of `adata.obs` with the donor of each cell; at least two donors in each of the two groups. If donors
        differ by 0.4 in log frequency, a population that doubles is called at 5 % in 2 % of its neighbourhoods with
        three donors in each group, and in 25 % with ten. Where none grew, 2 % of 2,000 simulated repeats had a call.
    group, reference
        The two groups to compare. None for `reference` is the first group of the column, None for `group` the other one
        of two groups.
    n_neighbors
        Cells in a neighbourhood. None takes 5 for each donor and group, at least 30, and at most a tenth of the cells.
        Take more where an effect is weak and widespread, fewer where a small population is of interest.
    beta
        For a model with a range of β, the β to embed at; None for 1 (if the range excludes 1, its geometric mean).
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    rng
        Seed or numpy Generator: of more than 1,000 cells, 5 % and at least 1,000 are centres of neighbourhoods.
    key_added
        Name used in the slots written.
    copy
        Whether to return a copy with the results and leave `adata` unchanged.

    Returns
    -------
    AnnData or None
        The copy, or None. Slots written:

        ``obs["<key_added>_abundance"]``, ``obs["<key_added>_abundance_se"]``
            float64 log odds (natural logarithm) that a cell is of the group and not of the reference, if both had
            equally many cells, and their standard error: means over the five nearest centres (the error is at most
            this). NaN for cells that were not compared.
        ``obs["<key_added>_abundance_fdr"]``
            float64 false discovery rate of the neighbourhood of the nearest centre: Benjamini & Hochberg (1995),
            weighted by the reciprocal of its radius, as neighbourhoods overlap more where cells are dense (Dann et al.
            2022).
        ``uns["<key_added>"]["abundance"]``
            For each neighbourhood ``centre`` (name of the cell), ``log_odds``, ``se``, ``pvals``, ``fdr`` and
            ``donor_sd`` (of log frequency); and ``groupby``, ``sample_key``, ``group``, ``reference``, ``n_neighbors``,
            ``n_donors``, ``n_donors_reference``, ``paired``.

    Warns
    -----
    UserWarning
        If donors or batches are left out, or group and batch are partly confounded.

    Raises
    ------
    ValueError
        As for `embed`; if a group does not exist, or there are more than two and `group` is None; if a group has fewer
        than two donors; if the group is confounded with the batch of the model; if `n_neighbors` exceeds the number of
        compared cells (MissingKeyError if a column does not exist). `adata` is then unchanged.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> adata.obs["donor"] = [f"donor_{i % 6}" for i in range(200)]
    >>> adata.obs["condition"] = ["treated" if i % 6 < 3 else "control" for i in range(200)]
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.differential_abundance(adata, model, groupby="condition", sample_key="donor")
    >>> int((adata.obs["scvae_abundance_fdr"] <= 0.1).sum())  # cells where one condition is more frequent
    0
    """
    check_model(model)
    check_adata(adata)
    keys = Keys(key_added)
    if n_neighbors is not None:
        n_neighbors = check_positive_int(n_neighbors, "n_neighbors", least=2)
    seed = seed_of(rng)
    check_apart(groupby=groupby, sample_key=sample_key)
    codes, names = groups_of(adata, groupby)
    group, reference = _two_of(names, groupby, group, reference)
    donor, donors = donors_of(adata, sample_key)
    check_replaceable(adata.uns, keys)
    cells = read_cells(adata, model, layer)
    side = np.select([codes == names.index(group), codes == names.index(reference)], [0, 1], -1)
    mean, _ = posterior_moments(model, cells, beta=beta)
    found = abundance(
        model.written(mean),
        np.where(cells.library > 0, side, -1),
        donor,
        cells.group,
        donors=donors,
        batches=[""] if model.schema.batch is None else model.schema.batch.categories,
        n_neighbors=n_neighbors,
        seed=seed,
    )
    for note in found.design.notes:
        warn(note)
    values = (found.cell_log_odds, found.cell_error, found.cell_fdr)
    target = target_of(adata, copy=copy)
    write_made(
        target,
        keys,
        identity_of(model, beta),
        obs={name: _of_all(found, value, adata.n_obs) for name, value in zip(keys.abundance, values, strict=True)},
        record={
            keys.abundances: _storable(found, adata.obs_names)
            | {"groupby": groupby, "sample_key": sample_key, "group": group, "reference": reference}
        },
    )
    return target if copy else None


def _two_of(names: list[str], groupby: str, group: str | None, reference: str | None) -> tuple[str, str]:
    """The two groups to compare."""
    place = f"adata.obs[{groupby!r}]"
    if len(names) < 2 or len(set(names)) < len(names):
        raise ValueError(f"{place} has {listing(names)}; at least two groups with different names are needed")
    for name, value in (("group", group), ("reference", reference)):
        if value is not None and str(value) not in names:
            raise ValueError(f"{name} is {value!r}, not found in {place}; it has {listing(names)}")
    reference = names[0] if reference is None else str(reference)
    if group is None:
        others = [name for name in names if name != reference]
        if len(others) > 1:
            raise ValueError(f"{place} has {len(names)} groups, {listing(names)}; pass group= and reference=")
        group = others[0]
    if str(group) == reference:
        raise ValueError(f"group and reference are both {reference!r}; pass two different groups")
    return str(group), reference


def _of_all(found: Abundance, value: Float[np.ndarray, " cells"], n: int) -> Float[np.ndarray, " all"]:
    values = np.full(n, np.nan)
    values[found.cells] = value
    return values


def _storable(found: Abundance, names: pd.Index) -> dict[str, Any]:
    n_donors, n_reference = found.design.n_donors
    return {
        "centre": names[found.centre].to_numpy(dtype=str),
        "log_odds": found.log_odds,
        "se": found.error,
        "pvals": found.p_value,
        "fdr": found.fdr,
        "donor_sd": found.donor_sd,
        "n_neighbors": found.n_neighbors,
        "n_donors": n_donors,
        "n_donors_reference": n_reference,
        "paired": found.design.paired,
    }
