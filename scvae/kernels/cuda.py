"""Triton kernels for NVIDIA devices: fast versions of `scvae.kernels.reference`, organised as in `scvae.kernels.cpu`.

* Rows are passed as the places where they begin and end (`first`, `last`) in arrays on the device. The rows of a batch
  are never copied, and every shape is known before the launch, so a CUDA graph can capture everything.
* Zeros are computed densely in float32. The terms of a count are computed at the stored counts only, in float64; these
  are so few that even a consumer GPU has enough float64 throughput.
* There are no atomic additions: a program goes through its rows in order and has its own slab of partial sums, so that
  the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .special import exp, log1p, log_factorial, rising

LOWEST = tl.constexpr(-3.0e38)  # minus infinity minus itself would be NaN
COLUMNS = 2048  # of a row, processed together
STORED = 256  # stored values, processed together
PROGRAMS = 512  # at most, because each has its own slab; with more rows, a program takes several
OPTIONS = {"enable_fp_fusion": True}  # a * b + c in one rounding; set because triton's default has changed
SLAB_BUDGET = 2**26  # float32 partial sums of the dispersion gradient (256 MB)


@triton.jit
def _zeros(proportion, library, theta, DISPERSED: tl.constexpr):
    """Values of a gene at count 0 in float32: log p, and its slopes in log mean and log theta; see `cpu._nb_zeros`."""
    mean = library * proportion
    if DISPERSED:
        u = mean / theta
        r = 1.0 / (1.0 + u)
        spread, excess = log1p(u, r)
        return -theta * spread, -mean * r, -theta * excess
    else:
        return -mean, -mean, 0.0 * mean


@triton.jit
def _inflate(log_p, q):
    """log(pi + (1 - pi) p(0)) with pi = sigmoid(q); softplus(q); the fraction due to p(0); the slope in q."""
    e = exp(-tl.abs(q))
    r = 1.0 / (1.0 + e)
    softplus = tl.where(q > 0, q, 0.0) + log1p(e, r)[0]
    sigmoid = tl.where(q >= 0, r, e * r)
    gap = log_p - q
    e = exp(-tl.abs(gap))
    r = 1.0 / (1.0 + e)
    from_base = tl.where(gap >= 0, r, e * r)
    log_zero = tl.where(gap >= 0, log_p, q) + log1p(e, r)[0] - softplus
    return log_zero, softplus, from_base, (1.0 - from_base) - sigmoid


@triton.jit
def _softmax_row(row, n_genes, COLUMNS: tl.constexpr):
    """The largest logit, and the sum of exp(logit - largest) in float64, in one pass."""
    top = tl.cast(LOWEST, tl.float32)
    total = tl.cast(0.0, tl.float64)
    for begin in range(0, n_genes, COLUMNS):
        g = begin + tl.arange(0, COLUMNS)
        logit = tl.load(row + g, mask=g < n_genes, other=LOWEST)
        higher = tl.maximum(top, tl.max(logit, 0))
        part = tl.sum(tl.where(g < n_genes, exp(logit - higher), 0.0), 0)
        total = total * exp(top - higher).to(tl.float64) + part.to(tl.float64)
        top = higher
    return top, total


@triton.jit
def _tile(row, theta, g, top, scale, n_genes, DISPERSED: tl.constexpr, INFLATED: tl.constexpr):
    """Proportion, inverse dispersion and inflation logit of some genes; 0, 1 and `LOWEST` beyond the last gene."""
    here = g < n_genes
    proportion = tl.where(here, exp(tl.load(row + g, mask=here, other=LOWEST) - top) * scale, 0.0)
    t = tl.load(theta + g, mask=here, other=1.0) if DISPERSED else proportion
    q = tl.load(row + n_genes + g, mask=here, other=LOWEST) if INFLATED else proportion
    return here, proportion, t, q


@triton.jit
def _sum_zeros(
    row, theta, slab, library, weight, top, scale, n_genes,
    DISPERSED: tl.constexpr, INFLATED: tl.constexpr, GRADIENT: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums over the genes of log p(0) and of its slope in the log mean; the slope in log theta goes to the slab."""
    total, pulled = tl.cast(0.0, tl.float64), tl.cast(0.0, tl.float64)
    for begin in range(0, n_genes, COLUMNS):
        g = begin + tl.arange(0, COLUMNS)
        here, proportion, t, q = _tile(row, theta, g, top, scale, n_genes, DISPERSED, INFLATED)
        log_p, slope, theta_slope = _zeros(proportion, library, t, DISPERSED)
        if INFLATED:
            log_p, _, from_base, _ = _inflate(log_p, q)
            slope, theta_slope = slope * from_base, theta_slope * from_base
        total += tl.sum(tl.where(here, log_p, 0.0), 0).to(tl.float64)
        pulled += tl.sum(slope, 0).to(tl.float64)
        if GRADIENT and DISPERSED:
            tl.store(slab + g, tl.load(slab + g, mask=here) + weight * theta_slope, mask=here)
    return total, pulled


