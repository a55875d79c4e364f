"""A penalty that keeps batch effects out of z: a cell should get the same embedding whatever its batch label."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.batches import Batch, ViewBatch
from ..kernels.block import Dense
from ..kernels.shared_batch import Shared, shared, total
from ..model.blocks import statistics_kept
from ..model.vae import VAE

ONE_PAIR_IN = 4  # is used in a step: with all pairs, steps took three times as long and batches mixed no better


def inconsistency(
    network: VAE, z: Float[Tensor, "cells latent"], batch: Batch, weight: Float[Tensor, " cells"]
) -> Float[Tensor, ""]:
    """How far the encoder moves a cell if only its conditions change: nats, weighted over cells.

    Neighbours in the batch exchange their conditions (batch and covariates). The decoder predicts the expected values
    at z under both sets of conditions, and the encoder embeds both predictions. Their distance is the KL between two
    posteriors of equal width, (difference of the means)^2 / (2 variance) summed over dimensions. Both are the same
    cell, so different cell types are not pulled together, as can happen when entire batches are aligned. After the
    "latent cycle-consistency" of Hrovatin et al. 2023 (bioRxiv 2023.11.03.565463), which compares z itself with its
    image under other conditions.

    Only the encoder's means get a gradient: the decoder or a wider posterior could remove the penalty without any gain.

    Parameters
    ----------
    z
        A draw of the latent of each cell.
    weight
        Factor of the penalty of each cell.
    """
    chosen, partner = pairs(len(batch), shared(), batch.library.device)
    double = twice(batch, chosen, *(column[partner] for column in everyones(batch)))
    with statistics_kept(network):  # of normalisation: they are for real cells only
        posterior = network.encode_expected(z[chosen].repeat(2, 1), double)
    n = len(chosen)
    moved = posterior.mean[:n] - posterior.mean[n:]
    variance = (0.5 * (posterior.log_variance[:n] + posterior.log_variance[n:])).exp().detach()
    return ONE_PAIR_IN * (weight[chosen] @ (moved.square() / (2.0 * variance)).sum(1))


def pairs(
    n_cells: int, share: Shared | None, device: torch.device
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """Which cells of this process are used, and the position of each one's partner in the complete batch.

    The pairs do not depend on how a batch is split, so that several processes take the same step as one.
    """
    part, n = (slice(0, n_cells), n_cells) if share is None else (share.part, share.n_cells)
    first = _every(2 * ONE_PAIR_IN, 0, part.start, min(part.stop, n - 1), device)
    second = _every(2 * ONE_PAIR_IN, 1, part.start, part.stop, device)
    return torch.cat([first, second]) - part.start, torch.cat([first + 1, second - 1])


def _every(step: int, remainder: int, start: int, stop: int, device: torch.device) -> Int[Tensor, " positions"]:
    """Positions in [start, stop) with this remainder, without a mask, which a CUDA graph cannot capture."""
    least = start + (remainder - start) % step
    return torch.arange(least, max(least, stop), step, device=device)


def everyones(batch: Batch) -> tuple[Int[Tensor, "all categoricals"], Float[Tensor, "all numerics"]]:
    """The conditions of all cells of the batch, collected from all processes."""
    share = shared()
    if share is None:
        return batch.codes, batch.numeric
    n_codes = batch.codes.shape[1]
    rows = batch.numeric.new_zeros(share.n_cells, n_codes + batch.numeric.shape[1])
    if share.counts:
        rows[share.part] = torch.cat([batch.codes.to(rows), batch.numeric], dim=1)
    rows = total(rows)
    return rows[:, :n_codes].round().long(), rows[:, n_codes:]


def twice(
    batch: Batch,
    chosen: Int[Tensor, " chosen"],
    codes: Int[Tensor, "chosen categoricals"],
    numeric: Float[Tensor, "chosen numerics"],
) -> Batch:
    """The chosen cells without their values, first with their own conditions, then with the given ones."""
    return replace(
        batch,
        x=Dense(batch.library.new_zeros(2 * len(chosen), 0)),
        library=batch.library[chosen].repeat(2),
        codes=torch.cat([batch.codes[chosen], codes]),
        numeric=torch.cat([batch.numeric[chosen], numeric]),
        log_beta=None if batch.log_beta is None else batch.log_beta[chosen].repeat(2),
        knots=None if batch.knots is None else batch.knots[chosen].repeat(2, 1),
        labels=None,
        present=None if batch.present is None else batch.present[chosen].repeat(2),
        views=tuple(_twice(view, chosen) for view in batch.views),
    )


def _twice(view: ViewBatch, chosen: Int[Tensor, " chosen"]) -> ViewBatch:
    x = Dense(view.library.new_zeros(2 * len(chosen), 0))
    return replace(view, x=x, library=view.library[chosen].repeat(2), present=view.present[chosen].repeat(2))
