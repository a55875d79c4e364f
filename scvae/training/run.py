"""From checked cells to a FittedModel: the training of a new model, and the record of any training."""

from __future__ import annotations

import logging
import math
import os
import platform
from dataclasses import replace
from importlib.metadata import version

import pandas as pd
import torch

from .._version import __version__
from ..common.distributed import ranks
from ..data.batches import split
from ..data.cells import Cells
from ..data.feeds import single_pass
from ..data.libraries import LibrarySizes
from ..data.schema import Schema
from ..inference.calibration import coverages
from ..inference.cloud import density_of_fit
from ..inference.fitted import FittedModel
from ..inference.label_prediction import known_labels
from ..inference.outcome import Outcome
from ..inference.trained import range_of
from ..kernels.threads import of_call
from ..model.per_cell import PerCell
from ..model.vae import VAE, make_model
from .checkpoint import Ending, Progress
from .evaluation import Evaluation, evaluate
from .priors import with_components
from .settings import Settings
from .start import start_heads
from .train import train

logger = logging.getLogger(__name__)

CONVERGED_WITHIN = 1e-3  # relative change of the ELBO over the last tenth of the run
STANDS_STILL = 5e-3  # the same for real values, in nats per value
OVERFIT_FALL = 0.01  # relative fall of the held-out objective from which a fit is over-fitted


def fit_cells(
    cells: Cells,
    settings: Settings,
    n_latent: int,
    *,
    device: torch.device,
    checkpoint: str | os.PathLike[str] | None,
    verbose: bool,
) -> tuple[FittedModel, Ending]:
    """Trains a new model; also returns why training ended. If mps lacks an operation, it is trained on the CPU."""
    trained_on, _ = split(len(cells), settings.training_config.validation_fraction, settings.seed)
    recipe = settings.recipe(len(trained_on))
    network_config = with_components(settings.network_config, len(trained_on))
    settings = replace(settings.following(recipe), network_config=network_config)
    network = make_model(
        settings.schema,
        settings.likelihood,
        n_latent,
        settings.network_config,
        settings.seed,
        range_of(settings.beta),
        settings.training_config.inference,
    )
    if isinstance(network.encoder, PerCell):
        network.encoder.open(len(cells), settings.final_beta)
    start_heads(network, cells, trained_on)
    try:
        progress = train(network.to(device), cells, settings, recipe, checkpoint=checkpoint, verbose=verbose)
    except (NotImplementedError, TypeError) as error:
        if device.type != "mps" or not (isinstance(error, NotImplementedError) or "MPS" in str(error)):
            raise
        logger.warning("%s lacks an operation (%s); the whole fit moves to the CPU", device, error)
        cpu = torch.device("cpu")
        return fit_cells(cells, settings, n_latent, device=cpu, checkpoint=checkpoint, verbose=verbose)
    if isinstance(network.encoder, PerCell):
        network.encoder.close()
    return completed(fitted_model(network, cells, settings, progress), cells), progress.ended


def fitted_model(network: VAE, cells: Cells, settings: Settings, progress: Progress) -> FittedModel:
    """The trained network with the record of its training."""
    schema = settings.schema
    n_batches = len(schema.batch.categories) if schema.batch else 1

    def libraries(of_view: Cells) -> LibrarySizes:
        here = of_view.having[0]
        return LibrarySizes.of(of_view.library[here], of_view.group[here], n_batches)

    packages = {name: version(name) for name in ("torch", "anndata", "numpy", "scipy", "numba")}
    return FittedModel(
        network=network,
        schema=schema,
        likelihood=settings.likelihood,
        n_latent=network.n_latent,
        beta=settings.beta,
        network_config=settings.network_config,
        training_config=settings.training_config,
        outcome=_outcome(network, cells, settings, progress),
        history=pd.DataFrame(progress.history),
        seed=settings.seed,
        versions={"scvae": __version__, "python": platform.python_version(), **packages},
        trained_on=cells.fingerprint(),
        libraries=None if schema.kind == "real" else libraries(cells),
        threads=of_call(),
        view_libraries=tuple(libraries(cells.of_view(view)) for view in cells.views),
    )


def completed(model: FittedModel, cells: Cells) -> FittedModel:
    """The model with the density and the labels of the cells of its fit, and how often its intervals hold in them.

    Several processes get those of the first.
    """
    _, held_out = split(len(cells), model.training_config.validation_fraction, model.seed)
    density, labels, found = ranks().first(
        lambda: (density_of_fit(model, cells), known_labels(model, cells), coverages(model, cells, held_out))
    )
    return replace(model, density=density, labels=labels, coverages=found)


def _outcome(network: VAE, cells: Cells, settings: Settings, progress: Progress) -> Outcome:
    result = evaluate_held_out(network, cells, settings, beta=settings.final_beta)
    converged, reason = convergence(progress, settings.schema)
    _, held_out = split(len(cells), settings.training_config.validation_fraction, settings.seed)
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


def evaluate_held_out(network: VAE, cells: Cells, settings: Settings, *, beta: float) -> Evaluation:
    """Means over the held-out cells, or over the training cells if none were held out."""
    trained_on, held_out = split(len(cells), settings.training_config.validation_fraction, settings.seed)
    judged = held_out if len(held_out) else trained_on
    log_beta = None if network.betas is None else torch.full((len(judged),), math.log(beta))
    return evaluate(network, single_pass(cells, network.device), judged, log_beta, seed=settings.seed)


def convergence(progress: Progress, schema: Schema) -> tuple[bool, str]:
    """Whether training converged, and a sentence with the reason.

    The ELBO of real values can be close to 0, so its change is also compared with the number of values. A slight
    fall of the held-out ELBO, while that of the training cells rises, also says that more epochs would gain nothing.
    """
    if progress.ended == "interrupted":
        return False, f"interrupted after {progress.epoch} epochs; the best weights so far were kept"
    if progress.ended == "stopped early":
        return True, f"the validation objective had not improved since epoch {progress.best_epoch}"
    name = "validation" if not math.isnan(progress.history["validation_elbo"][-1]) else "train"
    elbo = progress.history[f"{name}_elbo"]
    window = max(2, round(0.1 * len(elbo)))
    if len(elbo) <= window:
        return False, f"{len(elbo)} epochs are too few to tell"
    rises = [ended[-1] - ended[-1 - window] for ended in (elbo, progress.history["train_elbo"])]
    change = abs(rises[0])
    within = OVERFIT_FALL if rises[0] < 0 < rises[1] else CONVERGED_WITHIN
    said = f"the {name} ELBO moved by {change:.2f} nats ({change / abs(elbo[-1]):.2%}) over the last {window} epochs"
    n_real = len(schema.genes) if schema.kind == "real" else 0
    return change <= max(within * abs(elbo[-1]), STANDS_STILL * n_real), said
