"""Training steps on the CPU in one compiled kernel: forwards, backwards and Adam, with no call of torch between.

A step has three phases; several threads share the pieces of each. (1) For a block of cells, everything up to the
gradients of what belongs to cells: encoder, draw, decoder, head and back. (2) For a block of genes, the gradients of
the weights of these genes, from all cells. (3) For a block of genes, Adam. A phase begins when every piece of the one
before is done, whoever did it: see `scvae.kernels.team`. `scvae.training.step.update` does the same with torch.
"""

import math

import numpy as np
from numba import njit
from numba.extending import overload

from .cell_phase import END, cells_of_step, n_chosen, rows_of_buffer, sections_of_room
from .cpu import fill_count_tables
from .cpu_sparse import add_columns
from .layers import ONE, ZERO, adam, add, add_rows, clear
from .native import INNER, fetch, fetch_add, matrix, multiply, vector, wait_for
from .records import (
    BIAS,
    CENTRES,
    DENSE,
    EXPECTED,
    FEATURES,
    LOGITS,
    OF_EXPECTED,
    OF_FIRST,
    SMALL,
    THETA,
    VALUES,
    NegativeBinomialHead,
    ZeroInflatedHead,
)

GENES = 256  # genes of a piece
PER_STEP = 3  # phases
LINE = 8  # int64 numbers in a line of the cache; counters of different phases do not share one


@njit(forceinline=True, fastmath={"contract", "reassoc"}, **INNER)
def _is_finite(gradients, start, n):
    """Whether `n` numbers are finite: times 0, they are 0."""
    total = ZERO
    for k in range(start, start + n):
        total += ZERO * gradients[k]
    return total == ZERO


