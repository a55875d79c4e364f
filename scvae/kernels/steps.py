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

from .cell_phase import cells_of_step
from .compiling import INNER, PART, kernel
from .count_terms import fill_count_tables
from .cpu_sparse import add_columns
from .layers import ONE, ZERO, adam, add, add_rows, clear
from .native import fetch, fetch_add, float64s, int32s, int64s, item_of, matrix, multiply, vector, wait_for
from .pairs import n_chosen
from .records import END, GaussianHead, JointHead, PoissonHead

GENES = 256  # genes of a piece
PER_STEP = 3  # phases
LINE = 8  # int64 numbers in a line of the cache; counters of different phases do not share one


@njit(forceinline=True, fastmath={"contract", "reassoc"}, **INNER)
def _is_finite(numbers):
    """Whether all numbers are finite: times 0, they are 0."""
    total = ZERO
    for k in range(numbers.size):
        total += ZERO * numbers[k]
    return total == ZERO


@njit(forceinline=True, **INNER)
def _small_gradients(step, n_pieces, jobs, heads):
    """Phase 2, last piece: gradients of the small parameters, and log p and KL of the step. Whether all are finite."""
    job = jobs[0]
    small, starts = vector(job.gradients, 0, job.n_small), int64s(job.starts, step, 2)
    clear(small)
    add_rows(matrix(job.of_small, 0, n_pieces, job.n_small), small)
    n_all = starts[1] - starts[0]
    of_kl, log_prob, kl = float64s(job.kl, 0, n_all), 0.0, 0.0
    for i in range(n_all):
        kl += of_kl[i]
    for v in range(len(heads)):
        log_prob += _of_measurement(n_all, jobs[v])
    statistics = float64s(job.statistics, 3 * step, 3)
    statistics[0], statistics[1] = log_prob / n_all, kl / n_all
    return _is_finite(small) and math.isfinite(log_prob) and math.isfinite(kl)


@njit(forceinline=True, **INNER)
def _of_measurement(n_all, job):
    """Fills the means of the dispersions of a measurement; returns its log p of all cells of a step."""
    theta, centres = matrix(job.values, job.theta_place, job.n_theta, job.n_genes), vector(job.centres, 0, job.n_theta)
    for k in range(theta.shape[0]):
        total = 0.0
        for g in range(theta.shape[1]):
            total += theta[k, g]
        centres[k] = np.float32(total / theta.shape[1])
    log_probability, log_prob = float64s(job.log_probability, 0, n_all), 0.0
    for i in range(n_all):
        log_prob += log_probability[i]
    return log_prob


@njit(forceinline=True, **INNER)
def _gene_gradients(first, n, step, n_pieces, job):
    """Phase 2 for `n` genes from `first` on: gradients of their weights. Whether all are finite."""
    starts = int64s(job.starts, step, 2)
    n_all, n_logits, width, n_genes, n_features = (
        starts[1] - starts[0], job.n_logits, job.width, job.n_genes, job.n_features,
    )  # fmt: skip
    logits, features = matrix(job.logits, 0, n_all, n_logits), matrix(job.features, 0, n_all, n_features)
    finite = True
    for gene in range(first, n_logits, n_genes):
        output = matrix(job.gradients, job.output_place + gene * n_features, n, n_features)
        multiply(logits[:, gene : gene + n], True, features, False, ZERO, output)
        finite = finite and _is_finite(vector(output, 0, n * n_features))
    # bias and dispersions have a row of genes each, and as many in every piece
    n_bias, n_theta = n_logits // n_genes, job.n_theta
    for row in range(n_bias + n_theta):
        parts, per_piece, place = job.of_bias, n_logits, row * n_genes + first
        if row >= n_bias:
            parts, per_piece, place = job.of_theta, n_theta * n_genes, (row - n_bias) * n_genes + first
        total = vector(job.gradients, job.bias_place + row * n_genes + first, n)
        clear(total)
        for piece in range(n_pieces):
            add(total, vector(parts, piece * per_piece + place, n))
        finite = finite and _is_finite(total)
    mine, of_first = (
        matrix(job.gradients, job.genes_place + first * width, n, width),
        matrix(job.of_first, 0, n_all, width),
    )
    if job.dense:
        dense = matrix(job.dense_rows, 0, n_all, n_genes)
        multiply(dense[:, first : first + n], True, of_first, False, ZERO, mine)
    else:
        clear(vector(mine, 0, n * width))
        indptr = int64s(job.indptr, starts[0], n_all + 1)
        n_stored = indptr[n_all]
        add_columns(
            first, first + n, indptr, int32s(job.indices, 0, n_stored), vector(job.log_counts, 0, n_stored), of_first,
            matrix(job.gradients, job.genes_place, n_genes, width),
        )  # fmt: skip
    if job.one_pair_in > 0:
        n_pairs = 2 * n_chosen(n_all, 2 * job.one_pair_in)
        expected, of_expected = (
            matrix(job.expected, 0, n_pairs, n_genes),
            matrix(job.of_expected, 0, n_pairs, width),
        )
        multiply(expected[:, first : first + n], True, of_expected, False, ONE, mine)
    return finite and _is_finite(vector(mine, 0, n * width))


