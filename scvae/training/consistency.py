"""What sets batches apart has no place in z: a cell must lie where it would lie under the conditions of another."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.batches import Batch
from ..kernels.block import Dense
from ..kernels.shared_batch import Shared, shared, total
from ..model.blocks import statistics_kept
from ..model.vae import VAE

ONE_PAIR_IN = 4  # looked at in a step: with all pairs, steps took three times as long and batches mixed no better


def inconsistency(
    network: VAE, z: Float[Tensor, "cells latent"], batch: Batch, weight: Float[Tensor, " cells"]
) -> Float[Tensor, ""]:
    """By how far the encoder moves a cell of which the conditions alone change: nats, weighted over cells.

    Neighbours in the batch exchange their conditions (batch and covariates). The decoder says what a cell at z is
    expected to show under either's, and the encoder where it puts these two; their distance counts as the KL between
    two posteriors of one width, (difference of the means)^2 / (2 variance) summed over dimensions. As both are the same
    cell, no two types of cells are drawn together, as they can be where whole batches are made alike. After the "latent
    cycle-consistency" of Hrovatin et al. 2023 (bioRxiv 2023.11.03.565463), which compares z itself with what becomes
    of it under other conditions.

    Only the encoder's means learn from it: the decoder, and a wider posterior, could end the penalty without any gain.

    Parameters
    ----------
    z
        A draw of the latent of each cell.
    weight
        What a nat of each cell costs.
    """
    chosen, partner = pairs(len(batch), shared(), batch.library.device)
    double = twice(batch, chosen, *(column[partner] for column in everyones(batch)))
    with statistics_kept(network):  # those of normalisation are for real cells
        posterior = network.encode_expected(z[chosen].repeat(2, 1), double)
    n = len(chosen)
    moved = posterior.mean[:n] - posterior.mean[n:]
    variance = (0.5 * (posterior.log_variance[:n] + posterior.log_variance[n:])).exp().detach()
    return ONE_PAIR_IN * (weight[chosen] @ (moved.square() / (2.0 * variance)).sum(1))


def pairs(
    n_cells: int, share: Shared | None, device: torch.device
) -> tuple[Int[Tensor, " chosen"], Int[Tensor, " chosen"]]:
    """Which cells at hand are looked at, and each one's neighbour, as its position in the whole batch.

    The same pairs wherever the cells of a batch lie: the step of several processes is that of one.
    """
    part, n = (slice(0, n_cells), n_cells) if share is None else (share.part, share.n_cells)
    first = _every(2 * ONE_PAIR_IN, 0, part.start, min(part.stop, n - 1), device)
    second = _every(2 * ONE_PAIR_IN, 1, part.start, part.stop, device)
    return torch.cat([first, second]) - part.start, torch.cat([first + 1, second - 1])


def _every(step: int, remainder: int, start: int, stop: int, device: torch.device) -> Int[Tensor, " positions"]:
    """Positions in [start, stop) that leave this remainder; no mask, which a CUDA graph could not hold."""
    least = start + (remainder - start) % step
    return torch.arange(least, max(least, stop), step, device=device)


def everyones(batch: Batch) -> tuple[Int[Tensor, "all categoricals"], Float[Tensor, "all numerics"]]:
    """The conditions of all cells of the batch, from wherever they are."""
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
    """Some cells without their values: as they are, and once more with other conditions."""
    return replace(
        batch,
        x=Dense(batch.library.new_zeros(2 * len(chosen), 0)),
        library=batch.library[chosen].repeat(2),
        codes=torch.cat([batch.codes[chosen], codes]),
        numeric=torch.cat([batch.numeric[chosen], numeric]),
        log_beta=None if batch.log_beta is None else batch.log_beta[chosen].repeat(2),
        knots=None if batch.knots is None else batch.knots[chosen].repeat(2, 1),
    )
