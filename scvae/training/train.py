"""The training loop. It reads from top to bottom: `train` is the complete loop, the other functions are its parts."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from contextlib import closing

import torch
from jaxtyping import Bool
from torch import Tensor

from ..common.distributed import ranks
from ..common.interrupt import Interrupt
from ..common.progress import Bar, progress_bar
from ..common.rng import torch_generators
from ..config import TrainingConfig
from ..data.batches import Batches, epoch_plan, split
from ..data.cells import Cells
from ..data.feeds import Feed, Resident, make_feed
from ..kernels.context import working_on
from ..model.blocks import BatchNorm, Dropout
from ..model.latent.discrete import Discrete
from ..model.optimizer import Adam
from ..model.vae import VAE
from .checkpoint import Progress, identity_of, resume, save_checkpoint
from .cuda_graph import CapturedStep
from .ddp import ParallelStep
from .evaluation import Evaluation, evaluate
from .fused_step import FusedStep, can_be_fused
from .recipe import Recipe
from .schedules import beta_at, one_cycle
from .settings import Settings
from .start import start_groups
from .step import Dials, EagerStep, Reading, failure, make_optimizer, read

logger = logging.getLogger(__name__)

STEP = 2  # random stream; depends on the seed only


def train(
    network: VAE,
    cells: Cells,
    settings: Settings,
    recipe: Recipe,
    *,
    verbose: bool,
    checkpoint: str | os.PathLike[str] | None = None,
    start: str | None = None,
    only: Mapping[str, Bool[Tensor, "..."]] | None = None,
) -> Progress:
    """Trains `network` in place and leaves it in evaluation mode with the weights to keep.

    Every random number is a function of (seed, purpose, epoch or step), so that a run resumed from a checkpoint
    continues as if it had not stopped. If there are several processes (see `scvae.common.distributed`), they train the
    network together and end with the same weights.

    Parameters
    ----------
    network
        A VAE with the weights to start from, on the device to train on.
    cells
        Training and validation cells together.
    settings
        Complete settings, which are compared with those of a checkpoint.
    recipe
        Epochs, batch size, learning rate and warm-up.
    verbose
        Whether to show a progress bar.
    checkpoint
        File to resume from if it exists, and to write after every `TrainingConfig.checkpoint_every` epochs.
    start
        Identifies the initial weights if they do not follow from the seed; it is compared with that of a checkpoint.
    only
        Names of the parameters to train, with masks of their entries; all others and the statistics of normalisation
        are unchanged. None trains everything.

    Returns
    -------
    Progress
        The state at the end, and why training ended.

    Warns
    -----
    UserWarning
        If Ctrl-C ended the training.

    Raises
    ------
    NonFiniteLossError
        If the loss or its gradient is not finite in several steps in a row.
    MemoryError
        If the device lacks memory for a step with a single cell. Before that, batches are halved: an epoch that ran out
        of memory is started again from the current weights. (Not with several processes: one may have memory left.)
    RankError
        If another process failed, died or hangs.
    ValueError
        If the checkpoint was written by another run.
    """
    config, seed, beta, device = settings.training_config, settings.seed, settings.final_beta, network.device
    identity = identity_of(network, cells, settings, start, with_data=checkpoint is not None)
    trained_on, held_out = split(len(cells), config.validation_fraction, seed)
    watched = held_out if network.is_amortized else held_out[:0]  # their q would take a gradient ascent in each epoch
    log_beta = None if network.betas is None else network.betas.spread(len(held_out))
    batch_size = recipe.batch_size
    interrupt = Interrupt()
    optimizer = make_optimizer(network, len(trained_on), only)
    feed = make_feed(cells, device, held=held_out)
    step = make_step(network, optimizer, feed, config, interrupt, part=only is not None)
    progress = resume(checkpoint, network, optimizer, identity)
    started = time.perf_counter() - progress.seconds

    bar = progress_bar(recipe.epochs, initial=progress.epoch, unit="epochs", verbose=verbose)
    if isinstance(step, FusedStep) and not step.is_compiled:
        bar.set_postfix_str("getting kernels, which are compiled once on a machine", refresh=True)
    with closing(bar), interrupt:
        while progress.epoch < recipe.epochs and not out_of_patience(progress, recipe, config):
            network.train(only is None)
            network.prior.anneal(progress.epoch / recipe.epochs)
            if network.prior.wants_start((progress.epoch + 1) / recipe.epochs):
                start_groups(network, feed, trained_on, seed=seed)
            plan = epoch_plan(trained_on, batch_size, seed=seed, epoch=progress.epoch, shuffle=feed.shuffle)
            dials = dials_of(progress.epoch, len(plan), beta, recipe, config)
            generators = torch_generators(len(plan), seed, STEP, progress.epoch, device=device)
            try:
                with working_on(device, tf32=True):
                    statistics = step.run(plan, dials, generators)
            except torch.OutOfMemoryError as error:
                batch_size = halved(plan, error)
                continue
            reading = read(statistics, progress.failures_in_a_row)
            progress.skipped_steps += reading.skipped
            progress.failures_in_a_row = reading.streak
            if reading.gave_up is not None:
                raise failure(network, cells, plan[reading.gave_up], progress.epoch + 1)

            evaluation = evaluate(network, feed, watched, log_beta, seed=seed)
            progress.epoch += 1
            progress.seconds = time.perf_counter() - started
            progress.record(_row(network, progress, reading, evaluation, dials[-1]))
            ranked = progress.epoch > recipe.warmup * recipe.epochs and network.prior.is_ready
            progress.keep_weights(network, evaluation.objective(beta, config), ranked=ranked)
            show(bar, progress)
            if checkpoint is not None and progress.epoch % config.checkpoint_every == 0:
                save_checkpoint(checkpoint, progress, network, optimizer, identity)
        progress.ended = "finished" if progress.epoch == recipe.epochs else "stopped early"
    if interrupt.stopped:
        progress.ended = "interrupted"
        interrupt.warn(f"training was interrupted after {progress.epoch} epochs; the best model so far is kept")
    progress.give_weights(network)
    if not network.prior.is_ready:  # it was interrupted before
        start_groups(network, feed, trained_on, seed=seed)
    network.eval()
    return progress


def make_step(
    network: VAE, optimizer: Adam, feed: Feed, config: TrainingConfig, interrupt: Interrupt, *, part: bool = False
) -> EagerStep | FusedStep | CapturedStep | ParallelStep:
    """The fastest way to run a step with this network and feed; `part` if only some parameters are trained.

    A log line says if it is not a CUDA graph, on such a device. Several processes do not use one, because torch
    synchronises them from the host.
    """
    if ranks().world > 1:
        if isinstance(network.prior, Discrete):
            raise ValueError(
                f"discrete latent variables are trained in one process, but there are {ranks().world}; start one, or "
                "leave NetworkConfig.latent at 'normal'"
            )
        if network.views:
            raise ValueError(
                f"several measurements of the cells are trained in one process, but there are {ranks().world}; start "
                "one, or leave `also` and `protein_key` out"
            )
        return ParallelStep(network, optimizer, feed, config, interrupt)
    if not network.is_amortized:
        return EagerStep(network, optimizer, feed, config)
    if isinstance(feed, Resident):
        if is_capturable(network):
            return CapturedStep(network, optimizer, feed, config)
        logger.warning(
            "dropout, batch normalisation, discrete latent variables and several measurements of the cells cannot be "
            "part of a CUDA graph, so steps run one by one"
        )
    if can_be_fused(network, config) and not part:
        return FusedStep(network, optimizer, feed, config)
    return EagerStep(network, optimizer, feed, config)


def is_capturable(network: VAE) -> bool:
    """Whether a step can be replayed on padded batches.

    Dropout draws from a generator that changes with the step, and so does the choice of cells that are left with one of
    their measurements; batch statistics would include the padding cells; discrete latent variables look at values on
    the host.
    """
    if isinstance(network.prior, Discrete) or network.views:
        return False
    return not any(isinstance(m, BatchNorm) or (isinstance(m, Dropout) and m.rate > 0.0) for m in network.modules())


def halved(plan: Batches, error: torch.OutOfMemoryError) -> int:
    """Half the size of the largest batch of the plan, which needed too much memory."""
    size = max(map(len, plan))
    if size == 1:
        raise MemoryError(
            "the device does not have enough memory to train on one cell at a time; model fewer genes, lower "
            "NetworkConfig.width, free memory used by other programs, or pass device='cpu'"
        ) from error
    logger.warning("out of memory with %d cells in a batch; training continues with %d", size, size // 2)
    return size // 2


def dials_of(epoch: int, n_steps: int, beta: float, recipe: Recipe, config: TrainingConfig) -> list[Dials]:
    """The dials at each step of an epoch; epochs are counted from 0."""
    first, n_all = epoch * n_steps, recipe.epochs * n_steps
    return [_dials_at(step, n_all, beta, recipe, config) for step in range(first, first + n_steps)]


def _dials_at(step: int, n_steps: int, beta: float, recipe: Recipe, config: TrainingConfig) -> Dials:
    done = (step + 1) / n_steps  # 1 at the last step, so that even a single step reaches β
    warmup = recipe.warmup
    return Dials(
        kl_weight=beta_at(done, beta=beta, warmup=warmup, cycles=config.warmup_cycles),
        capacity=None if config.capacity is None else beta_at(done, beta=config.capacity, warmup=warmup),
        learning_rate=one_cycle(step / n_steps, peak=recipe.learning_rate),
    )


def _row(network: VAE, progress: Progress, reading: Reading, evaluation: Evaluation, last: Dials) -> dict[str, float]:
    """The row of the history for the epoch that ended; the nats per label are those of held-out cells that have one."""
    labels = {} if network.classifier is None else {"validation_label_log_likelihood": evaluation.label_log_likelihood}
    return {
        "epoch": progress.epoch,
        "train_elbo": reading.log_likelihood - reading.kl,
        "train_log_likelihood": reading.log_likelihood,
        "train_kl": reading.kl,
        "validation_elbo": evaluation.log_likelihood - evaluation.kl,
        "validation_log_likelihood": evaluation.log_likelihood,
        "validation_kl": evaluation.kl,
        **labels,
        "beta": float(last.kl_weight),
        "learning_rate": float(last.learning_rate),
        "seconds": progress.seconds,
    }


def out_of_patience(progress: Progress, recipe: Recipe, config: TrainingConfig) -> bool:
    """Whether, since β was reached, the validation objective has not improved for `config.patience` of the run."""
    if config.patience is None or progress.best_objective == -math.inf:
        return False
    return progress.epoch - progress.best_epoch >= max(1.0, config.patience * recipe.epochs)


def show(bar: Bar, progress: Progress) -> None:
    """Advances the bar and shows the ELBOs of the latest epoch."""
    last = {name: values[-1] for name, values in progress.history.items()}
    bar.set_postfix_str(f"ELBO {last['train_elbo']:.1f}, held out {last['validation_elbo']:.1f}", refresh=False)
    bar.update()
