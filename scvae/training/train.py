"""The training loop. It reads from top to bottom: `train` is the whole of it, the rest are its named parts."""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ..common.distributed import ALONE, Ranks, ranks
from ..common.interrupt import Interrupt, Interrupted
from ..common.progress import Bar, progress_bar
from ..common.rng import torch_generator, torch_generators
from ..config import TrainingConfig
from ..data.batches import chunks, epoch_plan, split
from ..data.feeds import Feed, Plan, Resident, make_feed
from ..data.intake import Cells
from ..kernels.context import working_on
from ..model.blocks import BatchNorm, Dropout
from ..model.objective import evidence_terms, kl_penalty
from ..model.optimizer import Adam
from ..model.vae import VAE
from .checkpoint import Progress, resume, save_checkpoint
from .cuda_graph import CapturedStep
from .ddp import ParallelStep
from .recipe import Recipe, make_recipe
from .schedules import beta_at, one_cycle
from .step import Dials, EagerStep, Reading, failure, make_optimizer, read

logger = logging.getLogger(__name__)

STEP, VALIDATION = 2, 3  # streams of random numbers, all functions of the seed alone
EVALUATION_CHUNK = 512  # cells
CONVERGED_WITHIN = 1e-3  # relative change of the ELBO over the last tenth of the run
STANDS_STILL = 5e-3  # nats per real value, likewise


Ending = Literal["finished", "stopped early", "interrupted"]


class Evaluation(NamedTuple):
    """Means over cells, in nats: log-likelihood, KL, KL per latent dimension, and β KL in a model of many β."""

    log_likelihood: float
    kl: float
    kl_per_dimension: Float[Tensor, " latent"]
    kl_times_beta: float | None


def train(
    model: VAE,
    cells: Cells,
    *,
    beta: float,
    config: TrainingConfig,
    seed: int,
    device: torch.device,
    checkpoint: str | os.PathLike[str] | None,
    identity: dict[str, Any],
    verbose: bool,
    only: Mapping[str, Bool[Tensor, "..."]] | None = None,
) -> tuple[Progress, Ending]:
    """Trains `model` in place and leaves it in evaluation mode with the weights to keep.

    Where there are several processes (see `scvae.common.distributed`), all of them train it together, and end alike.

    Parameters
    ----------
    model
        A VAE with the weights to start from.
    cells
        Training and validation cells together.
    beta
        Final KL weight; of a model of many β, its default one, which stands for them in the history.
    config
        Settings of the training.
    seed
        Where all random numbers come from: each is a function of (seed, purpose, epoch or step), so that a run resumed
        from a checkpoint goes on as if it had not stopped.
    device
        Where the model is.
    checkpoint
        File to resume from if it exists, and to write after every `config.checkpoint_every` epochs.
    identity
        What a checkpoint must agree on with this run.
    verbose
        Whether to show a progress bar.
    only
        Names of the parameters to train and which of their entries; all others stay as they are, and so do statistics
        of normalisation. None trains everything.

    Returns
    -------
    tuple
        The progress made, and why training ended.

    Raises
    ------
    NonFiniteLossError
        If several steps in a row give a loss or a gradient that is not finite.
    MemoryError
        If the device has no memory for a step of a single cell. Before that, batches are halved: an epoch that ran out
        of memory starts again from the weights as they are. (Several processes do not do so: one may have memory left.)
    RankError
        If another process failed, died or hangs.
    ValueError
        If the checkpoint belongs to another run.
    """
    together = ranks()
    interrupt = Interrupt(is_held_back=together.world > 1)
    training, validation = split(len(cells), config.validation_fraction, seed)
    recipe = make_recipe(config, len(training))
    n_epochs, batch_size = recipe.epochs, recipe.batch_size
    log_beta = None if model.betas is None else model.betas.spread(len(validation))
    optimizer = make_optimizer(model, len(training), only)
    feed = make_feed(cells, device, held=validation)
    step = make_step(model, optimizer, feed, config, device, together, interrupt)
    progress = Progress()
    if checkpoint is not None and together.first(Path(checkpoint).exists):
        resume(checkpoint, progress, model, optimizer, identity, together)

    shown = verbose and together.is_first
    bar = progress_bar(n_epochs, initial=progress.epoch, unit="epochs", verbose=shown)
    started = time.perf_counter() - progress.seconds
    interrupt.hold_back()
    try:
        while progress.epoch < n_epochs and not out_of_patience(progress, n_epochs, config):
            model.train(only is None)
            order = {"seed": seed, "epoch": progress.epoch, "world": together.world}
            plan = epoch_plan(training, batch_size, **order, shuffle=feed.shuffle)
            first, n_steps = progress.epoch * len(plan), n_epochs * len(plan)
            dials = [dials_at(first + i, n_steps, beta, recipe, config) for i in range(len(plan))]
            generators = torch_generators(len(plan), seed, STEP, progress.epoch, device=device)
            try:
                with working_on(device, tf32=True), together.stepping():
                    statistics = step.run(plan, dials, generators)
            except torch.OutOfMemoryError as error:
                if together.world > 1:
                    raise MemoryError(f"{error}; lower TrainingConfig.batch_size, or take more devices") from error
                batch_size = halved(plan, error)
                continue
            reading = read(statistics, progress.failures_in_a_row)
            progress.skipped_steps += reading.skipped
            progress.failures_in_a_row = reading.streak
            if reading.gave_up is not None:
                raise failure(model, cells, plan[reading.gave_up], progress.epoch + 1)

            held_out = evaluate(model, feed, validation, log_beta, seed=seed, device=device, together=together)
            progress.epoch += 1
            progress.seconds = together.gather(time.perf_counter() - started)[0]
            record(progress, reading, held_out, dials[-1])
            ranked = progress.epoch > recipe.warmup * n_epochs
            keep_weights(progress, model, final_objective(held_out, beta, config), ranked=ranked)
            show(bar, progress)
            if checkpoint is not None and progress.epoch % config.checkpoint_every == 0:
                with together.all_or_none():
                    if together.is_first:
                        save_checkpoint(checkpoint, progress, model, optimizer, identity)
        ended: Ending = "finished" if progress.epoch == n_epochs else "stopped early"
    except KeyboardInterrupt as stop:
        if together.world > 1 and not isinstance(stop, Interrupted):
            raise  # the others know nothing of it
        ended = "interrupted"
    finally:
        interrupt.release()
        bar.close()
    model.load_state_dict(progress.best_weights or model.state_dict())
    together.take_from_first(list(model.state_dict().values()))
    model.eval()
    return progress, ended


