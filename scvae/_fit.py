"""`fit`: AnnData in, FittedModel out, the embedding written back once at the end."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ._checks import check_adata, check_choice, check_not_negative, check_positive_int
from ._devices import resolve_device
from ._files import check_place, read_tensors
from ._keys import Keys
from ._rng import SeedLike, numpy_generator, seed_of
from ._slots import write
from ._version import __version__
from .checkpoint import CHECKPOINT, Progress
from .config import NetworkConfig, TrainingConfig, to_json
from .data.batches import chunks, n_aside, split
from .data.feeds import single_pass
from .data.intake import Cells, read_fit
from .data.schema import Schema
from .fitted import FittedModel, Outcome
from .inference import posterior_moments
from .kernels.csr import CSR
from .likelihoods import KIND, NAMES, LikelihoodName
from .model import VAE, make_model
from .recipe import Recipe, make_recipe
from .train import EVALUATION_CHUNK, SPLIT, evaluate, train, verdict

if TYPE_CHECKING:
    from anndata import AnnData

logger = logging.getLogger(__name__)

DEFAULT_N_LATENT = 10


def fit(
    adata: AnnData,
    *,
    layer: str | None = None,
    mask_var: str | Sequence[bool] | np.ndarray | pd.Series | None = None,
    batch_key: str | None = None,
    covariate_keys: str | Sequence[str] = (),
    size_factor_key: str | None = None,
    likelihood: LikelihoodName = "nb",
    n_latent: int = DEFAULT_N_LATENT,
    beta: float = 1.0,
    rng: SeedLike = None,
    device: str | torch.device = "auto",
    key_added: str = "scvae",
    network: NetworkConfig | None = None,
    training: TrainingConfig | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    verbose: bool = True,
) -> FittedModel:
    """Trains a variational autoencoder on raw counts and writes the latent embedding into `adata`.

    The objective per cell is E_q[log p(x | z)] - β KL(q(z | x) || N(0, I)) (Kingma & Welling 2014; Higgins et al.
    2017), with counts x ~ NB(library size x proportions, inverse dispersion) by default (Lopez et al. 2018).

    Parameters
    ----------
    adata
        Cells x genes, raw counts in `X` or in `layer` (any sparse or dense matrix, in memory or backed).
    layer
        Layer that holds the data; None for `X`.
    mask_var
        Genes to model: a boolean column of `adata.var` or a boolean array. None means ``var["highly_variable"]`` where
        that column exists, and all genes otherwise. Genes without a count are left out. All genes stay in `adata`.
    batch_key
        Column of `adata.obs` with the batch of each cell: the decoder sees it, so the embedding need not.
    covariate_keys
        More columns of `adata.obs` to treat likewise: categorical, or numeric (standardised).
    size_factor_key
        Column of `adata.obs` to use in place of the library size (the sum over the modelled genes).
    likelihood
        ``"nb"``, ``"zinb"`` or ``"poisson"`` for counts, ``"bernoulli"`` for 0/1 data (accessibility), ``"gaussian"``
        for real values (log or CLR proteins, mass cytometry, z-scores).
    n_latent
        Latent dimensions. Those the data do not need stay unused; the summary says how many are active.
    beta
        Weight of the KL term, >= 0: below 1 favours fidelity, above 1 structure. It is reached linearly over
        `training.warmup` of the run, whatever the number of cells.
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
    checkpoint
        File to write the state of the training to after each epoch. If it exists, the run it belongs to goes on from
        there, with the very result that it would have had without the stop.
    verbose
        Whether to show one progress bar. Nothing else is printed.

    Returns
    -------
    FittedModel
        The model; it holds no reference to `adata`. Slots written to `adata`, all at the end:

        ``obsm["X_<key_added>"]``
            float32 posterior means, cells x n_latent.
        ``obsm["X_<key_added>_var"]``
            float32 posterior variances, cells x n_latent.
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

    Examples
    --------
    >>> import scvae
    >>> adata = scvae.datasets.simulate(n_cells=200, n_genes=100, rng=0)
    >>> model = scvae.fit(adata, n_latent=5, rng=0, verbose=False)
    >>> adata.obsm["X_scvae"].shape
    (200, 5)
    """
    keys = Keys(key_added)
    model, cells = fit_cells(
        adata,
        layer=layer,
        mask_var=mask_var,
        batch_key=batch_key,
        covariate_keys=covariate_keys,
        size_factor_key=size_factor_key,
        likelihood=likelihood,
        n_latent=n_latent,
        beta=beta,
        rng=rng,
        device=device,
        network=network,
        training=training,
        checkpoint=checkpoint,
        verbose=verbose,
    )
    write_fit(adata, keys, model, *posterior_moments(model, cells))
    return model


def fit_cells(
    adata: AnnData,
    *,
    layer: str | None,
    mask_var: str | Sequence[bool] | np.ndarray | pd.Series | None,
    batch_key: str | None,
    covariate_keys: str | Sequence[str],
    size_factor_key: str | None,
    likelihood: LikelihoodName,
    n_latent: int,
    beta: float,
    rng: SeedLike,
    device: str | torch.device,
    network: NetworkConfig | None,
    training: TrainingConfig | None,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
) -> tuple[FittedModel, Cells]:
    """What `fit` does, with the same arguments, before it writes anything: the model, and the cells as it read them."""
    check_adata(adata)
    check_choice(likelihood, NAMES, "likelihood")
    n_latent = check_positive_int(n_latent, "n_latent")
    beta = check_not_negative(beta, "beta")
    network, training = network or NetworkConfig(), training or TrainingConfig()
    target = resolve_device(device)
    if checkpoint is not None:
        check_place(checkpoint)
    seed = _seed(rng, checkpoint)
    schema, cells = read_fit(
        adata,
        layer=layer,
        mask_var=mask_var,
        batch_key=batch_key,
        covariate_keys=covariate_keys,
        size_factor_key=size_factor_key,
        kind=KIND[likelihood],
    )
    _check_heads(network, likelihood, schema)

    what, how = (cells, schema, likelihood, n_latent, beta, seed), (network, training, checkpoint, verbose)
    try:
        model = train_on(*what, target, *how)
    except (NotImplementedError, TypeError) as error:
        if target.type != "mps":
            raise
        logger.warning("%s lacks an operation (%s); the whole fit moves to the CPU", target, error)
        model = train_on(*what, torch.device("cpu"), *how)
    return model, cells


def write_fit(
    adata: AnnData,
    keys: Keys,
    model: FittedModel,
    mean: Float[np.ndarray, "cells latent"],
    variance: Float[np.ndarray, "cells latent"],
    **more: Any,
) -> None:
    """Writes an embedding and the record of its fit, with `more` in the record."""
    write(adata, obsm={keys.mean: mean, keys.variance: variance}, uns={keys.uns: _record(model) | more})


def train_on(
    cells: Cells,
    schema: Schema,
    likelihood: LikelihoodName,
    n_latent: int,
    beta: float,
    seed: int,
    device: torch.device,
    network: NetworkConfig,
    training: TrainingConfig,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
) -> FittedModel:
    """From checked cells to a trained model."""
    vae = make_model(schema, likelihood, n_latent, network, seed).to(device)
    identity = {
        "likelihood": likelihood,
        "n_latent": n_latent,
        "beta": beta,
        "seed": seed,
        "network": to_json(network),
        "training": to_json(training),
        "data": _fingerprint(schema, cells) if checkpoint is not None else None,
    }
    progress, ended = train(
        vae,
        cells,
        beta=beta,
        config=training,
        seed=seed,
        device=device,
        checkpoint=checkpoint,
        identity=identity,
        verbose=verbose,
    )
    if ended == "interrupted":
        warnings.warn(
            f"training was interrupted after {progress.epoch} epochs; the best model so far is kept", stacklevel=3
        )
    return FittedModel(
        network=vae,
        schema=schema,
        likelihood=likelihood,
        n_latent=n_latent,
        beta=beta,
        network_config=network,
        training_config=replace(training, **_recipe(training, len(cells))._asdict()),
        outcome=_outcome(vae, cells, progress, ended, training, seed, device),
        history=pd.DataFrame(progress.history),
        seed=seed,
        versions=_versions(),
        trained_on=cells.fingerprint(),
    )


def _recipe(training: TrainingConfig, n_cells: int) -> Recipe:
    """What was left open, as `train` chose it."""
    return make_recipe(training, n_cells - n_aside(n_cells, training.validation_fraction))


def _seed(rng: SeedLike, checkpoint: str | os.PathLike[str] | None) -> int:
    """The seed asked for; where none is, that of the run to resume, or fresh entropy."""
    if rng is None and checkpoint is not None and Path(checkpoint).exists():
        return int(read_tensors(checkpoint, CHECKPOINT)[1]["identity"]["seed"])
    return seed_of(rng)


def _check_heads(network: NetworkConfig, likelihood: LikelihoodName, schema: Schema) -> None:
    """Refuses settings that would have no effect."""
    if network.dispersion == "gene-batch" and (schema.batch is None or likelihood not in ("nb", "zinb")):
        raise ValueError(
            "NetworkConfig.dispersion='gene-batch' needs batch_key and likelihood='nb' or 'zinb'; "
            f"found batch_key={schema.batch.key if schema.batch else None!r} and likelihood={likelihood!r}."
        )


def _fingerprint(schema: Schema, cells: Cells) -> str:
    """A digest of what the model is trained on, so that a checkpoint is not resumed with other data."""
    digest = hashlib.blake2b(json.dumps(schema.to_json()).encode(), digest_size=16)
    for array in (cells.library, cells.codes, cells.numeric, np.array(cells.names.astype(str), dtype=str)):
        digest.update(np.ascontiguousarray(array).tobytes())
    for part in chunks(len(cells), EVALUATION_CHUNK):
        x = cells.rows.take(part)
        for tensor in (x.indptr, x.indices, x.values) if isinstance(x, CSR) else (x,):
            digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


def _outcome(
    vae: VAE, cells: Cells, progress: Progress, ended: str, config: TrainingConfig, seed: int, device: torch.device
) -> Outcome:
    train_cells, held_out = split(len(cells), config.validation_fraction, numpy_generator(seed, SPLIT))
    judged = held_out if len(held_out) else train_cells
    result = evaluate(vae, single_pass(cells, device), judged, seed=seed, device=device)
    converged, reason = verdict(progress, ended)
    return Outcome(
        converged=converged,
        reason=reason,
        beta_attained=progress.history["beta"][-1] if progress.epoch else 0.0,
        best_epoch=progress.best_epoch,
        epochs=progress.epoch,
        seconds=progress.seconds,
        skipped_steps=progress.skipped_steps,
        kl_per_dimension=tuple(result.kl_per_dimension.tolist()),
        held_out_elbo=result.log_likelihood - result.kl if len(held_out) else float("nan"),
    )


def _versions() -> dict[str, str]:
    libraries = {name: version(name) for name in ("torch", "anndata", "numpy", "scipy", "numba")}
    return {"scvae": __version__, "python": platform.python_version(), **libraries}


def _record(model: FittedModel) -> dict[str, Any]:
    """uns[key]: only types that h5ad and zarr files can hold, so None becomes "none" and tuples arrays."""
    schema, outcome = model.schema, model.outcome
    covariates = [c.key for c in schema.categorical] + [c.key for c in schema.numeric]
    params: dict[str, Any] = {
        "likelihood": model.likelihood,
        "n_latent": model.n_latent,
        "beta": model.beta,
        "layer": schema.layer,
        "batch_key": schema.batch.key if schema.batch else None,
        "covariate_keys": np.array(covariates, dtype=str),
        "size_factor_key": schema.size_factor_key,
        "n_genes": len(schema.genes),
        "network": to_json(model.network_config),
        "training": to_json(model.training_config),
    }
    return {
        "params": _storable(params),
        "history": {name: column.to_numpy(copy=True) for name, column in model.history.items()},
        "beta_attained": outcome.beta_attained,
        "converged": outcome.converged,
        "reason": outcome.reason,
        "best_epoch": outcome.best_epoch,
        "held_out_elbo": outcome.held_out_elbo,
        "kl_per_dimension": np.array(outcome.kl_per_dimension),
        "active_dimensions": outcome.active_dimensions,
        "skipped_steps": outcome.skipped_steps,
        "seed": model.seed,
        "seconds": outcome.seconds,
        "versions": dict(model.versions),
    }


def _storable(values: dict[str, Any]) -> dict[str, Any]:
    plain = {name: _storable(value) if isinstance(value, dict) else value for name, value in values.items()}
    return {name: "none" if value is None else value for name, value in plain.items()}
