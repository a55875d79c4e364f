"""`fit`: takes an AnnData, returns a FittedModel, and writes the embedding once, at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np
import pandas as pd
import torch

from ..common.checks import (
    check_adata,
    check_choice,
    check_not_negative,
    check_positive,
    check_positive_int,
    check_settings,
    plain,
)
from ..common.devices import resolve_device
from ..common.distributed import process_group, ranks
from ..common.files import as_path, check_place, read_tensors
from ..common.keys import Keys
from ..common.progress import passing
from ..common.provenance import check_replaceable
from ..common.rng import SeedLike, seed_of
from ..config import N_LATENT, N_LATENT_WITH_CONDITIONS, NetworkConfig, TrainingConfig, View, ViewLikelihood
from ..data.cells import Cells
from ..data.covariates import covariate_names
from ..data.intake import DataKeys, read_fit
from ..data.joint import learn_views
from ..data.label_tree import Hierarchy
from ..data.labels import LABEL_WEIGHT
from ..data.on_disk import Joined
from ..data.schema import Schema
from ..data.sources import Paths, Source, opened
from ..data.write_back import write_back
from ..inference.expression_metric import with_metric
from ..inference.fitted import FittedModel, check_model
from ..inference.groups import group_slots
from ..inference.metric import MetricName
from ..inference.outcome import in_use
from ..kernels.context import computing
from ..likelihoods import KIND, NAMES, LikelihoodName
from .checkpoint import CHECKPOINT
from .measurements import check_readable, checked_views, kinds_of, of_modalities, slots_of
from .refit import check_agreement, continue_fit, prune_cells, usage
from .refusals import check_together
from .results import write_results
from .run import fit_cells
from .settings import Request, Settings

if TYPE_CHECKING:
    from anndata import AnnData
    from mudata import MuData

logger = logging.getLogger(__name__)

# n_latent="auto" starts with this many dimensions (with 30, the held-out ELBO of five data sets was lower) and removes
# unused ones at most this many times
WIDE_N_LATENT, AUTO_ROUNDS = 20, 3


class NotWrittenError(OSError):
    """A trained model whose results could not be written into the files of the cells.

    Parameters
    ----------
    message
        Why not.
    model
        The model; `scvae.tl.embed(path, error.model)` writes the embedding later.
    """

    def __init__(self, message: str, model: FittedModel) -> None:
        super().__init__(
            f"{message}. The model is not lost: it is the `model` of this error (in a notebook sys.last_value.model), "
            "and scvae.tl.embed(path, model) writes the embedding later"
        )
        self.model = model


@computing()
@process_group()
def fit(
    adata: AnnData | MuData | Paths | Source,
    *,
    layer: str | None = None,
    mask_var: str | Sequence[bool] | np.ndarray | pd.Series | None = None,
    batch_key: str | None = None,
    covariate_keys: str | Sequence[str] | None = (),
    size_factor_key: str | None = None,
    labels_key: str | None = None,
    unlabelled: str | None = None,
    label_weight: float = LABEL_WEIGHT,
    label_hierarchy: Hierarchy | None = None,
    also: Mapping[str, View] | None = None,
    protein_key: str | None = None,
    protein_likelihood: ViewLikelihood = "nb",
    modalities: Mapping[str, ViewLikelihood] | None = None,
    likelihood: LikelihoodName = "nb",
    n_latent: int | Literal["auto"] | None = None,
    beta: float | tuple[float, float] = 1.0,
    metric: MetricName = "expression",
    rng: SeedLike = None,
    device: str | torch.device = "auto",
    key_added: str = "scvae",
    network: NetworkConfig | None = None,
    training: TrainingConfig | None = None,
    init: FittedModel | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> FittedModel:
    """Trains a variational autoencoder on raw counts and writes the latent embedding to `adata`.

    The objective per cell is E_q[log p(x | z)] - β KL(q(z | x) || N(0, I)) (Kingma & Welling 2014; Higgins et al.
    2017), with counts x ~ NB(library size x proportions, inverse dispersion) by default (Lopez et al. 2018).

    Several processes can train one model together: call it under ``torchrun --nproc-per-node 2 script.py``, or inside
    an existing process group of `torch.distributed`. Each batch is split among the processes, with the weights, noise
    and statistics of the full batch, so that the result equals that of one process up to rounding (except for dropout
    masks and the order of cells on disk). All processes pass the same arguments and data and return the same model;
    rank 0 writes the files. If a process does not respond for ten minutes (or the number of seconds in the environment
    variable ``SCVAE_TIMEOUT``), the others stop with an error that names it.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in `X` or in `layer` (any sparse or dense matrix, in memory, backed or dask); or the
        path of an h5ad file or zarr store, a list of such paths, or a folder of them. Values on disk stay there if they
        need more than `training.memory`: they are checked in one pass and read again in every epoch. Several files are
        read as one data set with the genes and `obs` columns that all files have, and a column ``"file"`` with the file
        of each cell. (The command line passes a `Source` and writes the results itself.)
    layer
        Layer with the data; None for `X` (with `init`: None for the layer of the model, ``"X"`` for `X`). ``"raw"``
        stands for `adata.raw`, unless a layer has this name: the genes modelled are those of `adata` that `mask_var`
        marks, found in `raw` by their names. Other functions read ``"raw"`` alike; where cells come after the fit, all
        genes of `raw` are looked through for those of the model.
    mask_var
        Genes to model: a boolean column of `adata.var` or a boolean array. None means ``var["highly_variable"]`` if
        that column exists, else all genes. Genes without a count are left out. All genes stay in `adata`.
    batch_key
        Column of `adata.obs` with the batch of each cell. The decoder receives it, so z need not encode it. Batches and
        other categories are the same, here, in several files and in later cells, if their text is the same. A number is
        one category however it is stored (1, 1.0, ``"1"`` and ``"1.0"``; 0.1 in single and double precision). Other
        text must agree to the letter: ``"P1.0"`` is not ``"P1"``, and ``"007"`` is not ``"7"``. True and False next to
        0 and 1 are refused.
    covariate_keys
        Further columns of `adata.obs` to treat in the same way: categorical, or numeric (standardised).
    size_factor_key
        Column of `adata.obs` to use in place of the library size (the sum over the modelled genes). The scale of the
        factors does not matter: they are multiplied by a constant so that their sum over all cells of the fit equals
        that of the counts. The same constant is used for later cells, whose factors must be on the same scale.
    labels_key
        Column of `adata.obs` with known cell types, to which the fit then listens: the objective of a labelled cell
        gets the term `label_weight` log p(label | z), in nats, where p(label | z) is a logistic regression on the same
        draw of z as that of the counts. Labels may be missing in most cells, in whole batches, or wrong in part. Later
        cells are labelled by `scvae.tl.predict_labels`, for which the model keeps the classifier and where labelled
        cells lie. Labels in the fit pull cells of one label together: see "Labels" in the documentation for what that
        does to the embedding. With `init`, labels that the model does not know are added.
    unlabelled
        Value of that column in cells without a label, besides missing values.
    label_weight
        Weight of the label term, >= 0. With 1, the objective is that of counts and labels together, in which a label
        (a few nats) has little say beside thousands of counts. Take 1 instead of 10 if you do not trust the labels:
        with a fifth of them wrong, 0.945 of the cells of held-out batches of four sets were named rightly instead of
        0.900; with right labels, 0.947 instead of 0.952.
    label_hierarchy
        The tree of labels if some cells have coarser names than others: a dict or Series from child to parent, a nested
        dict, a table or names of columns of `adata.obs` from coarse to fine, or the path of an OBO file, as in
        `scvae.tl.predict_labels`. A label over others that occur is then their coarser name, with the sum of their
        probabilities; the model names cells by the finest labels alone. A coarser name is taken to mean no more than
        the finer ones that occur: leave it out of the tree if cells called so may be of a type without a label. With
        `init`, what the model knows of coarser names is kept.
    also
        Further measurements of the same cells, by name, to be embedded together with the values of `adata`, which are
        then called ``"rna"``: ``{"atac": scvae.View(obsm="peaks", likelihood="bernoulli")}`` (see `scvae.View`). The
        objective of a cell is the ELBO of all that it has; a cell may lack some. In each step, half of the cells
        are left with one measurement, so that the model also embeds cells that have no more. See "Two measurements of
        one cell" in the documentation.
    protein_key
        Slot of `adata.obsm` with proteins; short for ``also={"protein": scvae.View(obsm=protein_key,
        likelihood=protein_likelihood)}``.
    protein_likelihood
        Likelihood of these proteins: ``"nb"`` for counts, ``"nb_mixture"`` for counts with background (see
        `scvae.View`), ``"gaussian"`` for log or CLR values.
    modalities
        For a MuData: the likelihood of each modality to model, e.g. ``{"rna": "nb", "prot": "gaussian"}``. The first
        takes the place of `adata`: `layer`, `mask_var` and the like are its own, and it must be of counts or 0/1 data
        if some cells lack it. Columns of `obs` are those of the MuData and of this modality, and results are written to
        the MuData (loadings to the modality).
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for 0/1 data (accessibility), ``"gaussian"``
        for real values (log or CLR proteins, mass cytometry, z-scores).
    n_latent
        Number of latent dimensions; None takes 20, or 10 with batches, covariates or a range of β. Extra dimensions
        stay unused; the summary reports how many are active. ``"auto"`` starts with 20 and repeats the following up
        to three times: remove dimensions with a mean KL of at most 0.05 nats, and train the rest for a quarter as
        many epochs (see `scvae.tl.prune`). A checkpoint then holds the first training; if that is complete, only the
        later steps are repeated.
    beta
        Weight of the KL term, >= 0: below 1 favours fidelity, above 1 structure. It rises linearly to this value over
        the fraction `training.warmup` of the run. A pair (low, high) trains one model for every β between them (Bae et
        al. 2023), and `scvae.tl` and `scvae.tune_beta` accept any of these. The embedding written here, the active
        dimensions and the held-out ELBO are then those at β = 1 (if the range excludes 1, at its geometric mean), and
        the history has ELBOs averaged over the range.
    metric
        Coordinates of the embedding, in this model and wherever it embeds cells. ``"expression"``: dimensions are
        rotated and scaled by how much they change the expression that the decoder predicts, the most first, so that
        distances follow differences of expression. ``"latent"``: those of the network, in which the prior is N(0, I)
        and q(z | x) has no correlations, whatever a dimension does to expression. The network is the same for both, and
        so are all likelihoods and numbers of dimensions in use. See "The coordinates of the embedding" in the
        documentation. Take ``"latent"`` for methods that assume this prior or independent posteriors.
    rng
        Seed or numpy Generator; None draws a seed and records it. The global random state is not changed.
    device
        ``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. On a
        CUDA device, the data are kept in GPU memory if they fit and streamed otherwise, matrix products are rounded to
        TF32 in training (not in results), and batches are halved if memory runs out. ``"mps"`` is untested; if it lacks
        an operation (at present float64), the whole fit moves to the CPU.
    key_added
        Name of the slots written.
    network, training
        Settings of the networks and of the training; None for the defaults.
    init
        A fitted model to start from. All its weights are trained further on the given cells (old ones, new ones or
        both); new batches and other categories are added. Genes (by name), likelihood, covariates, latent dimensions, β
        and networks are those of the model; leave out the arguments for them or pass the same values. β is at its final
        value from the first step, the learning rate rises to 0.3 of that of a fit, and there are a quarter as many
        epochs, unless `training` sets them. History and outcome cover this training only.
    checkpoint
        File to write the state of the training to after each epoch. If it exists, its run is resumed and ends with
        exactly the result of an uninterrupted run.
    verbose
        Whether to show one progress bar. Nothing else is printed.

    Returns
    -------
    FittedModel
        The model, with the density of the cells in latent space (see `scvae.tl.fit_density`); it holds no reference to
        `adata`. Slots are written to `adata` at the end, all at once. For files
        they are added to the file of each cell and nothing else in it changes; a file gets all slots or none:

        ``obsm["X_<key_added>"]``
            float32 posterior means, cells x n_latent.
        ``obsm["X_<key_added>_var"]``
            float32 posterior variances, cells x n_latent. The covariances between dimensions, which are 0 for
            ``metric="latent"`` only, are not written.
        ``obsm["X_<key_added>_components"]``
            Only with ``NetworkConfig(prior="mixture")``: float32 shares of its components in each cell, which sum to 1,
            cells x components.
        ``obs["<key_added>_category"]``, ``obsm["X_<key_added>_categories"]``
            Only with ``NetworkConfig(latent="categorical")``: the most probable type of each cell, and the float32
            probabilities of all types, cells x types.
        ``obs["<key_added>_code"]``
            Only with ``NetworkConfig(latent="quantized")``: the code of each cell. The means above are then the
            encoder's output before it is rounded to the code, and the variances those within codes, the same for all
            cells.
        ``varm["<key_added>_loadings"]``
            Only with ``NetworkConfig(decoder="linear")``: float32 loadings, genes x n_latent, 0 for genes not modelled.
            They are the change per unit of z of the log proportion (nb, zinb, poisson; relative to its mean over the
            modelled genes), of the logit (bernoulli) or of the value in the units of the data (gaussian).
        ``uns["<key_added>"]``
            ``params``, ``history`` (one array per column, one entry per epoch; ELBOs in nats per cell at β = 1),
            ``beta_attained``, ``converged`` and ``reason``, ``kl_per_dimension`` (nats, over held-out cells), ``seed``,
            ``seconds``, ``versions``, ``threads`` (of the CPU); ``models``, the identity of the model behind each slot
            (a digest of its weights); ``checksums``, which tell whether the embedding was replaced since.

        Results of another model under the same `key_added` are removed: effects, draws, stability and its graph,
        transferred labels, denoised values, UMAPs at many β, diagnosis. Graphs and UMAPs that scanpy made from its
        embedding stay.

    Raises
    ------
    ValueError
        If the data do not suit the likelihood (transformed or negative values, NaN), a covariate has missing values, or
        an argument is out of range; MissingKeyError (also a KeyError) if a layer or column does not exist. `adata` is
        then unchanged.
    NonFiniteLossError
        If training diverges; the message names a cell.
    MemoryError
        If the device does not have enough memory to train on one cell at a time.
    PermissionError, BlockingIOError
        If results are to go into a file that cannot be written to, is open in this process, or is open for writing in
        another one; nothing is read.
    NotWrittenError
        If after training a file could not be changed, because others kept it open for a minute, the disk is full, or
        its cells are others by now. The file is unchanged, and the error has the model.
    RankError
        If another process failed, died or hangs; the message names its rank.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> adata.obsm["X_scvae"].shape
    (200, 5)
    """
    keys = Keys(key_added)
    if init is not None:
        check_model(init, "init")
    covariate_keys = () if covariate_keys is None else covariate_keys
    label_weight = check_not_negative(label_weight, "label_weight")
    if unlabelled is not None and labels_key is None:
        raise ValueError(
            f"unlabelled is {unlabelled!r}, but there is no labels_key; pass the column with the labels, too"
        )
    if label_hierarchy is not None and labels_key is None:
        raise ValueError("label_hierarchy is given, but there is no labels_key; pass the column with the labels, too")
    views = checked_views(also, protein_key, protein_likelihood)
    first, law, views = of_modalities(adata, modalities, likelihood, views, init)
    data = DataKeys(
        layer,
        mask_var,
        batch_key,
        covariate_keys,
        size_factor_key,
        labels_key,
        unlabelled,
        label_weight,
        label_hierarchy,
        views,
        first,
    )
    request = Request(law, n_latent, beta, metric, rng, device, network, training, init, checkpoint, verbose)
    read = layer if init is None else init.schema.layer_of(layer)
    further = slots_of(views, init)
    with opened(adata, read, to_change=True, keys=keys, first=first, slots=further) as source:
        check_readable(source, views)
        check_replaceable(source.adata.uns, keys)
        model, cells = read_and_train(source.adata, data, request, source.matrix)
        write_results(source.adata, model, cells, keys)
    ranks().gather(None)  # all processes have finished reading the files
    with ranks().all_or_none():
        if ranks().is_first:
            try:
                grouped = group_slots(model, keys)
                obsm = [*keys.embedding, *grouped["obsm"]]
                write_back(source, obsm=obsm, varm=[keys.loadings], uns=[keys.uns], obs=grouped["obs"])
            except OSError as error:
                raise NotWrittenError(str(error), model) from error
    return model


def read_and_train(
    adata: AnnData, data: DataKeys, request: Request, matrix: Joined | None = None
) -> tuple[FittedModel, Cells]:
    """The part of `fit` before anything is written; returns the model and the cells that were read."""
    check_adata(adata)
    network_config = check_settings(request.network, NetworkConfig, "network")
    training_config = check_settings(request.training, TrainingConfig, "training")
    if request.init is not None:
        check_agreement(request.init, data, request)
    device, checkpoint = resolve_device(request.device), request.checkpoint
    if checkpoint is not None:
        ranks().first(lambda: check_place(checkpoint))
    seed = shared_seed(request.rng, checkpoint)
    if request.init is not None:
        return continue_fit(adata, data, request, seed=seed, device=device, matrix=matrix)

    likelihood = request.likelihood
    check_choice(likelihood, NAMES, "likelihood")
    check_choice(request.metric, get_args(MetricName), "metric")
    network_config, training_config = network_config or NetworkConfig(), training_config or TrainingConfig()
    beta = _checked_beta(request.beta, network_config, training_config)
    conditions = data.batch_key is not None or bool(covariate_names(None, data.covariate_keys))
    n_latent = _checked_n_latent(request.n_latent, fewer=conditions or isinstance(beta, tuple))
    check_together(
        network_config,
        training_config,
        n_latent=n_latent,
        beta=beta,
        conditions=conditions,
        labels=data.labels_key is not None,
    )
    memory = 1e9 * training_config.memory
    schema, cells = read_fit(adata, data, kind=KIND[likelihood], matrix=matrix, memory=memory)
    schema, cells = learn_views(adata, data.views, kinds_of(data.views), schema, cells, name=data.name)
    _check_heads(network_config, likelihood, schema)
    settings = Settings(schema, likelihood, beta, seed, network_config, training_config)
    n_first = WIDE_N_LATENT if n_latent == "auto" else n_latent
    model, ended = fit_cells(cells, settings, n_first, device=device, checkpoint=checkpoint, verbose=request.verbose)
    for done in range(AUTO_ROUNDS if n_latent == "auto" else 0):
        if ended == "interrupted" or (done > 0 and in_use(usage(model, cells)).all()):
            break
        with passing():
            model, ended = prune_cells(model, cells, epochs=None, verbose=request.verbose)
    return (with_metric(model, cells) if request.metric == "expression" else model), cells


def _checked_n_latent(n_latent: object, *, fewer: bool) -> int | Literal["auto"]:
    if n_latent is None:
        return N_LATENT_WITH_CONDITIONS if fewer else N_LATENT
    if isinstance(n_latent, str):
        check_choice(n_latent, ("auto",), "n_latent, if not an integer,")
        return "auto"
    return check_positive_int(n_latent, "n_latent")


def _checked_beta(
    beta: object, network_config: NetworkConfig, training_config: TrainingConfig
) -> float | tuple[float, float]:
    """One β or a range (low, high); a range must suit the network and the training."""
    beta = plain(beta)
    if isinstance(beta, str) or not isinstance(beta, Sequence | np.ndarray):
        return check_not_negative(beta, "beta")
    if len(beta) != 2:
        raise ValueError(f"beta has {len(beta)} values; pass one β, or a pair (low, high) for every β between them")
    low, high = check_positive(beta[0], "the lower beta"), check_positive(beta[1], "the upper beta")
    if low >= high:
        raise ValueError(f"beta is ({low:g}, {high:g}); pass the smaller first, or one β")
    if network_config.decoder == "linear":
        raise ValueError("NetworkConfig.decoder='linear' has loadings for one β only; pass a single beta")
    given = [name for name in ("free_bits", "capacity") if getattr(training_config, name)]
    if given:
        raise ValueError(f"TrainingConfig.{given[0]} needs a single β; leave it out, or pass one β")
    return low, high


def _check_heads(network_config: NetworkConfig, likelihood: ViewLikelihood, schema: Schema) -> None:
    """Raises an error for settings that would have no effect."""
    if network_config.dispersion == "gene-batch" and (schema.batch is None or likelihood not in ("nb", "zinb")):
        raise ValueError(
            "NetworkConfig.dispersion='gene-batch' needs batch_key and likelihood='nb' or 'zinb'; "
            f"found batch_key={schema.batch.key if schema.batch else None!r} and likelihood={likelihood!r}."
        )


def shared_seed(rng: SeedLike, checkpoint: str | os.PathLike[str] | None) -> int:
    """The seed of `rng`; if None, that of the run to resume, or a new one. It is the same in all processes."""
    return ranks().first(lambda: _seed(rng, checkpoint)) if rng is None else seed_of(rng)


def _seed(rng: SeedLike, checkpoint: str | os.PathLike[str] | None) -> int:
    if rng is None and checkpoint is not None and as_path(checkpoint).exists():
        return int(read_tensors(checkpoint, CHECKPOINT)[1]["identity"]["seed"])
    return seed_of(rng)
