"""The cells of a fit or a call: their values, library sizes and conditions."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int

from ..kernels.csr import CSR
from ..kernels.rows import keep_entries
from .batches import Batch
from .rows import Rows, SparseRows, row_sums, taken
from .views import ViewCells


@dataclass(frozen=True, eq=False)
class Cells:
    """All cells of an AnnData as input of the model; refers to its arrays if possible, but never to the AnnData.

    Parameters
    ----------
    rows
        Values, cells x modelled genes.
    library
        float32 sum over the modelled genes, or the user's size factor on that scale; 1 for real values.
    codes
        int64 code of the category in each categorical column, the batch first.
    numeric
        float32 standardised numeric covariates.
    names
        Names of the cells.
    has_batch
        Whether the first column of `codes` is the batch.
    missing
        int64 positions of the modelled genes that were not measured, ascending; None if all were measured.
    labels
        int64 code of the label of each cell, -1 for a cell without one; None if labels were not read.
    present
        Which cells have the values in `rows`, if there are further measurements; None for all cells.
    views
        Further measurements of the cells.
    """

    rows: Rows
    library: Float[np.ndarray, " cells"]
    codes: Int[np.ndarray, "cells categoricals"]
    numeric: Float[np.ndarray, "cells numerics"]
    names: pd.Index
    has_batch: bool = False
    missing: Int[np.ndarray, " missing"] | None = None
    labels: Int[np.ndarray, " cells"] | None = None
    present: Bool[np.ndarray, " cells"] | None = None
    views: tuple[ViewCells, ...] = ()

    def __len__(self) -> int:
        return len(self.library)

    @property
    def missing_genes(self) -> Int[np.ndarray, " missing"]:
        """The modelled genes that were not measured; an empty array if all were."""
        return np.empty(0, np.int64) if self.missing is None else self.missing

    @property
    def group(self) -> Int[np.ndarray, " cells"]:
        """Code of the batch of each cell; 0 for all cells if there is no batch."""
        return self.codes[:, 0] if self.has_batch else np.zeros(len(self), np.int64)

    def batch(self, positions: Int[np.ndarray, " batch"]) -> Batch:
        """The cells at `positions`, in that order."""
        return Batch(
            x=self.rows.take(positions),
            library=torch.from_numpy(self.library[positions]),
            codes=torch.from_numpy(self.codes[positions]),
            numeric=torch.from_numpy(self.numeric[positions]),
            has_batch=self.has_batch,
            missing=None if self.missing is None else torch.from_numpy(self.missing),
            labels=None if self.labels is None else torch.from_numpy(self.labels[positions]),
            **self.further(positions),
        )

    def further(self, positions: Int[np.ndarray, " batch"]) -> dict[str, Any]:
        """What a batch of the cells at `positions` has of further measurements."""
        present = None if self.present is None else torch.from_numpy(self.present[positions])
        return {"present": present, "views": tuple(view.batch(positions) for view in self.views)}

    def of_view(self, view: ViewCells) -> Cells:
        """The cells with a further measurement in place of the first."""
        return replace(self, rows=view.rows, library=view.library, missing=view.missing, present=view.present, views=())

    def turned(self, place: int | None) -> Cells:
        """The cells with the first measurement and the further one at `place` exchanged; the same cells for None."""
        if place is None:
            return self
        views = list(self.views)
        views[place] = ViewCells(self.rows, self.library, self.having[0], self.missing)
        return replace(self.of_view(self.views[place]), views=tuple(views))

    @property
    def having(self) -> tuple[Bool[np.ndarray, " cells"], ...]:
        """Which cells have the first measurement, and which each further one."""
        first = np.ones(len(self), dtype=bool) if self.present is None else self.present
        return (first, *(view.present for view in self.views))

    def taken(self, positions: Int[np.ndarray, " some"]) -> Cells:
        """A copy of the cells at `positions`, in that order, for a sample that is used several times."""
        return Cells(
            rows=taken(self.rows, positions),
            library=self.library[positions],
            codes=self.codes[positions],
            numeric=self.numeric[positions],
            names=self.names[positions],
            has_batch=self.has_batch,
            missing=self.missing,
            labels=None if self.labels is None else self.labels[positions],
            present=None if self.present is None else self.present[positions],
            views=tuple(view.taken(positions) for view in self.views),
        )

    def lacking(self, missing: Int[np.ndarray, " missing"], *, size_factors: bool) -> Cells:
        """A copy as if these genes had not been measured: without their values and their part of the library size.

        Parameters
        ----------
        missing
            int64 positions of modelled genes, ascending.
        size_factors
            Whether the library sizes are the user's size factors, which then stay the same.
        """
        if np.array_equal(missing, self.missing_genes):
            return self
        x = self.rows.take(np.arange(len(self)))
        assert isinstance(x, CSR)
        indptr, indices, values = x.indptr.numpy(), x.indices.numpy(), x.values.numpy()
        measured = np.ones(x.n_columns, dtype=bool)
        measured[missing] = False
        rows = SparseRows(*keep_entries(indptr, indices, values, measured[indices]), x.n_columns)
        library = self.library if size_factors else row_sums(rows.indptr, rows.values).astype(np.float32)
        return replace(self, rows=rows, library=library, missing=missing)

    def fingerprint(self) -> str:
        """A digest of names and library sizes in their order, which identifies the cells of a fit.

        Real values have no library size, so their digest depends on the names alone.
        """
        digest = hashlib.blake2b(digest_size=16)
        digest.update("\0".join(map(str, self.names)).encode())
        digest.update(np.ascontiguousarray(self.library).tobytes())
        for view in self.views:
            digest.update(np.ascontiguousarray(view.library).tobytes() + view.present.tobytes())
        return digest.hexdigest()
