"""Numba kernels that copy rows of sparse matrices and multiply them with dense matrices.

They share no code with the heads in `cpu`, because numba checks the date of one file to see whether a cache is stale.
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
    """target += sum over j in start ... stop of values[j] * table[sources[j]], in fours to load `target` less often."""
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


@njit(forceinline=True, cache=True, error_model="numpy")
def _by_column(indptr, indices, values, n_columns):
    """Stored entries sorted by column and, within it, by row: the start of each column, the rows and the values."""
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

    The entries are sorted by column first, so that one thread writes each row of `out` once, in the order of the cells.
    """
    starts, row_of, sorted_values = _by_column(indptr, indices, values, out.shape[0])
    for g in prange(out.shape[0]):
        out[g, :] = np.float32(0.0)
        _add_weighted(out[g], sorted_values, row_of, rows, starts[g], starts[g + 1])


@njit(parallel=True, cache=True, error_model="numpy")
def take_rows(stored_indices, stored_values, first, indptr, indices, values):
    """Copies the entries of each row, stored from `first`, to the places given by `indptr`."""
    for i in prange(first.size):
        shift = first[i] - indptr[i]
        for j in range(indptr[i], indptr[i + 1]):
            indices[j] = stored_indices[j + shift]
            values[j] = stored_values[j + shift]


@njit(parallel=True, cache=True, error_model="numpy")
def count_mapped(stored_indices, first, last, column_map, lengths):
    """lengths[i] = number of entries stored from first[i] to last[i] whose column is in the map."""
    for i in prange(first.size):
        n = 0
        for j in range(first[i], last[i]):
            n += column_map[stored_indices[j]] >= 0
        lengths[i] = n


@njit(parallel=True, cache=True, error_model="numpy")
def take_mapped(stored_indices, stored_values, first, last, column_map, indptr, indices, values):
    """As `take_rows`, with the columns renumbered, and without the entries whose column is not in the map."""
    for i in prange(first.size):
        place = indptr[i]
        for j in range(first[i], last[i]):
            column = column_map[stored_indices[j]]
            if column >= 0:
                indices[place] = column
                values[place] = stored_values[j]
                place += 1


# the next two run in several Python threads, each on its own rows: not all of numba's threading layers can do this


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
def place_rows(piece_indptr, piece_indices, piece_values, first, indices, values):
    """Copies each row of a piece to the place given by `first`."""
    for i in range(first.size):
        shift = first[i] - piece_indptr[i]
        for j in range(piece_indptr[i], piece_indptr[i + 1]):
            indices[j + shift] = piece_indices[j]
            values[j + shift] = piece_values[j]