@njit(forceinline=True, **INNER)
def _small_gradients(step, n_pieces, shape, places, state, cells, buffers, statistics):
    """Phase 2, last piece: gradients of the small parameters, and log p and KL of the step. Whether all are finite."""
    small = vector(state.gradients, 0, places.n_small)
    clear(small)
    add_rows(rows_of_buffer(buffers, SMALL, 0, n_pieces, places.n_small), small)
    n_all = cells.starts[step + 1] - cells.starts[step]
    log_prob, kl = 0.0, 0.0
    for i in range(n_all):
        log_prob += buffers.sums[i]
        kl += buffers.sums[buffers.most + i]
    statistics[step, 0], statistics[step, 1] = log_prob / n_all, kl / n_all
    for k in range((places.genes - places.theta) // shape.n_genes):
        total = 0.0
        for g in range(shape.n_genes):
            total += state.values[places.theta + k * shape.n_genes + g]
        buffers.numbers[buffers.at[CENTRES] + k] = np.float32(total / shape.n_genes)
    return _is_finite(small, 0, small.size) and math.isfinite(log_prob) and math.isfinite(kl)


@njit(forceinline=True, **INNER)
def _gene_gradients(first, n, step, n_pieces, shape, places, gradients, cells, buffers):
    """Phase 2 for `n` genes from `first` on: gradients of their weights. Whether all are finite."""
    start, n_all = cells.starts[step], cells.starts[step + 1] - cells.starts[step]
    n_logits, width, n_genes, n_features = buffers.n_logits, shape.width, shape.n_genes, shape.n_features
    logits, features = (
        rows_of_buffer(buffers, LOGITS, 0, n_all, n_logits),
        rows_of_buffer(buffers, FEATURES, 0, n_all, n_features),
    )
    finite = True
    for gene in range(first, n_logits, n_genes):
        output = places.output + gene * n_features
        multiply(logits[:, gene : gene + n], True, features, False, ZERO, matrix(gradients, output, n, n_features))
        finite = finite and _is_finite(gradients, output, n * n_features)
    # bias and dispersions have a row of genes each, and as many in every piece
    n_bias, n_theta = n_logits // n_genes, (places.genes - places.theta) // n_genes
    for row in range(n_bias + n_theta):
        section, per_piece, place = BIAS, n_logits, row * n_genes + first
        if row >= n_bias:
            section, per_piece, place = THETA, n_theta * n_genes, (row - n_bias) * n_genes + first
        total = places.bias + row * n_genes + first
        clear(vector(gradients, total, n))
        for piece in range(n_pieces):
            part = vector(buffers.numbers, buffers.at[section] + piece * per_piece + place, n)
            add(vector(gradients, total, n), part)
        finite = finite and _is_finite(gradients, total, n)
    mine = matrix(gradients, places.genes + first * width, n, width)
    of_first = rows_of_buffer(buffers, OF_FIRST, 0, n_all, width)
    if buffers.dense:
        dense = rows_of_buffer(buffers, DENSE, 0, n_all, n_genes)
        multiply(dense[:, first : first + n], True, of_first, False, ZERO, mine)
    else:
        clear(vector(gradients, places.genes + first * width, n * width))
        add_columns(
            first, first + n, vector(cells.indptr, start, n_all + 1), cells.indices,
            vector(buffers.numbers, buffers.at[VALUES], cells.counts.size), of_first,
            matrix(gradients, places.genes, n_genes, width),
        )  # fmt: skip
    if shape.one_pair_in > 0:
        n_pairs = 2 * n_chosen(n_all, 2 * shape.one_pair_in)
        expected, of_expected = (
            rows_of_buffer(buffers, EXPECTED, 0, n_pairs, n_genes),
            rows_of_buffer(buffers, OF_EXPECTED, 0, n_pairs, width),
        )
        multiply(expected[:, first : first + n], True, of_expected, False, ONE, mine)
    return finite and _is_finite(gradients, places.genes + first * width, n * width)


def refresh(head, values, shape, places, first, n):
    """Tables of the head for `n` genes from `first` on, from their dispersions."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(refresh, jit_options={"forceinline": True, "error_model": "numpy"})
def _refresh(head, values, shape, places, first, n):
    return _refresh_tables if head.instance_class in (NegativeBinomialHead, ZeroInflatedHead) else _no_tables


def _no_tables(head, values, shape, places, first, n):
    pass


def _refresh_tables(head, values, shape, places, first, n):
    for k in range(head.theta.shape[0]):
        for g in range(first, first + n):
            head.theta[k, g] = np.float32(math.exp(values[places.theta + k * shape.n_genes + g]))
        fill_count_tables(head.theta, head.inverse_theta, head.logs, head.drops, k, first, first + n)


@njit(forceinline=True, **INNER)
def _move_genes(first, n, rate, root, shape, places, groups, buffers, state):
    """Phase 3 for `n` genes from `first` on."""
    width, n_features, n_genes = shape.width, shape.n_features, shape.n_genes
    adam(places.genes + first * width, n * width, state, rate, root, ZERO, ZERO)
    for gene in range(first, buffers.n_logits, n_genes):
        adam(places.bias + gene, n, state, rate, root, ZERO, ZERO)
        start = places.output + gene * n_features
        adam(start, n * n_features, state, groups.output_rate * rate, root, groups.output_decay, ZERO)
    for k in range((places.genes - places.theta) // n_genes):
        centre = buffers.numbers[buffers.at[CENTRES] + k]
        start = places.theta + k * n_genes + first
        adam(start, n, state, groups.theta_rate * rate, root, groups.theta_decay, centre)


def n_counters(n_steps: int) -> int:
    """Number of counters for `train_steps`."""
    return 2 * LINE * (PER_STEP * n_steps + 1) + n_steps


@njit(nogil=True, cache=True, error_model="numpy")
def train_steps(counters, shape, places, groups, head, dials, feature_scale, state, steps_before, cells, buffers,
                statistics):  # fmt: skip
    """Updates the parameters once for each step, in place.

    Parameters
    ----------
    dials
        float32, steps x 3: β, learning rate, weight of the consistency term.
    feature_scale
        Factor of the conditions among the features.
    steps_before
        Steps that Adam has made before.
    statistics
        float64, steps x 3: filled with log-likelihood and KL per cell, and 1 if the step was skipped, because something
        was not finite, else 0.
    """
    n_encoder, n_decoder = places.encoder.shape[0], places.decoder.shape[0]
    most_pairs = 2 * n_chosen(shape.block + 1, 2 * shape.one_pair_in) if shape.one_pair_in > 0 else 0
    at, pairs_at = (
        sections_of_room(shape.block, shape, n_encoder, n_decoder),
        sections_of_room(most_pairs, shape, n_encoder, n_decoder),
    )
    room, pairs = np.empty(at[END], np.float32), np.empty(pairs_at[END], np.float32)
    n_steps, n_genes, n_blocks = dials.shape[0], shape.n_genes, (shape.n_genes + GENES - 1) // GENES
    failed = 2 * LINE * (PER_STEP * n_steps + 1)  # place of the counters of failures, one per step
    done, rate, root = steps_before, ZERO, ZERO

    while True:
        first = GENES * fetch_add(counters, 0, 1)
        if first >= n_genes:
            break
        refresh(head, state.values, shape, places, first, min(GENES, n_genes - first))
        fetch_add(counters, LINE, 1)
    wait_for(counters, LINE, n_blocks)

    for step in range(n_steps):
        n_pieces = (cells.starts[step + 1] - cells.starts[step] + shape.block - 1) // shape.block
        phase = 2 * LINE * (PER_STEP * step + 1)
        while True:
            piece = fetch_add(counters, phase, 1)
            if piece >= n_pieces:
                break
            cells_of_step(
                piece, step, dials[step, 0], dials[step, 2], feature_scale, room, at, pairs, pairs_at, shape, places,
                head, state.values, cells, buffers,
            )  # fmt: skip
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_pieces)

        phase += 2 * LINE
        while True:
            piece = fetch_add(counters, phase, 1)
            first = GENES * piece
            if piece > n_blocks:
                break
            if piece == n_blocks:
                finite = _small_gradients(step, n_pieces, shape, places, state, cells, buffers, statistics)
            else:
                n = min(GENES, n_genes - first)
                finite = _gene_gradients(first, n, step, n_pieces, shape, places, state.gradients, cells, buffers)
            if not finite:
                fetch_add(counters, failed + step, 1)
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_blocks + 1)

        phase += 2 * LINE
        skipped = fetch(counters, failed + step) > 0
        statistics[step, 2] = 1.0 if skipped else 0.0
        if skipped:
            continue
        done += 1
        rate = np.float32(dials[step, 1] / (1.0 - 0.9**done))
        root = np.float32(1.0 / math.sqrt(1.0 - 0.999**done))
        while True:
            piece = fetch_add(counters, phase, 1)
            first = GENES * piece
            if piece > n_blocks:
                break
            if piece == n_blocks:
                adam(0, places.n_small, state, rate, root, ZERO, ZERO)
            else:
                n = min(GENES, n_genes - first)
                _move_genes(first, n, rate, root, shape, places, groups, buffers, state)
                refresh(head, state.values, shape, places, first, n)
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_blocks + 1)