def refresh(head, job, first, n):
    """Tables of the head for `n` genes from `first` on, from their dispersions."""
    raise NotImplementedError("kernels call this; Python does not")


@overload(refresh, jit_options=PART)
def _refresh(head, job, first, n):
    return TABLES.get(head.instance_class, _refresh_tables)


def _no_tables(head, job, first, n):
    pass


def _refresh_tables(head, job, first, n):
    theta = matrix(job.values, job.theta_place, job.n_theta, job.n_genes)
    for k in range(head.theta.shape[0]):
        for g in range(first, first + n):
            head.theta[k, g] = np.float32(math.exp(theta[k, g]))
        fill_count_tables(head.theta, head.inverse_theta, head.logs, head.drops, k, first, first + n)


def _refresh_real(head, job, first, n):
    free, floor = vector(job.values, job.theta_place, job.n_genes), head.floor * head.floor
    for g in range(first, first + n):
        square = np.float32(math.exp(np.float32(2.0) * free[g]))
        head.precision[g] = ONE / (floor + square)
        head.share[g] = square / (floor + square)
        head.constant[g] = np.float32(0.5 * math.log(2.0 * math.pi * (floor + square))) + head.log_spread[g]


def _refresh_joint(head, job, first, n):
    if head.is_real:
        refresh(head.real, job, first, n)
    else:
        refresh(head.counts, job, first, n)


TABLES = {PoissonHead: _no_tables, GaussianHead: _refresh_real, JointHead: _refresh_joint}


@njit(forceinline=True, **INNER)
def _move_genes(first, n, rate, root, job):
    """Phase 3 for `n` genes from `first` on."""
    width, n_features, n_genes = job.width, job.n_features, job.n_genes
    adam(job.genes_place + first * width, n * width, job, rate, root, ZERO, ZERO)
    for gene in range(first, job.n_logits, n_genes):
        adam(job.bias_place + gene, n, job, rate, root, ZERO, ZERO)
        start = job.output_place + gene * n_features
        adam(start, n * n_features, job, job.output_rate * rate, root, job.output_decay, ZERO)
    for k in range(job.n_theta):
        start, centre = job.theta_place + k * n_genes + first, vector(job.centres, k, 1)[0]
        adam(start, n, job, job.theta_rate * rate, root, job.theta_decay, centre)


def n_counters(n_steps: int) -> int:
    """Number of counters for `train_steps`."""
    return 2 * LINE * (PER_STEP * n_steps + 1) + n_steps + LINE


