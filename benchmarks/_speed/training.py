"""Training cells per second in the steady state, as a share of the speed of the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from .runner import Bench, Row, alternate

WIDTH, LATENT = 128, 10
FLOAT, INDEX = 4, 4  # bytes


@dataclass(frozen=True)
class Sizes:
    """Sizes of the training data.

    Parameters
    ----------
    cells
        Simulated cells for each number of genes: multiples of every batch size, so that both packages have the same
        batches.
    tile
        How often these cells are repeated, for devices on which an epoch would be too short.
    batch_sizes
        Cells per step; None is the default of each package.
    seconds
        Minimum duration of the extra epochs.
    """

    cells: dict[int, int]
    batch_sizes: tuple[int | None, ...]
    seconds: float
    tile: int = 1


CPU = Sizes({2_000: 12_288, 20_000: 3_072}, (128, 512, 1024), seconds=3.0)
CUDA = Sizes({2_000: 12_288, 20_000: 3_072}, (128, 512, 1024, None), seconds=3.0, tile=8)
QUICK = Sizes({500: 1_024, 2_000: 512}, (128,), seconds=0.3)


def measure(bench: Bench) -> Iterator[Row]:
    """One row for each shape and batch size: scvae, SCVI and the bare decoder products, in turn."""
    sizes = QUICK if bench.quick else CUDA if bench.device == "cuda" else CPU
    limits = None
    if bench.device == "cuda":
        limits = bench.call("products", "limits", {"least_seconds": sizes.seconds, "device": bench.device})
    for genes, cells in sizes.cells.items():
        data = bench.folder / f"training_{genes}.h5ad"
        size = {"path": data, "cells": cells, "genes": genes, "tile": sizes.tile}
        simulated = bench.call("ours", "simulate", size)
        for batch_size in sizes.batch_sizes:
            yield _row(bench, sizes, {"genes": genes, **simulated}, data, batch_size, limits)
        data.unlink()


def _row(bench: Bench, sizes: Sizes, shape: Row, data: object, batch_size: int | None, limits: Row | None) -> Row:
    shared = {"least_seconds": sizes.seconds, "device": bench.device}
    train = {"data": data, "batch_size": batch_size, **shared}
    measurements = {
        "scvae": bench.later("ours", "training", train),
        "scvi": bench.later("peer", "training", train),
    }
    if batch_size is not None:
        products = {"batch_size": batch_size, "genes": shape["genes"], "width": WIDTH, **shared}
        for name, fastest in (("products", False), ("fastest_products", True)):
            measurements[name] = bench.later("products", "decoder_products", {**products, "fastest": fastest})
    runs = alternate(bench.times(3), measurements)
    rate = {name: median(run["cells_per_second"] for run in of) for name, of in runs.items()}
    row = {**shape, "batch_size": batch_size, "median": rate, "scvae/scvi": rate["scvae"] / rate["scvi"], "runs": runs}
    for name in ("products", "fastest_products"):
        if name in rate:
            row[f"share_of_{name}"] = rate["scvae"] / rate[name]
    used = runs["scvae"][0]["batch_size"]
    if limits is not None and used is not None:
        bound = least_seconds_of_a_step(used, shape["genes"], shape["non_zeros"], limits)
        row |= {"limits": limits, "share_of_roofline": rate["scvae"] / (used / bound)}
    return row


def least_seconds_of_a_step(cells: int, genes: int, non_zeros: float, limits: Row) -> float:
    """The roofline (Williams et al. 2009): the longer of the times to move a step's bytes and to do its arithmetic.

    FLOPs: the encoder's first layer over the non-zeros, forward and for its gradient; the decoder's three products; and
    three products for each small layer between. Bytes: the values and indices of the non-zeros, twice; the logits,
    which are written once, read and overwritten by their gradient, and read by two products; every weight, read by the
    forward products; the decoder's weights, read again by the backward products; and Adam's pass (gradient written and
    read; weight and two moments read and written).

    Parameters
    ----------
    cells, genes, non_zeros
        Cells per step, genes, and share of non-zeros.
    limits
        `bytes_per_second` and `flops_per_second` of the device.
    """
    stored, small = cells * genes * non_zeros, 3 * LATENT * WIDTH
    flops = 2 * WIDTH * (2 * stored + 3 * cells * genes) + 3 * 2 * cells * small
    encoder, decoder = genes * WIDTH, genes * WIDTH + 2 * genes  # the head's bias and dispersion belong to each gene
    weights = encoder + decoder + small
    values = 5 * cells * genes + weights + decoder + 8 * weights
    moved = FLOAT * values + 2 * (FLOAT + INDEX) * stored
    return float(max(moved / limits["bytes_per_second"], flops / limits["flops_per_second"]))
