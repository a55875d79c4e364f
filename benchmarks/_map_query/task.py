"""A held-out batch: its reference, the query, three queries that lack a fifth of the genes, and the score."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np

NEIGHBOURS = 15
MISSING = 0.2
DRAWS = 3  # of the missing genes: their choice changes the accuracy by more than the seed of a fit
NAMELESS = ("", "nan", "unlabelled")

Row = dict[str, Any]


@dataclass(frozen=True)
class Task:
    """Raw counts in X, labels in obs["cell_type"], batches in obs["batch"]; genes without counts are left out."""

    name: str
    held_out: str
    reference: ad.AnnData
    queries: dict[str, ad.AnnData]

    @classmethod
    def read(cls, path: Path, held_out: str) -> Task:
        adata = ad.read_h5ad(path)
        whole = ad.AnnData(adata.X, obs=adata.obs[["cell_type", "batch"]].astype(str), var=adata.var[[]])
        reference = whole[whole.obs["batch"] != held_out].copy()
        genes = np.asarray(reference.X.sum(0)).ravel() > 0
        reference, full = reference[:, genes].copy(), whole[whole.obs["batch"] == held_out, genes].copy()
        queries, n_kept = {"full": full}, round((1 - MISSING) * full.n_vars)
        for draw in range(DRAWS):
            kept = np.random.default_rng(draw).permutation(full.n_vars)[:n_kept]
            queries[f"missing_{draw}"] = full[:, kept].copy()
        return cls(path.stem, held_out, reference, queries)

    def row(self, **values: Any) -> Row:
        return {"set": self.name, "held_out": self.held_out, "cells": self.queries["full"].n_obs, **values}

    def accuracy(self, reference: np.ndarray, query: np.ndarray) -> float:
        """Accuracy of the majority label of the 15 nearest reference cells, over cells of types in the reference."""
        from sklearn.neighbors import KNeighborsClassifier

        named, true = self.reference.obs["cell_type"].to_numpy(), self.queries["full"].obs["cell_type"].to_numpy()
        known = ~np.isin(named, NAMELESS)
        classifier = KNeighborsClassifier(NEIGHBOURS).fit(reference[known], named[known])
        judged = np.isin(true, named[known])
        return float((classifier.predict(query[judged]) == true[judged]).mean())