def halved(plan: Plan, error: torch.OutOfMemoryError) -> int:
    """Half the size of the largest batch of the plan, for which there was not memory enough."""
    size = max(map(len, plan))
    if size == 1:
        raise MemoryError(
            "the device has not memory enough to train on one cell at a time; model fewer genes, lower "
            "NetworkConfig.width, free memory that other programs hold there, or pass device='cpu'"
        ) from error
    logger.warning("out of memory with %d cells in a batch; training goes on with %d", size, size // 2)
    return size // 2


def dials_at(step: int, n_steps: int, beta: float, recipe: Recipe, config: TrainingConfig) -> Dials:
    """Where the dials stand at one of the steps, counted from 0."""
    done = (step + 1) / n_steps  # 1 at the last step, so that even a single one attains β
    warmup = recipe.warmup
    return Dials(
        kl_weight=beta_at(done, beta=beta, warmup=warmup, cycles=config.warmup_cycles),
        capacity=None if config.capacity is None else beta_at(done, beta=config.capacity, warmup=warmup),
        learning_rate=one_cycle(step / n_steps, peak=recipe.learning_rate),
    )


@torch.no_grad()
def evaluate(
    model: VAE,
    feed: Feed,
    positions: Int[np.ndarray, " cells"],
    log_beta: Float[Tensor, " cells"] | None,
    *,
    seed: int,
    device: torch.device,
    together: Ranks = ALONE,
) -> Evaluation:
    """Mean log-likelihood and KL over the given cells, with the same single draw of the latent at every call.

    A model of many β is told which to take for each cell. Several processes take a share of the cells each, and all
    return the same.
    """
    model.eval()
    sums, kl = [torch.zeros((), device=device)], torch.zeros(model.n_latent, device=device)
    weighted = torch.zeros((), device=device)
    parts = chunks(len(positions), EVALUATION_CHUNK)
    mine = range(len(parts))[together.part(len(parts))]
    with working_on(device):
        for i, cells in zip(mine, feed.batches([positions[parts[i]] for i in mine]), strict=True):
            batch = cells
            if log_beta is not None and model.betas is not None:
                batch = cells.at(model.betas, log_beta[parts[i]].to(device))
            generator = torch_generator(seed, VALIDATION, i, device=device)
            noise = torch.randn(len(batch), model.n_latent, generator=generator, device=device)
            terms = evidence_terms(model, batch, noise, torch.zeros(len(batch), device=device))
            sums.append(terms.log_likelihood.sum())
            kl += terms.kl.sum(0)
            if batch.log_beta is not None:
                weighted += batch.log_beta.exp() @ terms.kl.sum(1)
    n = len(positions) or math.nan
    everyone = together.gather((sum(torch.stack(sums).tolist()), float(weighted), kl.cpu()))
    log_likelihood, kl_times_beta = (sum(column) for column in list(zip(*everyone, strict=True))[:2])
    kl = torch.stack([of_one for *_, of_one in everyone]).sum(0)
    return Evaluation(log_likelihood / n, float(kl.sum()) / n, kl / n, None if log_beta is None else kl_times_beta / n)


def record(progress: Progress, reading: Reading, held_out: Evaluation, dials: Dials) -> None:
    """Appends one epoch to the history, with the dials of its last step."""
    row = {
        "epoch": progress.epoch,
        "train_elbo": reading.log_likelihood - reading.kl,
        "train_log_likelihood": reading.log_likelihood,
        "train_kl": reading.kl,
        "validation_elbo": held_out.log_likelihood - held_out.kl,
        "validation_log_likelihood": held_out.log_likelihood,
        "validation_kl": held_out.kl,
        "beta": float(dials.kl_weight),
        "learning_rate": float(dials.learning_rate),
        "seconds": progress.seconds,
    }
    for name, value in row.items():
        progress.history.setdefault(name, []).append(value)


def final_objective(held_out: Evaluation, beta: float, config: TrainingConfig) -> float:
    """What training maximises from the end of the warm-up on, of the validation cells; NaN without any.

    Of a model of many β, each cell counts at its own.
    """
    if held_out.kl_times_beta is not None:
        return held_out.log_likelihood - held_out.kl_times_beta
    penalty = kl_penalty(held_out.kl_per_dimension, free_bits=config.free_bits, capacity=config.capacity)
    return held_out.log_likelihood - beta * float(penalty)


def keep_weights(progress: Progress, model: VAE, objective: float, *, ranked: bool) -> None:
    """Keeps the latest weights; once epochs are `ranked` (β was attained), those with the best validation objective."""
    if ranked and not (math.isnan(objective) and progress.best_objective == -math.inf):
        if not objective > progress.best_objective:  # nor if it is not a number
            return
        progress.best_objective = objective
    progress.best_epoch = progress.epoch
    for name, tensor in model.state_dict().items():
        if name in progress.best_weights:
            progress.best_weights[name].copy_(tensor)
        else:
            progress.best_weights[name] = tensor.detach().clone()


def out_of_patience(progress: Progress, n_epochs: int, config: TrainingConfig) -> bool:
    """Whether the validation objective, ranked since β was attained, stood still for `config.patience` of the run."""
    if config.patience is None or progress.best_objective == -math.inf:
        return False
    return progress.epoch - progress.best_epoch >= max(1.0, config.patience * n_epochs)


def show(bar: Bar, progress: Progress) -> None:
    """Moves the bar on, with the latest epoch in a few words."""
    last = {name: values[-1] for name, values in progress.history.items()}
    bar.set_postfix_str(f"ELBO {last['train_elbo']:.1f}, held out {last['validation_elbo']:.1f}", refresh=False)
    bar.update()


def verdict(progress: Progress, ended: str, *, n_real: int = 0) -> tuple[bool, str]:
    """Whether training converged, and the sentence that says why.

    Parameters
    ----------
    n_real
        Values per cell, if they are real: their ELBO can lie anywhere, at 0 too, so a move is not measured by it alone.
    """
    if ended == "interrupted":
        return False, f"interrupted after {progress.epoch} epochs; the best weights so far were kept"
    if ended == "stopped early":
        return True, f"the validation objective had not improved since epoch {progress.best_epoch}"
    name = "validation" if not math.isnan(progress.history["validation_elbo"][-1]) else "train"
    elbo = progress.history[f"{name}_elbo"]
    window = max(2, round(0.1 * len(elbo)))
    if len(elbo) <= window:
        return False, f"{len(elbo)} epochs are too few to tell"
    change = abs(elbo[-1] - elbo[-1 - window])
    said = f"the {name} ELBO moved by {change:.2f} nats ({change / abs(elbo[-1]):.2%}) over the last {window} epochs"
    return change <= max(CONVERGED_WITHIN * abs(elbo[-1]), STANDS_STILL * n_real), said


def make_step(
    model: VAE,
    optimizer: Adam,
    feed: Feed,
    config: TrainingConfig,
    device: torch.device,
    ranks: Ranks = ALONE,
    interrupt: Interrupt | None = None,
) -> EagerStep | CapturedStep | ParallelStep:
    """The fastest way to run a step with this network, feed and device; a log line where that is not a CUDA graph.

    Of several processes, which torch's engine keeps together from the host, each step runs by itself.
    """
    if ranks.world > 1:
        return ParallelStep(model, optimizer, feed, config, device, ranks, interrupt or Interrupt())
    if isinstance(feed, Resident):
        if is_capturable(model):
            return CapturedStep(model, optimizer, feed, config)
        logger.warning("dropout and batch normalisation cannot be part of a CUDA graph, so each step runs by itself")
    return EagerStep(model, optimizer, feed, config, device)


def is_capturable(model: VAE) -> bool:
    """Whether a step can be replayed and filled up.

    Dropout draws from a generator that changes with the step; statistics of a batch would count the cells that only
    fill it up.
    """
    return not any(isinstance(m, BatchNorm) or (isinstance(m, Dropout) and m.rate > 0.0) for m in model.modules())
