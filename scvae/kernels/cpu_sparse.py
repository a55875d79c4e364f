"""Numba kernels for rows of sparse matrices: taking them, and their products with dense ones.

They share nothing with the heads in `cpu`: numba looks at one file's date to tell whether its cache is stale.
"""

import numpy as np
from numba import njit, prange

SUMS = {"contract", "arcp", "nsz", "nnan", "reassoc"}  # sums may run in any order, the same at every call


@njit(parallel=True, cache=True, error_model="numpy")
def csr_to_dense(indptr, indices, values, out):
    """out = the rows as a dense array."""
    for i in prange(out.shape[0]):
        out[i, :] = np.float32(0.0)
        for j in range(indptr[i], indptr[i + 1]):
            out[i, indices[j]] += values[j]


@njit(inline="always")
def _add_weighted(target, values, sources, table, start, stop):
    """target += sum over j in start ... stop of values[j] * table[sources[j]]; by fours, to load it less often."""
    whole = start + (stop - start) // 4 * 4
    for j in range(start, whole, 4):
        a, b, c, d = values[j], values[j + 1], values[j + 2], values[j + 3]
        of_a, of_b, of_c, of_d = table[sources[j]], table[sources[j + 1]], table[sources[j + 2]], table[sources[j + 3]]
        for k in range(target.size):
            target[k] += a * of_a[k] + b * of_b[k] + c * of_c[k] + d * of_d[k]
    for j in range(whole, stop):
        a, of_a = values[j], table[sources[j]]
        for k in range(target.size):
            target[k] += a * of_a[k]


@njit(parallel=True, cache=True, error_model="numpy", fastmath=SUMS)
def csr_matmul(indptr, indices, values, weight, out):
    """out[i] += sum over the stored j of row i of values[j] * weight[indices[j]]."""
    for i in prange(out.shape[0]):
        _add_weighted(out[i], values, indices, weight, indptr[i], indptr[i + 1])


@njit(cache=True, error_model="numpy")
def _by_column(indptr, indices, values, n_columns):
    """Stored entries sorted by column, rows rising within each: where each column starts, the rows, the values."""
    starts = np.zeros(n_columns + 1, np.int64)
    for j in range(indices.size):
        starts[indices[j] + 1] += 1
    for g in range(n_columns):
        starts[g + 1] += starts[g]
    free = starts[:-1].copy()
    rows = np.empty(indices.size, np.int32)
    sorted_values = np.empty(indices.size, np.float32)
    for i in range(indptr.size - 1):
        for j in range(indptr[i], indptr[i + 1]):
            place = free[indices[j]]
            rows[place] = i
            sorted_values[place] = values[j]
            free[indices[j]] = place + 1
    return starts, rows, sorted_values


@njit(parallel=True, cache=True, error_model="numpy", fastmath=SUMS)
def csr_transposed_matmul(indptr, indices, values, rows, out):
    """out[g] = sum over the stored j of column g of values[j] * rows[row of j]: the gradient of `csr_matmul`.

    Sorted by column first, so that each row of `out` is written once, by one thread, in the order of the cells.
    """
    starts, row_of, sorted_values = _by_column(indptr, indices, values, out.shape[0])
    for g in prange(out.shape[0]):
        out[g, :] = np.float32(0.0)
        _add_weighted(out[g], sorted_values, row_of, rows, starts[g], starts[g + 1])


@njit(parallel=True, cache=True, error_model="numpy")
def take_rows(stored_indices, stored_values, first, indptr, indices, values):
    """Copies the entries stored from `first` of each row on to where `indptr` says."""
    for i in prange(first.size):
        shift = first[i] - indptr[i]
        for j in range(indptr[i], indptr[i + 1]):
            indices[j] = stored_indices[j + shift]
            values[j] = stored_values[j + shift]


@njit(parallel=True, cache=True, error_model="numpy")
def count_mapped(stored_indices, first, last, column_map, lengths):
    """lengths[i] = how many of the entries stored from first[i] to last[i] have a column in the map."""
    for i in prange(first.size):
        n = 0
        for j in range(first[i], last[i]):
            n += column_map[stored_indices[j]] >= 0
        lengths[i] = n


@njit(parallel=True, cache=True, error_model="numpy")
def take_mapped(stored_indices, stored_values, first, last, column_map, indptr, indices, values):
    """As `take_rows`, with the columns renamed, and without the entries whose column is not in the map."""
    for i in prange(first.size):
        place = indptr[i]
        for j in range(first[i], last[i]):
            column = column_map[stored_indices[j]]
            if column >= 0:
                indices[place] = column
                values[place] = stored_values[j]
                place += 1


# the next two run in many threads at once, each of which has rows of its own: not every threading layer of numba could


@njit(cache=True, nogil=True, error_model="numpy")
def rename_entries(stored_indices, stored_values, stored_indptr, column_map, indptr, indices, values):
    """As `take_mapped`, of all rows and without knowing their lengths: `indptr` is filled in, its last is the sum."""
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


@njit(cache=True, nogil=True, error_model="numpy")
def place_rows(piece_indptr, piece_indices, piece_values, first, indices, values):
    """Copies each row of a piece to where `first` says."""
    for i in range(first.size):
        shift = first[i] - piece_indptr[i]
        for j in range(piece_indptr[i], piece_indptr[i + 1]):
            indices[j + shift] = piece_indices[j]
            values[j + shift] = piece_values[j]
