"""`diagnose`: measures how well a fitted model describes cells, and reports its problems in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Int

from ..common.checks import check_positive_int
from ..common.keys import Keys
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..common.slots import write_made
from ..diagnostics.diagnosis import Diagnosis
from ..diagnostics.examination import examine
from ..diagnostics.heads import compare_heads as compare
from ..diagnostics.stored import storable
from ..diagnostics.verdict import judge
from ..diagnostics.view_shares import view_shares
from ..inference.cells import read_cells, taking_mudata
from ..inference.fitted import FittedModel, check_model
from ..inference.obs_columns import groups_of
from ..kernels.context import computing

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData


@computing()
@taking_mudata
def diagnose(
    adata: AnnData | MuData,
    model: FittedModel,
    *,
    beta: float | None = None,
    n_cells: int = 2_000,
    compare_heads: bool = False,
    condition_key: str | None = None,
    layer: str | None = None,
    key_added: str = "scvae",
    rng: SeedLike = 0,
    verbose: bool = True,
) -> Diagnosis:
    """Examines a fitted model on cells and reports in words what is wrong with it, why, and what to do.

    Parameters
    ----------
    adata
        Cells with raw data, as in the fit; genes are matched by name. For the cells of the fit, in the same order, the
        gap between training and held-out cells is measured; for other cells it is taken from the history of the fit.
    model
        A fitted model.
    beta
        For a model with a range of β, the β to examine; None as in `scvae.tl.embed`.
    n_cells
        Largest number of cells to examine, drawn at random (fewer in the expensive parts). Their number also caps the
        estimate of the mutual information at log n.
    compare_heads
        Whether to fit other heads with the model's settings and compare the log-likelihoods of held-out cells: for
        counts nb, zinb and poisson, which takes three fits; for 0/1 data bernoulli and poisson. With several
        measurements, that of each in turn: for further counts nb, nb_mixture, poisson and, with up to 1,000 features,
        gaussian. See Notes.
    condition_key
        Column of `adata.obs` with a condition, for a model of counts with batches: audits how much of what differs
        between batches the correction removes, and whether that is what differs between conditions. Take it if
        conditions and batches go together; a column that has nothing to do with batches needs no audit. (Five tumours,
        each with and without a drug: 68 and 81 % of what the drug changes are kept with the patients as batches (two
        seeds), 15 % with the ten samples as batches, each of which has one condition; see benchmarks/README.md.)
    layer
        Layer with the data, ``"X"`` for `X` or ``"raw"`` for `raw`; None for the layer used in the fit.
    key_added
        Name used in the slot written.
    rng
        Seed or numpy Generator.
    verbose
        Whether to show progress bars for the fits of `compare_heads`. Nothing else is printed; print the result.

    Returns
    -------
    Diagnosis
        ``verdict``, ``healthy``, ``findings`` (name, severity, sentence, cause, remedy), ``measured`` and ``heads``.
        It prints as a short report. Slot written to `adata`:

        ``uns["<key_added>"]["diagnosis"]``
            The same as strings, numbers and arrays: ``verdict``; ``findings``, one array per field; ``likelihood``;
            ``training`` (how it ended);
            ``kl_per_dimension``, ``mean_variance_per_dimension``, ``information_per_dimension`` (latent; of the
            dimensions of the network, in which q has no correlations); ``rate``, the mean KL from the prior, which is
            the sum of those of the dimensions for N(0, I) only;
            ``mutual_information``, ``marginal_kl``, ``density_kl`` (as ``marginal_kl``, from the density of the cells
            of the fit), ``amortization_gap``, ``variational_gap``, ``generalization_gap``, each with ``_error``;
            ``information_bound``, ``information_cap``; ``spectrum_local``, ``spectrum_shared`` (latent); from the
            posterior-predictive draws ``genes`` (their names), ``gene_mean``, ``gene_variance``,
            ``gene_zero_fraction``, each with ``_drawn`` (genes), ``ranks`` (20), ``coverage``, ``library_coverage``;
            ``heads``, for each name ``log_likelihood``, ``difference`` and ``error``, with several measurements within
            their names; for codes or categories ``groups``: ``kind``, ``n_cells`` (groups), ``perplexity``,
            ``information``; with several measurements ``views``, for each ``log_likelihood``, ``rate_per_dimension``,
            ``added``, ``distance``, ``n_cells`` and what is said above of draws; with `condition_key` ``correction``:
            ``condition_key``, ``removed`` (batches x groups of similar cells: share of the squared differences between
            batches that was removed), ``condition_size`` and ``corrected_size`` (differences between conditions in
            counts and in corrected expression, in nats), ``chance`` (the largest difference in counts between shuffled
            conditions), ``kept``, ``backed``, ``tracked``, ``confounded`` and ``excess``. Other entries of
            ``uns["<key_added>"]`` are kept.

    Raises
    ------
    ValueError
        As for `embed`; if fewer than 2 cells have a count, or `compare_heads` is set and nothing is counts or 0/1; if
        `condition_key` is set and the model is not of counts or has no batches, or the column is the batch itself or
        has a single value (MissingKeyError if there is none).
        `adata` is then unchanged.

    Notes
    -----
    Active dimensions: mean KL above 0.05 nats, or a variance of the posterior mean above 0.01 (Burda et al. 2016).
    Effective dimension: exp of the entropy of the shares of the KL (Roy & Vetterli 2007). Mutual information:
    E[KL] = I_q(x; z) + KL(q(z) || p(z)) (Hoffman & Johnson 2016); the density of the cells of the fit (see
    `scvae.tl.fit_density`) takes the place of p(z) in ``density_kl``. Amortization gap: Cremer et al. 2018. Variational
    gap: importance-weighted bound (Burda et al. 2016) minus ELBO. Codes are finitely many, so all of this is exact for
    them: the information is the entropy of the codes in these cells, the amortization gap is what the best code of
    each cell gains, and the variational gap is log p(x) minus ELBO. What a dimension tells is its share of the variance
    between codes, and codes have no density. For categories, ``groups`` has I_q(x; y), and the nats of y are shared out
    in ``kl_per_dimension``. JᵀJ: derivative of each gene's mean along z, in units
    of its standard deviation. Several measurements: nats that the posterior by one alone is from the prior; that the
    posterior by all is from that without it (what it adds); and the root mean square distance of the means by one alone
    from those by all, relative to their spread over cells. All else is of the first measurement, but the
    draws of each, over the cells that have all. Calibration:
    randomised ranks among draws (Czado et al. 2009).

    Heads of several measurements: log-likelihoods are those of all measurements of a cell together, of which one has
    another head, over the held-out cells that have it. The gaussian head of counts is fitted to their CLR values,
    log(1 + x) minus its mean over the features of the cell, and judged by the probability of the interval of CLR values
    that rounds to each count. These probabilities of all counts add up to 1, so they compare with those of nb; as those
    are given the library size, these are given the mean of log(1 + x). Real values can have a gaussian head only, and
    their density compares with nothing: fit the counts from which they were made.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> scvae.tl.diagnose(adata, model).healthy
    True
    """
    check_model(model)
    keys = Keys(key_added)
    n_cells = check_positive_int(n_cells, "n_cells")
    seed = seed_of(rng)
    check_replaceable(adata.uns, keys)
    condition = None if condition_key is None else _condition(adata, model, condition_key)
    cells = read_cells(adata, model, layer)
    measured = examine(model, cells, n_cells=n_cells, beta=beta, seed=seed, condition=condition)
    heads = compare(model, cells, beta=beta, seed=seed, verbose=verbose) if compare_heads else ()
    shares = view_shares(model, cells, beta=beta, seed=seed)
    diagnosis = Diagnosis(
        findings=judge(model, measured),
        measured=measured,
        heads=heads,
        n_cells=len(cells),
        training=f"{model.outcome.epochs} epochs, best {model.outcome.best_epoch}; "
        f"β {model.outcome.beta_attained:g} attained; {model.outcome.reason}",
        views=shares,
    )
    write_made(adata, keys, model.digest, record={keys.diagnosis: storable(diagnosis, model)})
    return diagnosis


def _condition(adata: AnnData, model: FittedModel, condition_key: str) -> tuple[str, Int[np.ndarray, " cells"]]:
    """Name of the column and code of each cell."""
    if model.schema.kind != "counts" or model.schema.batch is None:
        raise ValueError(
            f"condition_key is {condition_key!r}, but the audit is of models of counts with batch_key; leave it out"
        )
    codes, names = groups_of(adata, condition_key)
    if condition_key == model.schema.batch.key or len(names) < 2:
        raise ValueError(
            f"condition_key is {condition_key!r}, which is the batch or has a single value; pass a column of conditions"
        )
    return condition_key, codes
