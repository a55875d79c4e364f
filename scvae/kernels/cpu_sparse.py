"""Numba kernels that copy rows of sparse matrices and multiply them with dense matrices."""

import numpy as np
from numba import njit

from .compiling import INNER, kernel
from .native import fetch_add

SUMS = {"contract", "arcp", "nsz", "nnan", "reassoc"}  # sums may run in any order, the same at every call


ROWS = 16  # claimed at a time
GENES = 256  # columns claimed at a time


@njit(forceinline=True, **INNER)
def _claim(counter, n, size):
    """The next items for this thread, as first and last + 1; both are n or more once all are claimed."""
    first = size * fetch_add(counter, 0, 1)
    return first, min(first + size, n)


@kernel
def csr_to_dense(counter, indptr, indices, values, out):
    """out = the rows as a dense array."""
    n_rows = out.shape[0]
    while True:
        first, last = _claim(counter, n_rows, ROWS)
        if first >= n_rows:
            return
        for i in range(first, last):
            fill_row(indices[indptr[i] : indptr[i + 1]], values[indptr[i] : indptr[i + 1]], out[i])


@njit(forceinline=True, **INNER)
def fill_row(indices, values, out):
    """out = the sparse row as a dense one."""
    for k in range(out.size):
        out[k] = np.float32(0.0)
    for j in range(indices.size):
        out[indices[j]] += values[j]


@njit(forceinline=True, fastmath=SUMS, **INNER)
def add_weighted(target, values, sources, table):
    """target += sum over j of values[j] * table[sources[j]], in fours to load `target` less often."""
    whole = values.size // 4 * 4
    for j in range(0, whole, 4):
        a, b, c, d = values[j], values[j + 1], values[j + 2], values[j + 3]
        of_a, of_b, of_c, of_d = table[sources[j]], table[sources[j + 1]], table[sources[j + 2]], table[sources[j + 3]]
        for k in range(target.size):
            target[k] += a * of_a[k] + b * of_b[k] + c * of_c[k] + d * of_d[k]
    for j in range(whole, values.size):
        a, of_a = values[j], table[sources[j]]
        for k in range(target.size):
            target[k] += a * of_a[k]


@kernel
def csr_matmul(counter, indptr, indices, values, weight, out):
    """out[i] += sum over the stored j of row i of values[j] * weight[indices[j]]."""
    n_rows = out.shape[0]
    while True:
        first, last = _claim(counter, n_rows, ROWS)
        if first >= n_rows:
            return
        for i in range(first, last):
            add_weighted(out[i], values[indptr[i] : indptr[i + 1]], indices[indptr[i] : indptr[i + 1]], weight)


@kernel
def csr_transposed_matmul(counter, indptr, indices, values, rows, out):
    """out[g] = sum over the stored j of column g of values[j] * rows[row of j]: the gradient of `csr_matmul`.

    Rows must be sorted. A thread claims some columns and finds their entries in each row.
    """
    n_columns = out.shape[0]
    while True:
        first, last = _claim(counter, n_columns, GENES)
        if first >= n_columns:
            return
        for g in range(first, last):
            for k in range(out.shape[1]):
                out[g, k] = np.float32(0.0)
        add_columns(first, last, indptr, indices, values, rows, out)


@njit(forceinline=True, fastmath=SUMS, **INNER)
def add_columns(first, last, indptr, indices, values, rows, out):
    """out[g] += sum over the stored j of column g of values[j] * rows[row of j], for the columns first ... last - 1."""
    for i in range(indptr.size - 1):
        j, end = indptr[i], indptr[i + 1]
        below = end
        while j < below:  # the first entry of the row that is not below `first`
            middle = (j + below) // 2
            if indices[middle] < first:
                j = middle + 1
            else:
                below = middle
        while j < end and indices[j] < last:
            value, target = values[j], out[indices[j]]
            for k in range(target.size):
                target[k] += value * rows[i, k]
            j += 1


@kernel
def are_sorted(indptr, indices):
    """Whether the columns of every row ascend."""
    for i in range(indptr.size - 1):
        for j in range(indptr[i] + 1, indptr[i + 1]):
            if indices[j] < indices[j - 1]:
                return False
    return True


@kernel
def take_rows(counter, stored_indices, stored_values, first, indptr, indices, values):
    """Copies the entries of each row, stored from `first`, to the places given by `indptr`."""
    while True:
        start, stop = _claim(counter, first.size, ROWS)
        if start >= first.size:
            return
        for i in range(start, stop):
            shift = first[i] - indptr[i]
            for j in range(indptr[i], indptr[i + 1]):
                indices[j] = stored_indices[j + shift]
                values[j] = stored_values[j + shift]


@kernel
def count_mapped(counter, stored_indices, first, last, column_map, lengths):
    """lengths[i] = number of entries stored from first[i] to last[i] whose column is in the map."""
    while True:
        start, stop = _claim(counter, first.size, ROWS)
        if start >= first.size:
            return
        for i in range(start, stop):
            n = 0
            for j in range(first[i], last[i]):
                n += column_map[stored_indices[j]] >= 0
            lengths[i] = n


@kernel
def take_mapped(counter, stored_indices, stored_values, first, last, column_map, indptr, indices, values):
    """As `take_rows`, with the columns renumbered, and without the entries whose column is not in the map."""
    while True:
        start, stop = _claim(counter, first.size, ROWS)
        if start >= first.size:
            return
        for i in range(start, stop):
            place = indptr[i]
            for j in range(first[i], last[i]):
                column = column_map[stored_indices[j]]
                if column >= 0:
                    indices[place] = column
                    values[place] = stored_values[j]
                    place += 1


# the next two are called by several Python threads, each with its own rows


@kernel
def rename_entries(stored_indices, stored_values, stored_indptr, column_map, indptr, indices, values):
    """As `take_mapped`, for all rows and without their lengths, which it writes into `indptr`."""
    place = 0
    indptr[0] = 0
    for i in range(stored_indptr.size - 1):
        for j in range(stored_indptr[i], stored_indptr[i + 1]):
            column = column_map[stored_indices[j]]
            if column >= 0:
                indices[place] = column
                values[place] = stored_values[j]
                place += 1
        indptr[i + 1] = place


@kernel
def place_rows(piece_indptr, piece_indices, piece_values, first, indices, values):
    """Copies each row of a piece to the place given by `first`."""
    for i in range(first.size):
        shift = first[i] - piece_indptr[i]
        for j in range(piece_indptr[i], piece_indptr[i + 1]):
            indices[j + shift] = piece_indices[j]
            values[j + shift] = piece_values[j]