@triton.jit
def _stored(indices, counts, k, n_stored):
    """Which of the stored values are positive counts, their genes and their values; the value is 1 if there is none."""
    x = tl.load(counts + k, mask=k < n_stored, other=0).to(tl.float32)
    seen = x > 0
    return seen, tl.load(indices + k, mask=seen, other=0).to(tl.int32), tl.where(seen, x, 1.0).to(tl.float64)


@triton.jit
def _sum_counts(
    row, theta, slab, kept, indices, counts, n_stored, library, weight, top, scale, log_norm, n_genes, longest,
    DISPERSED: tl.constexpr, INFLATED: tl.constexpr, GRADIENT: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """What the counts add to the values at zero: sums as in `_sum_zeros`; the slopes of each count go to `kept`."""
    total, pulled = tl.cast(0.0, tl.float64), tl.cast(0.0, tl.float64)
    for begin in range(0, n_stored, STORED):
        k = begin + tl.arange(0, STORED)
        seen, g, x = _stored(indices, counts, k, n_stored)
        logit = tl.load(row + g, mask=seen, other=LOWEST)
        proportion = exp(logit - top) * scale
        t = tl.load(theta + g, mask=seen, other=1.0) if DISPERSED else proportion
        log_p, slope, theta_slope = _zeros(proportion, library, t, DISPERSED)
        value = x * (logit.to(tl.float64) + log_norm)
        if DISPERSED:
            t, mean = t.to(tl.float64), (library * proportion).to(tl.float64)
            risen, rise = rising(x, t, t + mean)
            value += risen
            pull = x * t / (t + mean)
            lift = t * rise - pull
        else:
            # `_sum_zeros` has already added minus the mean of this gene, which the log p of a count contains too
            value -= log_factorial(x)
            pull, lift = x, 0.0 * x
        if INFLATED:
            q = tl.load(row + n_genes + g, mask=seen, other=0.0)
            log_zero, softplus, from_base, _ = _inflate(log_p, q)
            inflated = from_base - 1.0  # minus the fraction due to inflation, which a count rules out
            value += (log_p - softplus - log_zero).to(tl.float64)
            pull -= (slope * inflated).to(tl.float64)
            lift -= (theta_slope * inflated).to(tl.float64)
            if GRADIENT:
                tl.store(kept + longest + k, inflated, mask=seen)
        total += tl.sum(tl.where(seen, value, 0.0), 0)
        pulled += tl.sum(tl.where(seen, pull, 0.0), 0)
        if GRADIENT:
            tl.store(kept + k, pull.to(tl.float32), mask=seen)
            if DISPERSED:
                sums = tl.load(slab + g, mask=seen)
                tl.store(slab + g, sums + weight * lift.to(tl.float32), mask=seen)
    return total, pulled


@triton.jit
def _write_zeros(
    row, theta, library, weight, top, scale, pulled, n_genes,
    DISPERSED: tl.constexpr, INFLATED: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Overwrites the logits with the gradient of a row of zeros, but with the sum `pulled` of all slopes."""
    for begin in range(0, n_genes, COLUMNS):
        g = begin + tl.arange(0, COLUMNS)
        here, proportion, t, q = _tile(row, theta, g, top, scale, n_genes, DISPERSED, INFLATED)
        log_p, slope, _ = _zeros(proportion, library, t, DISPERSED)
        if INFLATED:
            _, _, from_base, q_slope = _inflate(log_p, q)
            slope = slope * from_base
            tl.store(row + n_genes + g, weight * q_slope, mask=here)
        tl.store(row + g, weight * (slope - proportion * pulled), mask=here)


@triton.jit
def _add_counts(
    row, kept, indices, counts, n_stored, weight, n_genes, longest, INFLATED: tl.constexpr, STORED: tl.constexpr
):  # fmt: skip
    """Adds the slopes in `kept` to the gradient."""
    for begin in range(0, n_stored, STORED):
        k = begin + tl.arange(0, STORED)
        seen, g, _ = _stored(indices, counts, k, n_stored)
        slope = tl.load(kept + k, mask=seen, other=0.0)
        tl.store(row + g, tl.load(row + g, mask=seen) + weight * slope, mask=seen)
        if INFLATED:
            slope, at = tl.load(kept + longest + k, mask=seen, other=0.0), row + n_genes + g
            tl.store(at, tl.load(at, mask=seen) + weight * slope, mask=seen)


@triton.jit
def _count_rows(
    logits, first, last, indices, counts, library, theta, group, weight, log_probability, slabs, scratch,
    offset, n_rows, n_cells, n_genes, n_groups, longest,
    DISPERSED: tl.constexpr, INFLATED: tl.constexpr, GRADIENT: tl.constexpr,
    COLUMNS: tl.constexpr, STORED: tl.constexpr,
):  # fmt: skip
    """One program, which goes through its rows. A barrier precedes each read of what other threads have written."""
    program = tl.program_id(0).to(tl.int64)
    kept = scratch + program * longest * (2 if INFLATED else 1)
    for i in range(tl.program_id(0), n_rows, tl.num_programs(0)):
        cell = (i + offset) % n_cells
        row = logits + tl.cast(i, tl.int64) * n_genes * (2 if INFLATED else 1)
        depth, row_weight, own_group = tl.load(library + cell), tl.load(weight + i), tl.load(group + cell)
        row_theta = theta + own_group * n_genes
        slab = slabs + (program * n_groups + own_group) * n_genes
        start = tl.load(first + cell)
        n_stored = (tl.load(last + cell) - start).to(tl.int32)

        top, norm = _softmax_row(row, n_genes, COLUMNS)
        scale = (1.0 / norm).to(tl.float32)
        # every count of the row is multiplied by this number, whose rounding to float32 would not average out
        log_norm = tl.log(depth.to(tl.float64)) - top.to(tl.float64) - tl.log(norm)
        total, pulled = _sum_zeros(
            row, row_theta, slab, depth, row_weight, top, scale, n_genes, DISPERSED, INFLATED, GRADIENT, COLUMNS
        )
        tl.debug_barrier()
        more, more_pulled = _sum_counts(
            row, row_theta, slab, kept, indices + start, counts + start, n_stored, depth, row_weight,
            top, scale, log_norm, n_genes, longest, DISPERSED, INFLATED, GRADIENT, STORED,
        )  # fmt: skip
        tl.store(log_probability + i, total + more)
        tl.debug_barrier()
        if GRADIENT:
            pulled = (pulled + more_pulled).to(tl.float32)
            _write_zeros(row, row_theta, depth, row_weight, top, scale, pulled, n_genes, DISPERSED, INFLATED, COLUMNS)
            tl.debug_barrier()
            _add_counts(
                row, kept, indices + start, counts + start, n_stored, row_weight, n_genes, longest, INFLATED, STORED
            )


@triton.jit
def _scatter_rows(
    first, last, indices, values, scale, out, n_columns, LOG1P: tl.constexpr, STORED: tl.constexpr
):  # fmt: skip
    """Writes the stored values of one row, or log1p(value x scale of the row), into a row of zeros."""
    i = tl.program_id(0)
    start = tl.load(first + i)
    n_stored = (tl.load(last + i) - start).to(tl.int32)
    row = out + tl.cast(i, tl.int64) * n_columns
    for begin in range(0, n_stored, STORED):
        k = begin + tl.arange(0, STORED)
        here = k < n_stored
        x = tl.load(values + start + k, mask=here, other=0).to(tl.float32)
        if LOG1P:
            x = x * tl.load(scale + i)
            x = log1p(x, 1.0 / (1.0 + x))[0]
        tl.store(row + tl.load(indices + start + k, mask=here, other=0).to(tl.int32), x, mask=here)


def densify(
    first: Tensor, last: Tensor, indices: Tensor, values: Tensor, n_columns: int, scale: Tensor | None = None
) -> Tensor:
    """Rows as a dense float32 block; with `scale` (one number per row), log1p(value x scale) of each value.

    Parameters
    ----------
    first, last
        int64 (rows): where each row begins and ends in `indices` and `values`. No column occurs twice in a row.
    indices, values
        Indices of any integer type, and values of any type.
    """
    out = torch.zeros(len(first), n_columns, device=values.device)
    if len(first):
        given = scale is not None
        _scatter_rows[len(first),](
            first, last, indices, values, scale if given else out, out, n_columns, LOG1P=given, STORED=STORED, **OPTIONS
        )
    return out


def count_rows(
    head: str,
    logits: Tensor,
    first: Tensor,
    last: Tensor,
    indices: Tensor,
    counts: Tensor,
    longest: int,
    library: Tensor,
    theta: Tensor,
    group: Tensor,
    weight: Tensor,
    offset: int,
    want_gradient: bool,
) -> tuple[Tensor, Tensor]:
    """log p of each row from logits, which become weight x d log p / d logits, as in `cpu.log_prob_block`.

    Parameters
    ----------
    head
        "nb", "zinb" (with twice as many logits; the second half of a row holds those of inflation) or "poisson".
    logits
        float32 (rows, genes), contiguous. Row i belongs to cell (i + offset) % cells.
    first, last, indices, counts
        The cells, as in `densify`.
    longest
        Number of stored values of the longest row, or an upper bound on it.
    library
        float32 (cells).
    theta
        float32 (groups, genes): inverse dispersions; without genes for "poisson".
    group
        int64 (cells): row of `theta`.
    weight
        float32 (rows).
    want_gradient
        Whether the logits become their gradient; otherwise they do not change.

    Returns
    -------
    tuple
        float64 (rows) log p in nats, and float32 (slabs, groups, genes) whose sum over slabs is the sum over rows of
        weight x d log p / d log theta.
    """
    inflated = head == "zinb"
    n_rows, n_genes = logits.shape[0], logits.shape[1] // (2 if inflated else 1)
    programs = max(1, min(n_rows, PROGRAMS, SLAB_BUDGET // max(1, theta.numel())))
    log_probability = torch.empty(n_rows, dtype=torch.float64, device=logits.device)
    slabs = torch.zeros(programs if want_gradient else 1, *theta.shape, device=logits.device)
    scratch = torch.empty(programs, 2 if inflated else 1, max(1, longest), device=logits.device)
    if n_rows:
        _count_rows[programs,](
            logits, first, last, indices, counts, library, theta, group, weight, log_probability, slabs, scratch,
            offset, n_rows, len(library), n_genes, len(theta), scratch.shape[2],
            DISPERSED=head != "poisson", INFLATED=inflated, GRADIENT=want_gradient,
            COLUMNS=min(COLUMNS, triton.next_power_of_2(n_genes)), STORED=STORED, num_warps=8, **OPTIONS,
        )  # fmt: skip
    return log_probability, slabs
