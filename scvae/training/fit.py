"""`fit`: AnnData in, FittedModel out, the embedding written back once at the end."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

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
)
from ..common.devices import resolve_device
from ..common.distributed import process_group, ranks
from ..common.files import check_place, read_tensors
from ..common.keys import Keys
from ..common.progress import passing
from ..common.rng import SeedLike, seed_of
from ..config import DEFAULT_N_LATENT, NetworkConfig, TrainingConfig
from ..data.intake import Cells, DataKeys, read_fit
from ..data.on_disk import Joined
from ..data.schema import Schema
from ..data.sources import Paths, Source, opened
from ..data.write_back import check_can_be_changed, write_back
from ..inference.fitted import FittedModel, check_model, in_use
from ..likelihoods import KIND, NAMES, LikelihoodName
from .checkpoint import CHECKPOINT
from .refit import check_agreement, continue_fit, prune_cells, usage
from .results import write_results
from .run import fit_cells
from .settings import Request, Settings

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

# where n_latent="auto" starts (from 30, the held-out ELBO of five sets was lower), and how often it drops the unused
WIDE_N_LATENT, AUTO_ROUNDS = 20, 3


@process_group()
def fit(
    adata: AnnData | Paths | Source,
    *,
    layer: str | None = None,
    mask_var: str | Sequence[bool] | np.ndarray | pd.Series | None = None,
    batch_key: str | None = None,
    covariate_keys: str | Sequence[str] = (),
    size_factor_key: str | None = None,
    likelihood: LikelihoodName = "nb",
    n_latent: int | Literal["auto"] = DEFAULT_N_LATENT,
    beta: float | tuple[float, float] = 1.0,
    rng: SeedLike = None,
    device: str | torch.device = "auto",
    key_added: str = "scvae",
    network: NetworkConfig | None = None,
    training: TrainingConfig | None = None,
    init: FittedModel | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> FittedModel:
    """Trains a variational autoencoder on raw counts and writes the latent embedding into `adata`.

    The objective per cell is E_q[log p(x | z)] - β KL(q(z | x) || N(0, I)) (Kingma & Welling 2014; Higgins et al.
    2017), with counts x ~ NB(library size x proportions, inverse dispersion) by default (Lopez et al. 2018).

    Several processes that call it together train one model: under ``torchrun --nproc-per-node 2 script.py``, or where a
    process group of `torch.distributed` exists already. Each batch is shared out among them, with the weights, noise
    and statistics of the whole one, so that the result is that of one process to rounding (but for dropout masks, and
    the order of cells on disk). All pass the same arguments and data, and return the same model; rank 0 writes the
    files. Where a process is silent for ten minutes (or ``SCVAE_TIMEOUT`` seconds, an environment variable) the others
    end with an error that names it.

    Parameters
    ----------
    adata
        Cells x genes, raw counts in `X` or in `layer` (any sparse or dense matrix, in memory, backed or of dask), or
        the path of an h5ad file or zarr store, a list of such paths, or a folder of them. Values on disk stay there if
        there are more of them than `training.memory` allows: they are checked in one pass, and read again in every
        epoch. Several files are one set of cells: of the genes that all have, of the columns of `obs` that all have,
        and ``"file"``, the file of each cell. (The command line passes a `Source`, and writes the results itself.)
    layer
        Layer that holds the data; None for `X` (with `init`: for the layer of the model, and ``"X"`` for `X`).
    mask_var
        Genes to model: a boolean column of `adata.var` or a boolean array. None means ``var["highly_variable"]`` where
        that column exists, and all genes otherwise. Genes without a count are left out. All genes stay in `adata`.
    batch_key
        Column of `adata.obs` with the batch of each cell: the decoder sees it, so the embedding need not.
    covariate_keys
        More columns of `adata.obs` to treat likewise: categorical, or numeric (standardised).
    size_factor_key
        Column of `adata.obs` to use in place of the library size (the sum over the modelled genes). Factors of any
        scale will do: they are multiplied so that over all cells of the fit they add up to the counts, and by the same
        number in later cells, whose factors must be comparable with these.
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for 0/1 data (accessibility), ``"gaussian"``
        for real values (log or CLR proteins, mass cytometry, z-scores).
    n_latent
        Latent dimensions. Those the data do not need stay unused; the summary says how many are active. ``"auto"``
        starts with 20, and up to three times drops those with a mean KL of at most 0.05 nats and trains the rest for a
        quarter as many epochs more (see `scvae.tl.prune`). A checkpoint then holds the first training: if it is whole,
        only the rest is done again.
    beta
        Weight of the KL term, >= 0: below 1 favours fidelity, above 1 structure. It is reached linearly over
        `training.warmup` of the run, whatever the number of cells. A pair (low, high) trains one model for every β
        between them (Bae et al. 2023): `scvae.tl` and `scvae.tune_beta` then take any of these; what is written here is
        of β = 1, or of the geometric middle of a range without it, and so are active dimensions and held-out ELBO. The
        history's ELBOs are then averages over the range.
    rng
        Seed or numpy Generator; None draws a seed, which is recorded. The global random state is not touched.
    device
        ``"auto"`` (a CUDA device if there is one, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``. On a
        CUDA device the cells lie there if they fit and are streamed otherwise, products of matrices are rounded to TF32
        in training (not in results), and batches are halved when memory runs out. ``"mps"`` is untested; where it lacks
        an operation, as it does float64 now, the whole fit moves to the CPU.
    key_added
        Name of the slots written.
    network, training
        Settings of the networks and of the training; None for the defaults.
    init
        A fitted model to start from: all its weights are trained on, on these cells (the old and more, or others), with
        batches and other categories that it does not know added. Genes (by name), likelihood, covariates, latent
        dimensions, β and networks are those of the model; the arguments for them are left out, or agree with it. β
        stays at its final value from the first step, the learning rate rises to 0.3 of that of a fit, and there are a
        quarter as many epochs, unless `training` sets them. History and outcome are those of this training alone.
    checkpoint
        File to write the state of the training to after each epoch. If it exists, the run it belongs to goes on from
        there, with the very result that it would have had without the stop.
    verbose
        Whether to show one progress bar. Nothing else is printed.

    Returns
    -------
    FittedModel
        The model; it holds no reference to `adata`. Slots written to `adata`, all at the end; if that is a file, into
        the file itself, where nothing else changes (each of several files has its own cells, and a file has all of this
        or none of it):

        ``obsm["X_<key_added>"]``
            float32 posterior means, cells x n_latent.
        ``obsm["X_<key_added>_var"]``
            float32 posterior variances, cells x n_latent.
        ``varm["<key_added>_loadings"]``
            with ``NetworkConfig(decoder="linear")`` only: float32 loadings, genes x n_latent, 0 for genes not modelled;
            per unit of z the change of the log proportion (nb, zinb, poisson; relative to its mean over the modelled
            genes), of the logit (bernoulli) or of the value itself in the units of the data (gaussian).
        ``uns["<key_added>"]``
            ``params``, ``history`` (one array per column, an entry an epoch; ELBOs are in nats per cell at β = 1),
            ``beta_attained``, ``converged`` and ``reason``, ``kl_per_dimension`` (nats, over held-out cells), ``seed``,
            ``seconds``, ``versions``.

    Raises
    ------
    ValueError
        If the data do not suit the likelihood (normalised or negative values, NaN), a covariate has missing values, or
        an argument is out of range; MissingKeyError (also a KeyError) if a layer or column does not exist. `adata` is
        then as it was.
    NonFiniteLossError
        If training diverges; the message names a cell.
    MemoryError
        If the device has no memory to train on even one cell at a time.
    RankError
        If another process failed, died or hangs; its rank is in the message.

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> adata.obsm["X_scvae"].shape
    (200, 5)
    """
    keys = Keys(key_added)
    data = DataKeys(
        layer=layer,
        mask_var=mask_var,
        batch_key=batch_key,
        covariate_keys=covariate_keys,
        size_factor_key=size_factor_key,
    )
    request = Request(
        likelihood=likelihood,
        n_latent=n_latent,
        beta=beta,
        rng=rng,
        device=device,
        network=network,
        training=training,
        init=init,
        checkpoint=checkpoint,
        verbose=verbose,
    )
    if init is not None:
        check_model(init, "init")
    with opened(adata, layer if init is None else init.schema.layer_of(layer)) as source:
        ranks().first(lambda: check_can_be_changed(source))
        model, cells = read_and_train(source.adata, data, request, source.matrix)
        write_results(source.adata, model, cells, keys)
    ranks().gather(None)  # nobody reads the files any more
    with ranks().all_or_none():
        if ranks().is_first:
            write_back(source, obsm=[keys.mean, keys.variance], varm=[keys.loadings], uns=[keys.uns])
    return model


def read_and_train(
    adata: AnnData, data: DataKeys, request: Request, matrix: Joined | None = None
) -> tuple[FittedModel, Cells]:
    """What `fit` does before it writes anything: the model, and the cells as it read them."""
    check_adata(adata)
    network_config = check_settings(request.network, NetworkConfig, "network")
    training_config = check_settings(request.training, TrainingConfig, "training")
    if request.init is not None:
        check_agreement(request.init, data, request)
    device, checkpoint, verbose = resolve_device(request.device), request.checkpoint, request.verbose
    if checkpoint is not None:
        ranks().first(lambda: check_place(checkpoint))
    seed = shared_seed(request.rng, checkpoint)
    if request.init is not None:
        return continue_fit(
            adata,
            request.init,
            data.layer,
            training_config,
            seed=seed,
            device=device,
            checkpoint=checkpoint,
            verbose=verbose,
            matrix=matrix,
        )

    likelihood, n_latent = request.likelihood, _checked_n_latent(request.n_latent)
    check_choice(likelihood, NAMES, "likelihood")
    network_config, training_config = network_config or NetworkConfig(), training_config or TrainingConfig()
    beta = _checked_beta(request.beta, network_config, training_config)
    memory = 1e9 * training_config.memory
    schema, cells = read_fit(adata, data, kind=KIND[likelihood], matrix=matrix, memory=memory)
    _check_heads(network_config, likelihood, schema)
    settings = Settings(
        schema=schema,
        likelihood=likelihood,
        beta=beta,
        seed=seed,
        network_config=network_config,
        training_config=training_config,
    )
    n_first = WIDE_N_LATENT if n_latent == "auto" else n_latent
    model, ended = fit_cells(cells, settings, n_first, device=device, checkpoint=checkpoint, verbose=verbose)
    for done in range(AUTO_ROUNDS if n_latent == "auto" else 0):
        if ended == "interrupted" or (done > 0 and in_use(usage(model, cells)).all()):
            break
        with passing():
            model, ended = prune_cells(model, cells, epochs=None, verbose=verbose)
    return model, cells


def _checked_n_latent(n_latent: object) -> int | Literal["auto"]:
    if isinstance(n_latent, str):
        check_choice(n_latent, ("auto",), "n_latent, where it is no integer,")
        return "auto"
    return check_positive_int(n_latent, "n_latent")


def _checked_beta(
    beta: object, network_config: NetworkConfig, training_config: TrainingConfig
) -> float | tuple[float, float]:
    """One β, or a range of them, of a network and a training that can have one."""
    if isinstance(beta, str) or not isinstance(beta, Sequence | np.ndarray):
        return check_not_negative(beta, "beta")
    if len(beta) != 2:
        raise ValueError(f"beta has {len(beta)} values; pass one β, or a pair (low, high) for every β between them")
    low, high = check_positive(beta[0], "the lower beta"), check_positive(beta[1], "the upper beta")
    if low >= high:
        raise ValueError(f"beta is ({low:g}, {high:g}); pass the smaller first, or one β")
    if network_config.decoder == "linear":
        raise ValueError("NetworkConfig.decoder='linear' has the loadings of one β; pass a single beta")
    given = [name for name in ("free_bits", "capacity") if getattr(training_config, name)]
    if given:
        raise ValueError(f"TrainingConfig.{given[0]} is for one β; leave it out, or pass a single beta")
    return low, high


def _check_heads(network_config: NetworkConfig, likelihood: LikelihoodName, schema: Schema) -> None:
    """Refuses settings that would have no effect."""
    if network_config.dispersion == "gene-batch" and (schema.batch is None or likelihood not in ("nb", "zinb")):
        raise ValueError(
            "NetworkConfig.dispersion='gene-batch' needs batch_key and likelihood='nb' or 'zinb'; "
            f"found batch_key={schema.batch.key if schema.batch else None!r} and likelihood={likelihood!r}."
        )


def shared_seed(rng: SeedLike, checkpoint: str | os.PathLike[str] | None) -> int:
    """The seed asked for; where none is, that of the run to resume, or fresh entropy, the same in all processes."""
    return ranks().first(lambda: _seed(rng, checkpoint)) if rng is None else seed_of(rng)


def _seed(rng: SeedLike, checkpoint: str | os.PathLike[str] | None) -> int:
    if rng is None and checkpoint is not None and Path(checkpoint).exists():
        return int(read_tensors(checkpoint, CHECKPOINT)[1]["identity"]["seed"])
    return seed_of(rng)
