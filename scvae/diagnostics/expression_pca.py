"""Principal components of log-normalised expression: a view of the cells that does not depend on a model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import scipy.sparse as sp
from jaxtyping import Float, Int

from ..common.rng import numpy_generator
from ..data.batches import chunks
from ..data.cells import Cells
from ..data.schema import Kind
from ..kernels.csr import CSR

MOST_GENES = 2_000
MOST_COMPONENTS = 30
READ_AT_ONCE = 512  # cells
COMPARED_AT_ONCE = 5_000
DEAL = 26  # stream of random numbers


def expression_space(
    cells: Cells, positions: Int[np.ndarray, " some"], *, kind: Kind
) -> Float[np.ndarray, "some components"]:
    """Principal components of the log-normalised expression of some cells, centred within batches.

    Counts are divided by the library size, multiplied by its median and transformed by log(1 + x) (scanpy's default);
    real values are used as they are. The `MOST_GENES` most variable genes are then reduced to `MOST_COMPONENTS`
    components. Only these genes of these cells become a dense array.
    """
    from sklearn.decomposition import PCA

    n, sums, squares = len(positions), np.zeros(cells.rows.n_genes), np.zeros(cells.rows.n_genes)
    for block in _normalised(cells, positions, kind):
        sums += np.asarray(block.sum(axis=0)).ravel()
        squares += np.asarray((block * block).sum(axis=0)).ravel()
    spread = squares / n - (sums / n) ** 2
    genes = np.sort(np.argsort(-spread, kind="stable")[:MOST_GENES])
    parts = [block[:, genes] for block in _normalised(cells, positions, kind)]
    dense = np.concatenate([part if isinstance(part, np.ndarray) else part.toarray() for part in parts])
    if cells.has_batch:
        batch = cells.codes[positions, 0]
        for code in np.unique(batch):
            dense[batch == code] -= dense[batch == code].mean(axis=0)
    if np.ptp(dense, axis=0).max() == 0.0:  # all cells are equal, so no direction has variance
        return np.zeros((n, 1))
    n_components = min(MOST_COMPONENTS, *dense.shape)
    # exact solvers, so that the order of the cells does not matter (sklearn's "auto" may pick a randomised one); the
    # seed sets arpack's start vector and is fixed, so that the reference does not depend on the seed of the scores
    solver = "arpack" if n_components < min(dense.shape) else "full"
    pca = PCA(n_components=n_components, svd_solver=solver, random_state=0)
    return np.asarray(pca.fit_transform(dense), dtype=np.float64)


def _normalised(
    cells: Cells, positions: Int[np.ndarray, " some"], kind: Kind
) -> Iterator[sp.csr_array | Float[np.ndarray, "some genes"]]:
    """Blocks of cells x genes, float32, normalised as described in `expression_space`."""
    target = np.median(cells.library[positions])
    for part in chunks(len(positions), READ_AT_ONCE):
        x = cells.rows.take(positions[part])
        if not isinstance(x, CSR):
            yield x.values.numpy()
            continue
        values = x.values.numpy()
        if kind != "real":
            library = cells.library[positions[part]]
            scale = np.divide(target, library, out=np.zeros_like(library), where=library > 0.0)
            values = np.log1p(values * np.repeat(scale, np.diff(x.indptr.numpy())))
        yield sp.csr_array((values, x.indices.numpy(), x.indptr.numpy()), shape=(len(part), x.n_columns))


def most_alike(cells: Cells, n: int, *, kind: Kind, seed: int) -> Int[np.ndarray, "cells alike"]:
    """Positions of each cell (column 0) and of the `n` - 1 cells nearest to it in expression space, or of all cells.

    More than `COMPARED_AT_ONCE` cells are split into random groups, and each cell is compared only with its own group.
    Memory then does not grow with the number of cells, and the neighbours found are a sample of the similar cells.
    """
    from sklearn.neighbors import NearestNeighbors

    n_groups = -(-len(cells) // COMPARED_AT_ONCE)
    shuffled = numpy_generator(seed, DEAL).permutation(len(cells)) if n_groups > 1 else np.arange(len(cells))
    groups = [np.sort(group) for group in np.array_split(shuffled, n_groups)]
    n = min(n, *map(len, groups))
    alike = np.empty((len(cells), n), dtype=np.int64)
    for group in groups:
        alike[group, 0] = group
        if n > 1:
            search = NearestNeighbors(n_neighbors=n - 1).fit(expression_space(cells, group, kind=kind))
            alike[group, 1:] = group[search.kneighbors(return_distance=False)]
    return alike