@njit(forceinline=True, **INNER)
def _place_of(piece, jobs, heads):
    """The measurement whose genes a piece has, and the first of them."""
    v = 0
    while v + 1 < len(heads) and piece >= _n_blocks(jobs[v].n_genes):
        piece -= _n_blocks(jobs[v].n_genes)
        v += 1
    return v, GENES * piece


@njit(forceinline=True, **INNER)
def _n_blocks(n_genes):
    return (n_genes + GENES - 1) // GENES


@kernel
def train_steps(counters, jobs, heads, kind):
    """Updates the parameters in place, once for each step, and fills the statistics.

    Parameters
    ----------
    jobs
        A record for each measurement of the cells: see `scvae.kernels.records.JOB`.
    heads
        For each measurement, room for the tables of its head.
    kind
        See `scvae.kernels.records.Kind`.
    """
    job = jobs[0]
    n_steps, n_blocks = job.n_steps, 0
    for v in range(len(heads)):
        n_blocks += _n_blocks(jobs[v].n_genes)
    failed = 2 * LINE * (PER_STEP * n_steps + 1)  # place of the counters of failures, one per step
    thread = fetch_add(counters, failed + n_steps, 1)
    at, pairs_at = int64s(job.room_at, 0, END + 2), int64s(job.pairs_at, 0, END + 2)
    room = job.rooms + 4 * thread * (at[END] + pairs_at[END])
    pairs = room + 4 * at[END]
    done, rate, root = job.steps_before, ZERO, ZERO

    while True:
        piece = fetch_add(counters, 0, 1)
        if piece >= n_blocks:
            break
        v, first = _place_of(piece, jobs, heads)
        refresh(item_of(heads, v), jobs[v], first, min(GENES, jobs[v].n_genes - first))
        fetch_add(counters, LINE, 1)
    wait_for(counters, LINE, n_blocks)

    for step in range(n_steps):
        starts, statistics = int64s(job.starts, step, 2), float64s(job.statistics, 3 * step, 3)
        n_pieces = (starts[1] - starts[0] + job.block - 1) // job.block
        phase = 2 * LINE * (PER_STEP * step + 1)
        while True:
            piece = fetch_add(counters, phase, 1)
            if piece >= n_pieces:
                break
            cells_of_step(piece, step, room, at, pairs, pairs_at, jobs, heads, kind)
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_pieces)

        phase += 2 * LINE
        while True:
            piece = fetch_add(counters, phase, 1)
            if piece > n_blocks:
                break
            if piece == n_blocks:
                finite = _small_gradients(step, n_pieces, jobs, heads)
            else:
                v, first = _place_of(piece, jobs, heads)
                finite = _gene_gradients(first, min(GENES, jobs[v].n_genes - first), step, n_pieces, jobs[v])
            if not finite:
                fetch_add(counters, failed + step, 1)
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_blocks + 1)

        phase += 2 * LINE
        skipped = fetch(counters, failed + step) > 0
        statistics[2] = 1.0 if skipped else 0.0
        if skipped:
            continue
        done += 1
        rate = np.float32(vector(job.dials, 3 * step + 1, 1)[0] / (1.0 - math.pow(0.9, done)))
        root = np.float32(1.0 / math.sqrt(1.0 - math.pow(0.999, done)))
        while True:
            piece = fetch_add(counters, phase, 1)
            if piece >= n_blocks + 2:
                break
            if piece >= n_blocks:
                n_prior, of_prior = job.n_components * (2 * job.n_latent + 1), piece > n_blocks
                first, n = (0, n_prior) if of_prior else (n_prior, job.n_small - n_prior)
                adam(first, n, job, job.prior_rate * rate if of_prior else rate, root, ZERO, ZERO)
            else:
                v, first = _place_of(piece, jobs, heads)
                n = min(GENES, jobs[v].n_genes - first)
                _move_genes(first, n, rate, root, jobs[v])
                refresh(item_of(heads, v), jobs[v], first, n)
            fetch_add(counters, phase + LINE, 1)
        wait_for(counters, phase + LINE, n_blocks + 2)
